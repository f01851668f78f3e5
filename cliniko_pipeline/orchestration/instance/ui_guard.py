"""A guard that refuses requests of other web pages to the Dagster UI, which has no login.

Any page that is open in a browser can send requests to this machine. A request of another page has that page's
`Origin`, or a `Sec-Fetch-Site` other than `same-origin`. A page whose host name was changed to point to this machine
(DNS rebinding) passes as the same origin, but its requests have a foreign `Host`.
"""

from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cliniko_pipeline.hosts import is_loopback

POLICY_VIOLATION = 1008  # a close code of WebSockets
JSON_TYPES = ("application/json", "application/graphql")
"""The content types with which Dagster runs the query in the body. With others, it runs the query in the URL."""

FOREIGN_HOST = (
    "The Dagster UI does not have this host name: open it at its own address, or add the host to CLINIKO_UI_HOSTS."
)
FOREIGN_PAGE = "The Dagster UI answers only its own pages: open it at its own address."
NOT_BY_GET = "The Dagster UI takes GraphQL by POST only."
NOT_JSON = "The Dagster UI takes GraphQL as JSON only: send Content-Type: application/json."


class GuardedUI:
    """The UI's application, protected by the guard.

    Args:
        hosts: the UI's hosts besides this machine, as `host` or `host:port` in lower case.
    """

    def __init__(self, application: ASGIApp, hosts: Iterable[str]) -> None:
        self._application = application
        self._hosts = frozenset(hosts)
        self._names = frozenset(map(_name, self._hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or refuse it."""
        refusal = self._refusal(scope) if scope["type"] in {"http", "websocket"} else None
        if refusal is None:
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refusal[1]})
        else:
            status, reason = refusal
            await PlainTextResponse(reason, status)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not (is_loopback(_name(host)) or _name(host) in self._names):
            return HTTPStatus.MISDIRECTED_REQUEST, FOREIGN_HOST
        origins = headers.getlist("origin")
        if any(not self._is_own(origin.lower(), host) for origin in origins) or _is_from_elsewhere(scope, headers):
            return HTTPStatus.FORBIDDEN, FOREIGN_PAGE
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/graphql"):
            return _graphql_refusal(scope["method"], headers)
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        scheme, _, address = origin.partition("://")
        return scheme in {"http", "https"} and address in {host, *self._hosts}


def _is_from_elsewhere(scope: Scope, headers: Headers) -> bool:
    """Return whether another page sent the request. Links that open the UI are allowed."""
    if headers.get("sec-fetch-site", "none") in {"none", "same-origin"}:
        return False
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return not (is_link and scope["type"] == "http" and scope["method"] == "GET")


def _graphql_refusal(method: str, headers: Headers) -> tuple[HTTPStatus, str] | None:
    if method == "POST":
        is_json = headers.get("content-type", "").lower().startswith(JSON_TYPES)
        return None if is_json else (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, NOT_JSON)
    # If a GET request asks for HTML, Dagster responds with its query editor, and runs no query.
    if method == "GET" and "text/html" in headers.get("accept", ""):
        return None
    return HTTPStatus.METHOD_NOT_ALLOWED, NOT_BY_GET


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
