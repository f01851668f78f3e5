"""Webhook deliveries, which are enqueued first and posted later."""
