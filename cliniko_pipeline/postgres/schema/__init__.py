"""The creation, the checks and the rehearsal of the database's objects."""
