"""Writes of an organization's tables, in the caller's organization context."""
