"""JSON Web Tokens of an OpenID Connect issuer, such as the one the application's own users log in at.

The issuer's keys are fetched when a token first needs them, and again when one names a key that is not known: once a
minute at most, so that nobody can have the issuer asked all the time.
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
"""Those with a public key: whoever can check such a token cannot make one."""

LEEWAY_SECONDS = 30
"""By so much the issuer's clock may differ from ours."""

SECONDS_BETWEEN_FETCHES = 60
KEYS_ARE_GOOD_FOR_SECONDS = 3600
FETCH_TIMEOUT_SECONDS = 5
LONGEST_WAIT_SECONDS = 1
"""For keys that another request is fetching."""
MAX_LIFETIME_SECONDS = 24 * 3600
"""From `iat` to `exp`: a JWT cannot be revoked here."""
LARGEST_ANSWER = 1024 * 1024  # bytes


class IssuerUnavailableError(TransientError):
    """The issuer's keys cannot be had at present."""


class TokenRefusedError(ClinikoPipelineError):
    """The token is not one to be trusted; the message says why, without anything of it."""


@dataclass(frozen=True)
class Identity:
    """Who a token is for: the issuer's id of the user, and the one organization."""

    subject: str
    organization_id: str


class OidcVerifier:
    """Verifies the tokens of the one issuer in the settings. Thread-safe."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        if settings.oidc_issuer is None:
            raise ValueError("there is no issuer in the settings")
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._claim = settings.oidc_organization_claim
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None

    def verify(self, text: str) -> Identity:
        """Raises TokenRefusedError, IssuerUnavailableError."""
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
        organization_id = _claim(claims, self._claim)
        if organization_id is None:
            raise TokenRefusedError("without an organization")
        return Identity(str(claims["sub"]), organization_id)

    def _key(self, key_id: str) -> jwt.PyJWK:
        fetched_at, known = self._fetched_at, self._keys.get(key_id)
        if known is not None and fetched_at is not None and self._clock() - fetched_at <= KEYS_ARE_GOOD_FOR_SECONDS:
            return known  # whoever waits for other keys holds nobody up
        is_old = fetched_at is None or self._clock() - fetched_at > KEYS_ARE_GOOD_FOR_SECONDS
        # Anybody can name an unknown key: while one request asks the issuer, which may hang, the others keep no thread.
        if not self._lock.acquire(timeout=LONGEST_WAIT_SECONDS if is_old else 0):
            raise _unavailable()
        try:
            now = self._clock()
            is_old = self._fetched_at is None or now - self._fetched_at > KEYS_ARE_GOOD_FOR_SECONDS
            may_try = self._tried_at is None or now - self._tried_at > SECONDS_BETWEEN_FETCHES
            if (is_old or key_id not in self._keys) and may_try:
                self._tried_at = now
                self._keys = self._fetched()
                self._fetched_at = now
            elif is_old:
                raise _unavailable()
            if key_id not in self._keys:
                raise TokenRefusedError("of an unknown key")
            return self._keys[key_id]
        finally:
            self._lock.release()

    def _fetched(self) -> dict[str, jwt.PyJWK]:
        with httpx.Client(timeout=FETCH_TIMEOUT_SECONDS, follow_redirects=False) as client:
            try:
                found = _object(client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
                if found.get("issuer") != self._issuer:
                    raise _unavailable()
                keys = _object(client, str(found["jwks_uri"])).get("keys")
                return {key.key_id: key for key in jwt.PyJWKSet(cast("list[dict[str, Any]]", keys)).keys if key.key_id}
            except (httpx.HTTPError, httpx.InvalidURL, jwt.PyJWTError, KeyError, ValueError, TypeError):
                raise _unavailable() from None


def _unavailable() -> IssuerUnavailableError:
    return IssuerUnavailableError(
        "The issuer of the token cannot be asked for its keys: try again later; the operator checks API_OIDC_ISSUER."
    )


def _object(client: httpx.Client, url: str) -> Mapping[str, Any]:
    until = time.monotonic() + FETCH_TIMEOUT_SECONDS
    with client.stream("GET", url) as response:
        response.raise_for_status()
        body = b""
        for part in response.iter_bytes():
            body += part
            if len(body) > LARGEST_ANSWER or time.monotonic() > until:
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
