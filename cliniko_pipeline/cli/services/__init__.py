"""Commands that serve the UI, the HTTP API, the sandbox or the demo until Ctrl-C."""
