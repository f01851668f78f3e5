"""Tokens of an OpenID Connect issuer that the test serves."""

import hmac
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.utils import base64url_encode

from cliniko_pipeline.api.oidc import IssuerUnavailableError, OidcVerifier, TokenRefusedError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.services import client, opened_service
from cliniko_pipeline_tests.support.waiting import wait_until
from cliniko_pipeline_tests.support.webhook_targets import serving

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = rsa.generate_private_key(65537, 2048)


@dataclass
class Issuer:
    """An issuer. `fetches` is the number of requests for its keys."""

    url: str
    keys: list[dict[str, Any]] = field(default_factory=list)
    answer: bytes | None = None
    is_down: bool = False
    fetches: int = 0
    may_answer: threading.Event = field(default_factory=threading.Event)
    is_waiting: threading.Event = field(default_factory=threading.Event)

    def token(self, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", **changes: Any) -> str:
        now = datetime.now(UTC)
        claims = {"iss": self.url, "sub": "user_1", "org_id": "alpha", "iat": now, "exp": now + timedelta(minutes=1)}
        claims = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(claims, key, algorithm, headers=None if kid is None else {"kid": kid})


def public(key: Any, kid: str, algorithm: Any) -> dict[str, Any]:
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not opened.may_answer.is_set():
                opened.is_waiting.set()
                opened.may_answer.wait(4)
            if self.path == "/keys":
                opened.fetches += 1
            document = {"issuer": opened.url, "jwks_uri": f"{opened.url}/keys"}
            found = {"/keys": {"keys": opened.keys}, "/.well-known/openid-configuration": document}
            body = opened.answer if opened.answer is not None else json.dumps(found[self.path]).encode()
            self.send_response(503 if opened.is_down else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with serving(Handler) as server:
        opened = Issuer(f"http://127.0.0.1:{server.server_port}")
        opened.may_answer.set()
        opened.keys = [public(RSA, "rsa", jwt.algorithms.RSAAlgorithm), public(EC, "ec", jwt.algorithms.ECAlgorithm)]
        yield opened


def verifier(issuer: Issuer, clock: Callable[[], float] = lambda: 0.0, **environ: str) -> OidcVerifier:
    return OidcVerifier(load_settings({"API_OIDC_ISSUER": issuer.url} | environ), clock)


def refusal(found: OidcVerifier, text: str) -> str:
    with pytest.raises(TokenRefusedError) as caught:
        found.verify(text)
    return str(caught.value)


def test_token_of_either_key_names_its_user_and_organization(issuer: Issuer) -> None:
    found = verifier(issuer)
    for text in (issuer.token(), issuer.token(EC, "ES256", "ec")):
        identity = found.verify(text)
        assert (identity.subject, identity.organization_id) == ("user_1", "alpha")
    assert issuer.fetches == 1


def test_audience_and_organization_are_read_as_set(issuer: Issuer) -> None:
    found = verifier(issuer, API_OIDC_AUDIENCE="pipeline", API_OIDC_ORGANIZATION_CLAIM="o.id")
    assert found.verify(issuer.token(aud=["pipeline", "other"], o={"id": "beta"})).organization_id == "beta"
    for aud in ("other", None):
        assert refusal(found, issuer.token(aud=aud, o={"id": "beta"})) == "invalid"
    for o in (None, "beta", {"id": 7}, {"id": ""}, {"id": ["beta"]}, {}):
        assert refusal(found, issuer.token(aud="pipeline", o=o)) == "without an organization"
    assert verifier(issuer).verify(issuer.token(aud="other")).organization_id == "alpha"


def test_expired_early_or_incomplete_token_is_refused(issuer: Issuer) -> None:
    found = verifier(issuer)
    now = datetime.now(UTC)
    assert refusal(found, issuer.token(exp=now - timedelta(minutes=1))) == "expired"
    for changes in (
        {"nbf": now + timedelta(minutes=5)},
        {"iat": now + timedelta(minutes=5)},
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"exp": None},
        {"sub": None},
        {"iat": None},
    ):
        assert refusal(found, issuer.token(**changes)) == "invalid", changes
    assert found.verify(issuer.token(exp=now - timedelta(seconds=10))).subject == "user_1"
    for exp in (now + timedelta(hours=25), 10**30):
        assert refusal(found, issuer.token(exp=exp)) == "that is good for too long"


def test_hung_issuer_blocks_one_request_only(issuer: Issuer) -> None:
    """Forged tokens may have unknown key ids, so at most one request may wait for the issuer."""
    now = [0.0]
    found = verifier(issuer, lambda: now[0])
    found.verify(issuer.token())
    now[0] = 61
    issuer.may_answer.clear()
    with ThreadPoolExecutor(1) as threads:
        try:
            waiting = threads.submit(refusal, found, issuer.token(kid="unknown"))
            wait_until(issuer.is_waiting.is_set, "the issuer was never asked")
            with pytest.raises(IssuerUnavailableError):
                found.verify(issuer.token(kid="unknown too"))
            assert found.verify(issuer.token()).subject == "user_1"
            assert not waiting.done()
        finally:
            issuer.may_answer.set()
        assert waiting.result() == "of an unknown key"


def test_forged_or_malformed_token_is_refused(issuer: Issuer) -> None:
    found = verifier(issuer)
    assert refusal(found, issuer.token(OTHER)) == "invalid"
    assert refusal(found, issuer.token(None, "none")) == "invalid"
    assert refusal(found, issuer.token(EC, "ES256", "rsa")) == "invalid"
    pem = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = b".".join([base64url_encode(b'{"alg": "HS256", "kid": "rsa"}'), issuer.token().encode().split(b".")[1]])
    forged = signed + b"." + base64url_encode(hmac.digest(pem, signed, "sha256"))
    for text in (forged.decode(), "", "a", "a.b.c", "é.é.é", "\0", "W10.e30.", "e30.e30.e30.e30"):
        assert refusal(found, text) in {"invalid", "of an unknown key"}, text


def test_keys_are_fetched_after_a_minute_or_an_hour(issuer: Issuer) -> None:
    """An unknown key is fetched again after a minute, and known keys after an hour. Then withdrawn keys are refused."""
    now = [0.0]
    found = verifier(issuer, lambda: now[0])
    found.verify(issuer.token())
    issuer.keys = [public(OTHER, "new", jwt.algorithms.RSAAlgorithm)]
    text = issuer.token(OTHER, kid="new")
    for _ in range(20):
        assert refusal(found, text) == "of an unknown key"
    assert issuer.fetches == 1
    now[0] += 61
    assert found.verify(text).subject == "user_1"
    assert issuer.fetches == 2
    assert refusal(found, issuer.token(kid=None)) == "of an unknown key"
    issuer.keys = [public(EC, "ec", jwt.algorithms.ECAlgorithm)]
    now[0] += 3601
    assert refusal(found, text) == "of an unknown key"


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b"null", b'{"issuer": "https://elsewhere.example"}', b"x" * 2_000_000, b"\xff"]
)
def test_issuer_with_invalid_answers_is_unavailable(issuer: Issuer, answer: bytes) -> None:
    issuer.answer = answer
    with pytest.raises(IssuerUnavailableError):
        verifier(issuer).verify(issuer.token())


def test_jwt_opens_its_organization_if_the_issuer_answers(issuer: Issuer, database: Database, tmp_path: Path) -> None:
    with opened_service(database, tmp_path, API_OIDC_ISSUER=issuer.url) as service:
        with client(service.url, issuer.token()) as caller:
            assert [row["id"] for row in caller.get("/v1/organizations").json()["items"]] == ["alpha"]
            assert caller.get("/v1/organizations/alpha").status_code == 200
            assert caller.get("/v1/organizations/beta").status_code == 404
            assert caller.post("/v1/organizations/alpha/syncs").status_code == 403
        with client(service.url, issuer.token(OTHER)) as caller:
            assert caller.get("/v1/organizations/alpha").status_code == 401
    issuer.is_down = True
    with opened_service(database, tmp_path, API_OIDC_ISSUER=issuer.url) as service:
        with client(service.url, issuer.token()) as caller:
            answer = caller.get("/v1/organizations/alpha")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
