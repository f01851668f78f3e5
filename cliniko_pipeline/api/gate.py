"""Who asks, and what they may: bearer tokens, their scopes and organizations, and what is noted of who was refused."""

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
"""Followed syncs of one token at a time: each asks Dagster once a second."""

MAX_REFUSALS_A_MINUTE = 100
"""Different ones that a process notes; equal ones are counted in one row."""

OTHERS = Refusal("others", "", "", "", "", "")

_LOG = logging.getLogger(__name__)
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token of `cliniko-pipeline tokens create`, or a JWT of the issuer that the operator has set.",
)


@dataclass(frozen=True)
class Principal:
    """Whoever asks.

    Attributes:
        id: the token's, or the issuer's of the user.
        organizations: None: all of them.
        requests_per_minute: None: as the settings say.
    """

    id: str
    scopes: frozenset[str]
    organizations: frozenset[str] | None
    requests_per_minute: int | None = None

    def may(self, scope: str) -> bool:
        """Whether the scopes include this one."""
        return scope in self.scopes or ADMIN in self.scopes

    def sees(self, organization_id: str) -> bool:
        """Whether the organization's things are open to it."""
        return self.organizations is None or organization_id in self.organizations


class Gate:
    """Lets in who may come in, and notes who may not. One for the process; thread-safe."""

    def __init__(self, runtime: Runtime, clock: Callable[[], float] = time.monotonic) -> None:
        self._runtime = runtime
        self._verifier = None if runtime.settings.oidc_issuer is None else OidcVerifier(runtime.settings, clock)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._limiting = threading.Lock()
        self._clock = clock
        self._minute = 0
        self._noted: set[Refusal] = set()
        self._followers: Counter[str] = Counter()

    @contextmanager
    def following(self, principal: Principal) -> Generator[None]:
        """Count an answer that goes on for long. Raises ProblemError (429) where the token has enough of them."""
        with self._limiting:
            if self._followers[principal.id] >= MAX_FOLLOWERS:
                raise ProblemError(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    f"This token follows {MAX_FOLLOWERS} syncs already: end one of these requests first.",
                    {"Retry-After": "60"},
                )
            self._followers[principal.id] += 1
        try:
            yield
        finally:
            with self._limiting:
                self._followers[principal.id] -= 1
                self._followers += Counter()  # drops those at zero

    def principal(self, request: Request, credentials: HTTPAuthorizationCredentials | None) -> Principal:
        """Whoever asks. Raises ProblemError (401, 429)."""
        if credentials is None:
            raise self.refused(request, "no token", HTTPStatus.UNAUTHORIZED)
        principal = self._known(request, credentials.credentials)
        self._require_within_limit(principal)
        return principal

    def require_still_known(self, request: Request) -> None:
        """For an answer that goes on for long: raises ProblemError (401) where the token is no longer good."""
        self._known(request, request.headers.get("Authorization", "").partition(" ")[2])

    def refused(
        self, request: Request, reason: str, status: HTTPStatus, principal: Principal | None = None, token_id: str = ""
    ) -> ProblemError:
        """The problem that the request is answered with, once it is noted that it was refused, and why."""
        route = request.scope.get("route")
        wanted = "" if principal is None else str(request.path_params.get("organization_id", ""))
        refusal = Refusal(
            reason=reason,
            token_id=_plain(token_id if principal is None else principal.id),
            # Behind a proxy of API_TRUSTED_PROXIES it is what that says.
            address=_plain(request.client.host if request.client else ""),
            method=request.method,
            # As the route is written: what stands in its place was anybody's choice.
            route=getattr(route, "path", "")[:200],
            organization_id="",
        )
        try:
            with self._runtime.database.operator() as connection:
                # The name of no organization is a text of the caller's choice: none is kept.
                if _plain(wanted) == wanted and organizations.find(connection, wanted) is not None:
                    refusal = replace(refusal, organization_id=wanted)
                api_tokens.note_refusal(connection, self._bounded(refusal))
        except ClinikoPipelineError as error:
            # Who may not come in is not let in since that cannot be noted.
            _LOG.warning("A refused request could not be noted: %s", error)
        return ProblemError(status, _DETAILS[status], _HEADERS.get(status))

    def _known(self, request: Request, text: str) -> Principal:
        if self._verifier is not None and text.count(".") == 2:
            return self._identified(request, self._verifier, text)
        with self._runtime.database.operator() as connection:
            token = api_tokens.find(connection, text)
        if token is None:
            raise self.refused(request, "unknown token", HTTPStatus.UNAUTHORIZED)
        if token.revoked_at is not None:
            raise self.refused(request, "revoked token", HTTPStatus.UNAUTHORIZED, token_id=token.id)
        if token.is_expired:
            raise self.refused(request, "expired token", HTTPStatus.UNAUTHORIZED, token_id=token.id)
        return Principal(token.id, token.scopes, token.organizations, token.requests_per_minute)

    def _identified(self, request: Request, verifier: OidcVerifier, text: str) -> Principal:
        try:
            identity = verifier.verify(text)
        except TokenRefusedError as error:
            raise self.refused(request, f"JWT {error}", HTTPStatus.UNAUTHORIZED) from None
        scopes = self._runtime.settings.oidc_scopes
        return Principal(f"jwt:{identity.subject}", scopes, frozenset({identity.organization_id}))

    def _require_within_limit(self, principal: Principal) -> None:
        limit = RateLimitItemPerMinute(principal.requests_per_minute or self._runtime.settings.api_requests_per_minute)
        with self._limiting:
            is_within = self._limiter.hit(limit, principal.id)
        if not is_within:
            # Not noted: it may be one of very many.
            raise ProblemError(status := HTTPStatus.TOO_MANY_REQUESTS, _DETAILS[status], _HEADERS[status])

    def _bounded(self, refusal: Refusal) -> Refusal:
        """Return the refusal, or where this minute has enough different ones, what stands for all others."""
        with self._limiting:
            minute = int(self._clock() // 60)
            if minute != self._minute:
                self._minute, self._noted = minute, set()
            if refusal not in self._noted and len(self._noted) >= MAX_REFUSALS_A_MINUTE:
                return OTHERS
            self._noted.add(refusal)
            return refusal


_DETAILS = {
    HTTPStatus.UNAUTHORIZED: "Send a valid token as `Authorization: Bearer TOKEN`.",
    HTTPStatus.FORBIDDEN: "The token's scopes do not include this: ask the operator for another token.",
    HTTPStatus.NOT_FOUND: str(not_found()),
    HTTPStatus.TOO_MANY_REQUESTS: "This token has sent as many requests as it may in a minute: wait, then go on.",
}
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": "60"},
}


def _plain(text: str) -> str:
    """As it may be kept and shown in a terminal, whoever chose it."""
    return "".join(each if each.isprintable() else "?" for each in text[:100])


def runtime_of(request: Request) -> Runtime:
    """The runtime of the application."""
    return request.app.state.runtime


def gate_of(request: Request) -> Gate:
    """The gate of the application."""
    return request.app.state.gate


RuntimeDependency = Annotated[Runtime, Depends(runtime_of)]
GateDependency = Annotated[Gate, Depends(gate_of)]


def requires(*scopes: str) -> Callable[..., Principal]:
    """The dependency of a route that needs one of the scopes; what it gives is who asks."""

    def principal(
        request: Request,
        gate: GateDependency,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Principal:
        found = gate.principal(request, credentials)
        if not any(map(found.may, scopes)):
            raise gate.refused(request, f"without the scope {' or '.join(scopes)}", HTTPStatus.FORBIDDEN, found)
        return found

    return principal


Reader = Annotated[Principal, Depends(requires(READ))]
Syncer = Annotated[Principal, Depends(requires(SYNC))]
Follower = Annotated[Principal, Depends(requires(READ, SYNC))]
"""Who may request a sync may see what becomes of it, and no patient."""
Administrator = Annotated[Principal, Depends(requires(ADMIN))]


def visible_organization(
    request: Request, gate: Gate, runtime: Runtime, principal: Principal, organization_id: str
) -> Organization:
    """The organization. Raises ProblemError (404) where there is none, or where it is not the token's: both alike."""
    if "\0" in organization_id or not principal.sees(organization_id):
        raise gate.refused(request, "another organization", HTTPStatus.NOT_FOUND, principal)
    with runtime.database.operator() as connection:
        found = organizations.find(connection, organization_id)
    if found is None:
        raise not_found()
    return found


def organization_to_read(
    request: Request, gate: GateDependency, runtime: RuntimeDependency, principal: Reader, organization_id: str
) -> Organization:
    """The organization in the path, for whoever may read it."""
    return visible_organization(request, gate, runtime, principal, organization_id)


def organization_to_follow(
    request: Request, gate: GateDependency, runtime: RuntimeDependency, principal: Follower, organization_id: str
) -> Organization:
    """The organization in the path, for whoever may follow its syncs."""
    return visible_organization(request, gate, runtime, principal, organization_id)


def organization_to_sync(
    request: Request, gate: GateDependency, runtime: RuntimeDependency, principal: Syncer, organization_id: str
) -> Organization:
    """The organization in the path, for whoever may sync it."""
    return visible_organization(request, gate, runtime, principal, organization_id)


ReadableOrganization = Annotated[Organization, Depends(organization_to_read)]
FollowableOrganization = Annotated[Organization, Depends(organization_to_follow)]
SyncableOrganization = Annotated[Organization, Depends(organization_to_sync)]
