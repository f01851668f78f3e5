"""Tests of the parameters of DATABASE_URL, with remedies for parameters of other programs."""

import pytest

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.settings import load_settings

URL = "postgresql://u:s3cret@db.example/clinic"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("pgbouncer=true", "the parameter pgbouncer, which belongs to Prisma: remove it"),
        ("sslmode=require&schema=public", "the parameter schema"),
        ("currentSchema=public", "the parameter currentschema"),
        ("ssl=true", "write sslmode=require instead"),
        ("sslmode=no-verify", "write sslmode=require"),
        ("sslmode=always", "verify-full"),
        ("colour=blue", "do not know (colour)"),
        ("a%20b=blue", "do not know (that cannot be read)"),
        ("host=one,two&port=5432", "has 2 hosts and 1 ports; write a port for each host"),
    ],
)
def test_foreign_parameter_is_named_with_its_remedy(query: str, words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({"DATABASE_URL": f"{URL}?{query}"})
    assert words in str(raised.value)
    assert str(raised.value).startswith("DATABASE_URL has ")
    assert "s3cret" not in str(raised.value)
    assert "blue" not in str(raised.value)


@pytest.mark.parametrize("query", ["sslmode=verify-full&sslrootcert=system", "options=-c%20statement_timeout%3D0"])
def test_parameter_of_postgresql_is_kept(query: str) -> None:
    assert load_settings({"DATABASE_URL": f"{URL}?{query}"}).database_url == f"{URL}?{query}"


def test_host_list_is_read_with_a_port_for_each_host() -> None:
    with pytest.raises(SettingsError, match="lists several hosts before the slash; write a port for each") as raised:
        load_settings({"DATABASE_URL": "postgresql://user:s3cret@one:5432,two:5432/clinics"})
    assert "s3cret" not in str(raised.value)
    assert load_settings({"DATABASE_URL": f"{URL}?host=one,two&port=5432,5433"}).database_url is not None
