"""Alembic's migrations: versioned steps in `versions/`, run by `schema.migrate`, never by hand."""
