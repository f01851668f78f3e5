"""The commands that run syncs, their worker processes and their progress."""
