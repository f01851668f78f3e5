"""The Cliniko API client: everything that is read from Cliniko, and how it is asked for.

Knows no Dagster and no database, and reads no environment. What other packages use is imported from here.
"""
