"""Alerts to the operator: messages, channels, delivery."""
