"""Webhook deliveries: enqueued in a transaction, posted later."""
