"""From Cliniko's JSON to typed records."""
