"""The database's objects: making, checking and rehearsing them."""
