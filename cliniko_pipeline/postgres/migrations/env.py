"""Alembic's entry point: runs the migrations on the connection that `schema` hands over, in its transaction."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_version",
    version_table_schema="cliniko",
    transactional_ddl=True,
)
context.run_migrations()
