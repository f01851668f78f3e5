"""The HTTP service on a free port, with the server configuration that operators use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.api.serving import server_configuration
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline_tests.support.waiting import wait_until


@contextmanager
def served(runtime: Runtime, application: FastAPI | None = None) -> Iterator[str]:
    """Serve in a thread of this process. Yield the address without a trailing slash."""
    configuration = server_configuration(
        application or create_application(runtime), runtime.settings, host="127.0.0.1", port=0
    )
    server = uvicorn.Server(configuration)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the service did not start")
        (socket,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
