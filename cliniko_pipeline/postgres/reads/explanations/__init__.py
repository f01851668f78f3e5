"""Explanations of why a patient is active or not, and why it is matched to a contact or not."""
