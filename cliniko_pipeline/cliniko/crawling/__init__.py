"""Crawls, which read a list page by page without missing a record."""
