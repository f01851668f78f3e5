"""Responses to errors, as problem details (RFC 9457).

A problem never contains a secret, a patient's data or a part of the request.
"""

import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliniko_pipeline.errors import (
    ArgumentError,
    ClinikoPipelineError,
    OrganizationUnknownError,
    TransientError,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 10

_LOG = logging.getLogger(__name__)

MEANINGS = {
    400: "The request is malformed, or lacks a header.",
    401: "The token or the signature is missing, wrong, expired or revoked.",
    403: "The token's scopes do not allow this request.",
    404: "The resource does not exist, or the token may not access its organization. Both cases get the same response.",
    405: "The route does not support the method. The header Allow lists the supported methods.",
    408: "The body did not arrive in time.",
    409: "The organization is disabled, or the sync cannot be cancelled.",
    413: "The body is too large.",
    422: "A parameter or a field has a value that is not allowed. `errors` lists the invalid ones.",
    429: "The token has sent too many requests. The header Retry-After says when to try again.",
    500: "The service has a defect or is not set up correctly. Its log says more.",
    503: "The database or Dagster is unavailable, or the database is read-only. The header Retry-After says when to try"
    " again.",
}
"""The meaning of each status, for the API's description and docs/errors.md."""


class WrongParameter(BaseModel):
    """An invalid parameter or field of a request."""

    where: str = Field(examples=["query.limit"])
    reason: str = Field(examples=["Input should be less than or equal to 1000"])


class ProblemDetails(BaseModel):
    """A problem as defined by RFC 9457."""

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["Not Found"], description="Name of the HTTP status.")
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no such organization."], description="What happened and what to do next.")
    errors: list[WrongParameter] | None = Field(
        default=None, description="The invalid parameters and fields, without their values."
    )


class ProblemError(Exception):
    """A problem that becomes the response."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def not_found(detail: str = "There is nothing here that this token may see.") -> ProblemError:
    """Return the same 404 for a missing resource and for a resource of another organization."""
    return ProblemError(HTTPStatus.NOT_FOUND, detail)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI descriptions of a route's problems."""
    return {
        status: {
            "model": ProblemDetails,
            "description": MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in statuses
    }


def answer_problems(application: FastAPI) -> None:
    """Register handlers that respond to every exception with a problem."""
    application.add_exception_handler(ProblemError, _answer_problem)
    application.add_exception_handler(ClinikoPipelineError, _answer_pipeline_error)
    application.add_exception_handler(RequestValidationError, _answer_invalid)
    application.add_exception_handler(HTTPException, _answer_http)
    application.add_middleware(AnsweredDefects)


def problem_response(
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[WrongParameter] | None = None,
) -> JSONResponse:
    """Return the response of a problem."""
    problem = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    return JSONResponse(
        problem.model_dump(exclude_none=True),
        status_code=status,
        headers=None if headers is None else dict(headers),
        media_type=MEDIA_TYPE,
    )


def _answer_problem(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)  # noqa: S101 (by registration)
    return problem_response(error.status, error.detail, error.headers)


def _answer_pipeline_error(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, TransientError):
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers)
    if isinstance(error, OrganizationUnknownError):
        return _answer_problem(_request, not_found())
    if isinstance(error, ArgumentError):
        return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    _LOG.error("%s: %s", type(error).__name__, error)
    return problem_response(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "The service is not set up correctly. Operators: read its log, and run `cliniko-pipeline doctor`.",
    )


def _answer_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (by registration)
    # The values are left out, because they may contain personal data.
    errors = [WrongParameter(where=".".join(map(str, found["loc"])), reason=_reason(found)) for found in error.errors()]
    detail = "The request is invalid: correct what `errors` lists, then send it again."
    return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)


def _reason(error: Mapping[str, Any]) -> str:
    # FastAPI reads a body without a JSON content type as a string, so FastAPI's reason would mislead.
    if tuple(error["loc"]) == ("body",):
        return "Send a JSON object, with the header Content-Type: application/json"
    return str(error["msg"]).removeprefix("Value error, ")


def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (by registration)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_allowed_methods(request)))
    return problem_response(error.status_code, _HTTP_DETAILS.get(error.status_code, error.detail), headers)


def _allowed_methods(request: Request) -> set[str]:
    """Return the methods of all routes with this path. Starlette would name only those of the first route."""
    paths: dict[str, dict[str, object]] = request.app.openapi()["paths"]
    path = getattr(request.scope.get("route"), "path", request.url.path)
    return {method.upper() for method in paths.get(path, {})}


_HTTP_DETAILS = {
    404: "There is nothing at this address; /openapi.json lists all routes.",
    405: "This route does not take that method; /openapi.json lists its methods.",
}


class AnsweredDefects:
    """Middleware that responds to a defect with a problem.

    The traceback is logged without the error's text, because the text may contain a patient's data.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        has_started = False

        async def send_recorded(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._application(scope, receive, send_recorded)
        except Exception as error:  # noqa: BLE001 (any defect)
            where = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("A defect, %s:\n%s", type(error).__name__, where)
            if scope["type"] == "http" and not has_started:
                detail = "The service has a defect: tell the operator, whose log says more."
                await problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, detail)(scope, receive, send)
