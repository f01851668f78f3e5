"""Cliniko credentials and their encryption. `postgres` stores them, and `cliniko` checks them."""
