"""JSON Web Tokens of an OpenID Connect issuer, such as the login service of the application.

The issuer's keys are fetched for the first token, every hour, and when a token has an unknown key. Two fetches are at
least a minute apart. Otherwise forged tokens could flood the issuer with requests.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx
import jwt
from jwt.types import Options

from cliniko_pipeline.errors import ClinikoPipelineError, TransientError
from cliniko_pipeline.settings import Settings

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Only asymmetric algorithms: with a secret shared by issuer and verifiers, every verifier could issue tokens."""

LEEWAY_SECONDS = 30
"""Tolerated difference between the clocks of the issuer and of this machine."""

FETCH_INTERVAL_SECONDS = 60
KEY_LIFETIME_SECONDS = 3600
FETCH_TIMEOUT_SECONDS = 5
MAX_LOCK_WAIT_SECONDS = 1
"""Longest time to wait for keys that another request is fetching."""

MAX_LIFETIME_SECONDS = 24 * 3600
"""Longest time from `iat` to `exp`. Longer-lived JWTs are refused, because a JWT cannot be revoked here."""

MAX_ANSWER_BYTES = 1024 * 1024


class IssuerUnavailableError(TransientError):
    """The issuer's keys cannot be fetched."""


class TokenRefusedError(ClinikoPipelineError):
    """The token is invalid. The message says why, and contains no part of the token."""


@dataclass(frozen=True)
class Identity:
    """The owner of a token. `subject` is the issuer's id of the user."""

    subject: str
    organization_id: str


class OidcVerifier:
    """Verifier for tokens of the issuer in the settings. Thread-safe."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        if settings.oidc_issuer is None:
            raise ValueError("there is no issuer in the settings")
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._organization_claim = settings.oidc_organization_claim
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._attempted_at: float | None = None

    def verify(self, text: str) -> Identity:
        """Return the owner of the token. Raise TokenRefusedError, IssuerUnavailableError."""
        try:
            header = jwt.get_unverified_header(text)
            key = self._key(str(header.get("kid") or ""))
            options: Options = {"require": ["exp", "iat", "sub"], "verify_aud": self._audience is not None}
            claims = jwt.decode(
                text,
                key,
                algorithms=list(ALGORITHMS),
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options=options,
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefusedError("expired") from None
        except jwt.InvalidTokenError:
            raise TokenRefusedError("invalid") from None
        if claims["exp"] - claims["iat"] > MAX_LIFETIME_SECONDS:
            raise TokenRefusedError("that is good for too long")
        organization_id = _claim(claims, self._organization_claim)
        if organization_id is None:
            raise TokenRefusedError("without an organization")
        return Identity(str(claims["sub"]), organization_id)

    def _key(self, key_id: str) -> jwt.PyJWK:
        if not self._is_outdated() and key_id in (keys := self._keys):
            return keys[key_id]  # without the lock, because another request may hold it during a fetch
        # Only one request at a time fetches keys. Otherwise forged tokens could make all threads wait for the issuer.
        if not self._lock.acquire(timeout=MAX_LOCK_WAIT_SECONDS if self._is_outdated() else 0):
            raise _unavailable()
        try:
            now = self._clock()
            may_fetch = self._attempted_at is None or now - self._attempted_at > FETCH_INTERVAL_SECONDS
            if (self._is_outdated() or key_id not in self._keys) and may_fetch:
                self._attempted_at = now
                self._keys = self._fetch()
                self._fetched_at = now
            elif self._is_outdated():
                raise _unavailable()
            if key_id not in self._keys:
                raise TokenRefusedError("of an unknown key")
            return self._keys[key_id]
        finally:
            self._lock.release()

    def _is_outdated(self) -> bool:
        fetched_at = self._fetched_at
        return fetched_at is None or self._clock() - fetched_at > KEY_LIFETIME_SECONDS

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        with httpx.Client(timeout=FETCH_TIMEOUT_SECONDS, follow_redirects=False) as client:
            try:
                configuration = _fetch_object(client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
                if configuration.get("issuer") != self._issuer:
                    raise _unavailable()
                keys = _fetch_object(client, str(configuration["jwks_uri"])).get("keys")
                return {key.key_id: key for key in jwt.PyJWKSet(cast("list[dict[str, Any]]", keys)).keys if key.key_id}
            except (httpx.HTTPError, httpx.InvalidURL, jwt.PyJWTError, KeyError, ValueError, TypeError):
                raise _unavailable() from None


def _unavailable() -> IssuerUnavailableError:
    return IssuerUnavailableError(
        "The keys of the token's issuer cannot be fetched: try again later. Operators: check API_OIDC_ISSUER."
    )


def _fetch_object(client: httpx.Client, url: str) -> Mapping[str, Any]:
    deadline = time.monotonic() + FETCH_TIMEOUT_SECONDS
    with client.stream("GET", url) as response:
        response.raise_for_status()
        body = b""
        for part in response.iter_bytes():
            body += part
            if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                raise ValueError("too large, or too slow")
    found: object = httpx.Response(200, content=body).json()
    if not isinstance(found, dict):
        raise TypeError("not an object")
    return cast("dict[str, Any]", found)


def _claim(claims: Mapping[str, Any], path: str) -> str | None:
    value: Any = claims
    for name in path.split("."):
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) and value else None
