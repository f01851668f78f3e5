"""Connections to PostgreSQL, the translation of its errors, and the embedded server."""
