"""The conversion of Cliniko's JSON to typed records."""
