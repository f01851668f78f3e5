"""The simulated accounts and their records."""
