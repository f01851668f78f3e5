"""Tests of the address of a Cliniko account, and of the hosts that may receive an API key."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliniko_pipeline.cliniko.shards import api_url_for, resolve_api_url, shard_of
from cliniko_pipeline.errors import CredentialsFormatError
from cliniko_pipeline.hosts import is_loopback
from cliniko_pipeline_tests.support.properties import examples

KEY = "MS0xLWtleQ-au4"
ALLOWED = ("127.0.0.1:8765", "sandbox.example:8443", "sandbox.example", "localhost", "[::1]:8765")


def resolve(api_url=None, *, region=None, api_key=KEY, allowed_hosts=ALLOWED):
    return resolve_api_url(api_key=api_key, region=region, api_url=api_url, allowed_hosts=allowed_hosts)


def test_shard_follows_the_last_dash_of_the_key():
    assert shard_of("MS0-xLW-tleQ-uk2") == "uk2"
    assert shard_of("MS0xLWtleQ") == "au1"
    assert shard_of("MS0xLWtleQ-AU4") == "au4"
    assert resolve(region=" AU4 ") == "https://api.au4.cliniko.com/v1"
    assert api_url_for("nz17") == "https://api.nz17.cliniko.com/v1"


@pytest.mark.parametrize("ending", ["", "au123", "au4\n", "au٤", "au4.evil.example"])
def test_key_with_a_malformed_shard_is_refused_unseen(ending):
    with pytest.raises(CredentialsFormatError) as caught:
        shard_of(f"SECRET-{ending}")
    assert "SECRET" not in str(caught.value)
    with pytest.raises(CredentialsFormatError):
        api_url_for(ending)


def test_url_overrides_region_and_region_overrides_key():
    assert resolve("https://api.uk1.cliniko.com/v1", region="ca1") == "https://api.uk1.cliniko.com/v1"
    assert resolve(region="ca1") == "https://api.ca1.cliniko.com/v1"
    assert resolve() == "https://api.au4.cliniko.com/v1"
    assert resolve("  ", region="") == "https://api.au4.cliniko.com/v1"


@pytest.mark.parametrize(
    ("given_url", "expected"),
    [
        (" HTTPS://API.AU4.CLINIKO.COM:443/v1/\n", "https://api.au4.cliniko.com/v1"),
        ("http://127.0.0.1:8765/au4/v1/", "http://127.0.0.1:8765/au4/v1"),
        ("http://[::1]:8765", "http://[::1]:8765"),
        ("https://sandbox.example:8443/v1", "https://sandbox.example:8443/v1"),
        ("https://sandbox.example:443/v1", "https://sandbox.example/v1"),
    ],
)
def test_url_of_a_known_host_is_accepted_and_normalized(given_url, expected):
    assert resolve(given_url) == expected


@pytest.mark.parametrize(
    "given_url",
    [
        "https://api.au4.cliniko.com.evil.example/v1",
        "https://api.au4.cliniko.com:8443/v1",
        "https://api.au4.cliniko.com",
        "http://api.au4.cliniko.com/v1",
        "https://api.au4.cliniko.com@evil.example/v1",
        "https://api.au4.cliniko.com/v1?x=1",
        "https://api.au4.cliniko.com/v1#",
        "https://api.au4.clinikо.com/v1",  # noqa: RUF001 -- the last letter before the dot is Cyrillic
        "https://api-au4.cliniko.com/v1",
        "https://api.au4.clin\tiko.com/v1",
        "https://api.%61u4.cliniko.com/v1",
        "ftp://api.au4.cliniko.com/v1",
        "https:///v1",
        "https://127.0.0.1:99999/v1",
        "http://127.0.0.1/v1",
        "http://sandbox.example:8443/v1",
        "http://127.0.0.1:8765/au4/../v1",
        "http://127.0.0.1:8765//evil.example/v1",
    ],
)
def test_any_other_url_is_refused_with_the_rule(given_url):
    with pytest.raises(CredentialsFormatError, match=r"\{shard\}\.cliniko\.com/v1.*CLINIKO_ALLOWED_HOSTS") as caught:
        resolve(given_url)
    assert "\n" not in str(caught.value)
    assert "evil" not in str(caught.value)


def test_allowed_host_without_a_port_means_the_default_port():
    with pytest.raises(CredentialsFormatError):
        resolve("https://only.example:8443/v1", allowed_hosts=["only.example"])


@pytest.mark.parametrize("entry", ["", "https://evil.example", "evil.example/v1", "[evil", "*"])
def test_malformed_allowed_host_allows_nothing(entry):
    with pytest.raises(CredentialsFormatError):
        resolve("https://evil.example/v1", allowed_hosts=[entry])


def test_only_this_machine_is_loopback():
    hosts = ["localhost", "127.0.0.9", "::1", "127.0.0.1.example", "10.0.0.1"]
    assert [host for host in hosts if is_loopback(host)] == ["localhost", "127.0.0.9", "::1"]


@given(st.text(alphabet="abcdehilnopstuvk.:/@?#[]%\\14-_ \t", max_size=40))
@settings(max_examples=examples(60))
def test_accepted_url_is_on_a_known_host(tail):
    for start in ("https://api.au4.cliniko.com", "https://", "http://127.0.0.1:8765"):
        try:
            resolved = resolve(f"{start}{tail}")
        except CredentialsFormatError:
            continue
        assert resolved == "http://127.0.0.1:8765" or resolved.startswith(
            ("https://api.au4.cliniko.com/v1", "http://127.0.0.1:8765/", "https://localhost", "https://sandbox.example")
        )
