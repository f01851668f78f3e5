"""Pure functions that make decisions. They read no clock and no database."""
