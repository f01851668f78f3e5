"""The deletion of old runs, events and history."""
