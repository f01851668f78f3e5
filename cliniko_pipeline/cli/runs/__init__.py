"""Commands that run syncs, with their worker processes and progress displays."""
