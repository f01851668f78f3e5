"""The first ten migrations."""
