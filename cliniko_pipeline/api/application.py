"""The application: routes, gate, problems, and what every request and answer passes through, put together."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliniko_pipeline.api import watching
from cliniko_pipeline.api.dagster_runs import DagsterRuns
from cliniko_pipeline.api.gate import Gate
from cliniko_pipeline.api.problems import answer_problems
from cliniko_pipeline.api.routes import active_patients, organizations, syncs, webhooks
from cliniko_pipeline.api.routes.page import page_router
from cliniko_pipeline.runtime import Runtime

DESCRIPTION = """
The active patients of each organization, and the syncs that keep them current.

Send a token of `cliniko-pipeline tokens create` as `Authorization: Bearer TOKEN`. What is another organization's is
404, like what does not exist. Errors are problem details (RFC 9457). All instants are UTC.
"""

LARGEST_BODY = 64 * 1024
"""In bytes; webhooks have a limit of their own."""

ROUTERS = (organizations.router, active_patients.router, syncs.router, webhooks.router, watching.router)


def create_application(runtime: Runtime) -> FastAPI:
    """The service on this runtime. Nothing is asked of the database or Dagster before a request comes."""
    dagster = DagsterRuns(runtime.settings.dagster_url)

    @asynccontextmanager
    async def lifespan(_application: FastAPI) -> AsyncGenerator[None]:
        yield
        dagster.close()

    application = FastAPI(
        title="cliniko_pipeline",
        version=version("cliniko_pipeline"),
        description=DESCRIPTION,
        # Their pages load scripts from other hosts; /openapi.json stays.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    measurements = watching.Measurements()
    application.state.runtime = runtime
    application.state.dagster = dagster
    application.state.gate = Gate(runtime)
    application.state.measurements = measurements
    application.state.readiness = watching.ReadinessLooks()
    for router in ROUTERS:
        application.include_router(router)
    application.include_router(page_router())
    answer_problems(application)
    application.add_middleware(_ShortBodies)
    application.add_middleware(_SafeHeaders)
    application.add_middleware(watching.MeasuredRequests, measurements=measurements)
    return application


class _ShortBodies:
    """Keeps a body from being gathered without an end: that is done before anybody asks whose it is."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def receive_little() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST_BODY:
                # Otherwise the server reads the rest, however much that is.
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The body is larger than {LARGEST_BODY // 1024} KiB: send less.",
                    {"Connection": "close"},
                )
            return message

        is_limited = scope["type"] == "http" and not scope["path"].startswith(webhooks.PATH)
        await self._application(scope, receive_little if is_limited else receive, send)


class _SafeHeaders:
    """No cache on the way keeps health data, and no browser takes an answer for something else than it is."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        await self._application(scope, receive, send_with_headers)
