"""Connections to PostgreSQL, its errors in words, and the embedded server."""
