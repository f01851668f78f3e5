"""Reading a list page by page, without losing a record."""
