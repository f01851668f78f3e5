"""Authentication by tokens, rate limits, and the log of refused requests."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from cliniko_pipeline.api.oidc import OidcVerifier, TokenRefusedError
from cliniko_pipeline.api.problems import ProblemError, not_found
from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres.operator_tables import api_tokens, organizations
from cliniko_pipeline.postgres.operator_tables.api_tokens import Refusal
from cliniko_pipeline.postgres.operator_tables.organizations import Organization
from cliniko_pipeline.runtime import Runtime

READ, SYNC, ADMIN = "read", "sync", "admin"

MAX_FOLLOWERS = 20
"""Syncs that one token may follow at a time. Each followed sync queries Dagster once a second."""

MAX_REFUSALS_PER_MINUTE = 100
"""Distinct refusals that a process stores per minute. Equal refusals of the same minute share one row."""

OTHER_REFUSALS = Refusal("others", "", "", "", "", "")

_LOG = logging.getLogger(__name__)
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token of `cliniko-pipeline tokens create`, or a JWT of the operator's issuer.",
)


@dataclass(frozen=True)
class Principal:
    """The owner of a token.

    Attributes:
        id: id of the token; for a JWT, `jwt:` and the issuer's id of the user.
        organizations: ids of the accessible organizations; None for all organizations.
        requests_per_minute: limit of the token; None if `API_REQUESTS_PER_MINUTE` applies.
    """

    id: str
    scopes: frozenset[str]
    organizations: frozenset[str] | None
    requests_per_minute: int | None = None

    def may(self, scope: str) -> bool:
        """Return whether the token's scopes include the scope."""
        return scope in self.scopes or ADMIN in self.scopes

    def sees(self, organization_id: str) -> bool:
        """Return whether the token may access the organization."""
        return self.organizations is None or organization_id in self.organizations


class Gate:
    """Authentication, rate limits and stored refusals. Thread-safe; each process has one gate."""

    def __init__(self, runtime: Runtime, clock: Callable[[], float] = time.monotonic) -> None:
        self._runtime = runtime
        self._verifier = None if runtime.settings.oidc_issuer is None else OidcVerifier(runtime.settings, clock)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._lock = threading.Lock()
        self._clock = clock
        self._minute = 0
        self._stored: set[Refusal] = set()
        self._followers: Counter[str] = Counter()

    @contextmanager
    def hold_follower_slot(self, principal: Principal) -> Generator[None]:
        """Occupy one of the token's slots for followed syncs. Raise ProblemError (429) if all are occupied."""
        with self._lock:
            if self._followers[principal.id] >= MAX_FOLLOWERS:
                raise ProblemError(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    f"This token follows {MAX_FOLLOWERS} syncs already: close one of these streams first.",
                    {"Retry-After": "60"},
                )
            self._followers[principal.id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._followers[principal.id] -= 1
                self._followers += Counter()  # drops counts of zero

    def authenticate(self, request: Request, credentials: HTTPAuthorizationCredentials | None) -> Principal:
        """Return the owner of the request's token. Raise ProblemError (401, 429)."""
        if credentials is None:
            raise self.refuse(request, "no token", HTTPStatus.UNAUTHORIZED)
        principal = self._find_principal(request, credentials.credentials)
        self._require_within_limit(principal)
        return principal

    def require_valid_token(self, request: Request) -> None:
        """Raise ProblemError (401) if the token has expired or was revoked during a long request."""
        self._find_principal(request, request.headers.get("Authorization", "").partition(" ")[2])

    def refuse(
        self, request: Request, reason: str, status: HTTPStatus, principal: Principal | None = None, token_id: str = ""
    ) -> ProblemError:
        """Store the refusal with its reason, and return the problem to raise."""
        route = request.scope.get("route")
        organization_id = "" if principal is None else str(request.path_params.get("organization_id", ""))
        refusal = Refusal(
            reason=reason,
            token_id=_plain(token_id if principal is None else principal.id),
            # Behind a proxy of API_TRUSTED_PROXIES, this is the address that the proxy reports.
            address=_plain(request.client.host if request.client else ""),
            method=request.method,
            # The route's template is stored instead of the path, whose values the caller chose.
            route=getattr(route, "path", "")[:200],
            organization_id="",
        )
        try:
            with self._runtime.database.operator() as connection:
                # The id in the path is stored only if such an organization exists. Otherwise it may be any text.
                is_plain = _plain(organization_id) == organization_id
                if is_plain and organizations.find(connection, organization_id) is not None:
                    refusal = replace(refusal, organization_id=organization_id)
                api_tokens.note_refusal(connection, self._bounded(refusal))
        except ClinikoPipelineError as error:
            # The request is refused even if the refusal cannot be stored.
            _LOG.warning("A refused request could not be stored: %s", error)
        return ProblemError(status, _DETAILS[status], _HEADERS.get(status))

    def _find_principal(self, request: Request, text: str) -> Principal:
        if self._verifier is not None and text.count(".") == 2:
            return self._authenticate_jwt(request, self._verifier, text)
        with self._runtime.database.operator() as connection:
            token = api_tokens.find(connection, text)
        if token is None:
            raise self.refuse(request, "unknown token", HTTPStatus.UNAUTHORIZED)
        if token.revoked_at is not None:
            raise self.refuse(request, "revoked token", HTTPStatus.UNAUTHORIZED, token_id=token.id)
        if token.is_expired:
            raise self.refuse(request, "expired token", HTTPStatus.UNAUTHORIZED, token_id=token.id)
        return Principal(token.id, token.scopes, token.organizations, token.requests_per_minute)

    def _authenticate_jwt(self, request: Request, verifier: OidcVerifier, text: str) -> Principal:
        try:
            identity = verifier.verify(text)
        except TokenRefusedError as error:
            raise self.refuse(request, f"JWT {error}", HTTPStatus.UNAUTHORIZED) from None
        scopes = self._runtime.settings.oidc_scopes
        return Principal(f"jwt:{identity.subject}", scopes, frozenset({identity.organization_id}))

    def _require_within_limit(self, principal: Principal) -> None:
        limit = RateLimitItemPerMinute(principal.requests_per_minute or self._runtime.settings.api_requests_per_minute)
        with self._lock:
            is_within = self._limiter.hit(limit, principal.id)
        if not is_within:
            # These refusals are not stored, because there may be very many.
            raise ProblemError(status := HTTPStatus.TOO_MANY_REQUESTS, _DETAILS[status], _HEADERS[status])

    def _bounded(self, refusal: Refusal) -> Refusal:
        """Return the refusal, or OTHER_REFUSALS if this minute already has too many distinct refusals."""
        with self._lock:
            minute = int(self._clock() // 60)
            if minute != self._minute:
                self._minute, self._stored = minute, set()
            if refusal not in self._stored and len(self._stored) >= MAX_REFUSALS_PER_MINUTE:
                return OTHER_REFUSALS
            self._stored.add(refusal)
            return refusal


_DETAILS = {
    HTTPStatus.UNAUTHORIZED: "Send a valid token as `Authorization: Bearer TOKEN`.",
    HTTPStatus.FORBIDDEN: "The token's scopes do not include this: ask the operator for another token.",
    HTTPStatus.NOT_FOUND: str(not_found()),
    HTTPStatus.TOO_MANY_REQUESTS: "This token has reached its limit of requests per minute: try again later.",
}
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": "60"},
}


def _plain(text: str) -> str:
    """Return the start of the caller's text, with `?` for each unprintable character."""
    return "".join(character if character.isprintable() else "?" for character in text[:100])


def runtime_of(request: Request) -> Runtime:
    """Return the application's runtime."""
    return request.app.state.runtime


def gate_of(request: Request) -> Gate:
    """Return the application's gate."""
    return request.app.state.gate


RuntimeDependency = Annotated[Runtime, Depends(runtime_of)]
GateDependency = Annotated[Gate, Depends(gate_of)]


def requires(*scopes: str) -> Callable[..., Principal]:
    """Return a FastAPI dependency that provides the principal, and requires one of the scopes."""

    def authenticated(
        request: Request,
        gate: GateDependency,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Principal:
        found = gate.authenticate(request, credentials)
        if not any(map(found.may, scopes)):
            raise gate.refuse(request, f"without the scope {' or '.join(scopes)}", HTTPStatus.FORBIDDEN, found)
        return found

    return authenticated


authenticate_reader = requires(READ)
authenticate_syncer = requires(SYNC)
authenticate_follower = requires(READ, SYNC)
"""Tokens with the scope `sync` may follow syncs, although they may not read patients."""
authenticate_administrator = requires(ADMIN)

Reader = Annotated[Principal, Depends(authenticate_reader)]
Syncer = Annotated[Principal, Depends(authenticate_syncer)]
Follower = Annotated[Principal, Depends(authenticate_follower)]
Administrator = Annotated[Principal, Depends(authenticate_administrator)]


def organization_for(authenticate: Callable[..., Principal]) -> Callable[..., Organization]:
    """Return a FastAPI dependency that provides the organization whose id is in the path.

    Unknown organizations and organizations that the token may not access get the same response (404).
    """

    def visible_organization(
        request: Request,
        gate: GateDependency,
        runtime: RuntimeDependency,
        principal: Annotated[Principal, Depends(authenticate)],
        organization_id: str,
    ) -> Organization:
        if "\0" in organization_id or not principal.sees(organization_id):
            raise gate.refuse(request, "another organization", HTTPStatus.NOT_FOUND, principal)
        with runtime.database.operator() as connection:
            organization = organizations.find(connection, organization_id)
        if organization is None:
            raise not_found()
        return organization

    return visible_organization


ReadableOrganization = Annotated[Organization, Depends(organization_for(authenticate_reader))]
FollowableOrganization = Annotated[Organization, Depends(organization_for(authenticate_follower))]
SyncableOrganization = Annotated[Organization, Depends(organization_for(authenticate_syncer))]
