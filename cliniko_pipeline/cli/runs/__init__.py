"""The commands that run syncs, and the processes and progress of those runs."""
