"""Cliniko credentials and their encryption. The package `postgres` stores them, and `cliniko` checks them."""
