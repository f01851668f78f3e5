"""Cliniko credentials and their encryption. The package `postgres` stores credentials."""
