"""The Dagster instance: home, storage, webserver, consoles."""
