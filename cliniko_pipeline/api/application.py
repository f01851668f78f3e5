"""The FastAPI application with its routes, gate, problem details and middleware."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliniko_pipeline.api.dagster_runs import DagsterRuns
from cliniko_pipeline.api.gate import Gate
from cliniko_pipeline.api.problems import answer_problems
from cliniko_pipeline.api.routes import ROUTERS, health, metrics, webhooks
from cliniko_pipeline.api.routes.page import page_router
from cliniko_pipeline.runtime import Runtime

DESCRIPTION = """
The active patients of each organization, and the syncs that keep them current.

Send a token of `cliniko-pipeline tokens create` as `Authorization: Bearer TOKEN`. A request for a resource of another
organization gets status 404, as if the resource did not exist. Errors are problem details (RFC 9457). All instants are
UTC.
"""

MAX_BODY_BYTES = 64 * 1024
"""Limit for every route except the webhooks, which have their own limit."""


def create_application(runtime: Runtime) -> FastAPI:
    """Return the service, which connects to the database and to Dagster only when a request needs them."""
    dagster = DagsterRuns(runtime.settings.dagster_url)

    @asynccontextmanager
    async def lifespan(_application: FastAPI) -> AsyncGenerator[None]:
        yield
        dagster.close()

    application = FastAPI(
        title="cliniko_pipeline",
        version=version("cliniko_pipeline"),
        description=DESCRIPTION,
        # FastAPI's documentation pages are off, because they load scripts from other hosts. /openapi.json is on.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    application.state.runtime = runtime
    application.state.dagster = dagster
    application.state.gate = Gate(runtime)
    application.state.metrics = metrics.RequestMetrics()
    application.state.readiness = health.ReadinessProbe()
    for router in ROUTERS:
        application.include_router(router)
    application.include_router(page_router())
    answer_problems(application)
    application.add_middleware(_LimitedBodies)
    application.add_middleware(_SafeHeaders)
    application.add_middleware(metrics.MeasuredRequests, metrics=application.state.metrics)
    return application


class _LimitedBodies:
    """Middleware that refuses large bodies, because FastAPI reads a body before it checks the token."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                # Without "close" the server would read the rest of the body.
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The body is larger than {MAX_BODY_BYTES // 1024} KiB: send less.",
                    {"Connection": "close"},
                )
            return message

        is_limited = scope["type"] == "http" and not scope["path"].startswith(webhooks.PATH)
        await self._application(scope, receive_limited if is_limited else receive, send)


class _SafeHeaders:
    """Middleware that adds headers.

    The headers keep health data out of caches, and stop browsers from guessing another content type.
    """

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
