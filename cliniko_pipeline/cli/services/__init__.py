"""The commands that serve until Ctrl-C: UI, HTTP API, sandbox, demo."""
