"""Alerts to the operator, from their texts to their delivery."""
