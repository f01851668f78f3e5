"""Alembic's entry point, which runs the migrations in the transaction of `schema.migrate`."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_version",
    version_table_schema="cliniko",
    transactional_ddl=True,
)
context.run_migrations()
