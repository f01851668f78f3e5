"""Explanations of why a patient is or is not active, and how it was or was not matched to a contact."""
