"""Queries on tables outside of row-level security, such as schedules, tokens and alerts.

Functions run in the caller's transaction of `Database.operator`, unless their texts say otherwise.
"""
