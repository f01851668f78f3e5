"""Requests to Cliniko, with their transport, the request budget and retries."""
