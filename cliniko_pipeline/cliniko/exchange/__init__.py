"""One request and its answer: transport, request budget, retries."""
