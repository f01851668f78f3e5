"""Errors as problem details (RFC 9457), each of one shape, whatever raised them.

A problem never holds a secret, a patient's data, or what the request said.
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
    400: "The request cannot be read, or lacks a header.",
    401: "The token or the signature is missing, wrong, expired or revoked.",
    403: "The token's scopes do not include this.",
    404: "It does not exist, or the token does not open that organization; neither is told apart.",
    405: "The address does not take that method; the header Allow lists those it takes.",
    408: "The body did not come in time.",
    409: "It cannot be done in the present state: the organization is disabled, or the sync cannot be cancelled.",
    413: "The body is too large.",
    422: "A part of the request has a value that is not allowed; `errors` names it.",
    429: "The token has sent too many requests; the header Retry-After says when to go on.",
    500: "A defect, or the service is not set up as it must be; its log says more.",
    503: "The database or Dagster cannot be used at present, or the database is read-only; try again after the header"
    " Retry-After.",
}
"""What each status means: in the API's description and docs/errors.md."""


class WrongParameter(BaseModel):
    """What is wrong with one part of a request."""

    where: str = Field(examples=["query.limit"])
    reason: str = Field(examples=["Input should be less than or equal to 1000"])


class ProblemDetails(BaseModel):
    """What went wrong, by RFC 9457."""

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["Not Found"], description="The same for every problem of this status.")
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no such organization."], description="What happened and what to do next.")
    errors: list[WrongParameter] | None = Field(
        default=None, description="What is wrong with the request's parts; never what they held."
    )


class ProblemError(Exception):
    """A request that is answered with a problem."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


def not_found(detail: str = "There is nothing here that this token may see.") -> ProblemError:
    """The same for what does not exist and for what is another organization's: neither is told apart."""
    return ProblemError(HTTPStatus.NOT_FOUND, detail)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route answers with, for its description."""
    return {
        status: {
            "model": ProblemDetails,
            "description": MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in statuses
    }


def answer_problems(application: FastAPI) -> None:
    """Has whatever is raised answered with a problem."""
    application.add_exception_handler(ProblemError, _answer_problem)
    application.add_exception_handler(ClinikoPipelineError, _answer_ours)
    application.add_exception_handler(RequestValidationError, _answer_invalid)
    application.add_exception_handler(HTTPException, _answer_http)
    application.add_middleware(AnsweredDefects)


def problem_response(
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[WrongParameter] | None = None,
) -> JSONResponse:
    """The answer that tells of a problem."""
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


def _answer_ours(_request: Request, error: Exception) -> JSONResponse:
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
        "The service is not set up as it must be; its log says how, and `cliniko-pipeline doctor` what to do.",
    )


def _answer_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (by registration)
    # Without the input, which may be anything.
    wrong = [WrongParameter(where=".".join(map(str, each["loc"])), reason=_reason(each)) for each in error.errors()]
    return problem_response(
        HTTPStatus.UNPROCESSABLE_ENTITY, "The request cannot be understood: see `errors`, mend it, send it again.",
        errors=wrong,
    )  # fmt: skip


def _reason(error: Mapping[str, Any]) -> str:
    # A body that was not sent as JSON is taken for a text.
    if tuple(error["loc"]) == ("body",):
        return "Send a JSON object, with the header Content-Type: application/json"
    return str(error["msg"]).removeprefix("Value error, ")


def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (by registration)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods_here(request)))
    return problem_response(error.status_code, _HTTP_DETAILS.get(error.status_code, error.detail), headers)


def _methods_here(request: Request) -> set[str]:
    """What the address takes: the routes of one address are told apart by their methods."""
    paths: dict[str, dict[str, object]] = request.app.openapi()["paths"]
    here = getattr(request.scope.get("route"), "path", request.url.path)
    return {method.upper() for method in paths.get(here, {})}


_HTTP_DETAILS = {
    404: "There is nothing at this address; /openapi.json lists what there is.",
    405: "This address does not take that method; /openapi.json lists which it does.",
}


class AnsweredDefects:
    """Has a defect answered with a problem, and logged without its text, which may hold anything."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        has_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._application(scope, receive, send_noted)
        except Exception as error:  # noqa: BLE001 (whatever it is)
            where = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("A defect, %s:\n%s", type(error).__name__, where)
            if scope["type"] == "http" and not has_begun:
                detail = "Something unexpected happened in the service; this is a defect."
                await problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, detail)(scope, receive, send)
