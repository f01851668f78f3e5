"""Alembic's migrations in `versions/`, run by `schema.migrate`, never by hand."""
