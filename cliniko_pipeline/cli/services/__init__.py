"""The commands that serve until they are stopped: UI, HTTP API, sandbox, demo."""
