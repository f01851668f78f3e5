"""The Dagster instance, the console logger, the rehearsal at the start and the UI's guard."""
