"""Reads of an organization's tables, in the organization context that the caller opened."""
