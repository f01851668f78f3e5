"""The operator's own tables. Every function runs in an operator's transaction."""
