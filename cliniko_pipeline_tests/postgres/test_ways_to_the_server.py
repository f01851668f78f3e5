"""Tests of servers that DATABASE_URL does not reach. The errors have libpq's reason in words and a helpful remedy."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.instance.home import STORAGE_SCHEMA
from cliniko_pipeline.orchestration.pooled_storage import storage_url
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.server.driver_errors import database_error_behind, translated
from cliniko_pipeline_tests.support.certificates import self_signed
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.poolers import pooler
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused
from cliniko_pipeline_tests.support.servers import LOCAL, Server, chosen_programs, debian_programs, running_server

HOST = "db.example.org"
NO_ROUTE = "ff0e::1"
"""A multicast address. On every machine, a connection to it fails like a connection without IPv6."""

NEVER_THE_CAUSE = ("does not exist.", "dagster.yaml", "pipeline migrate", "the connection broke")


@dataclass(frozen=True)
class Way:
    """A way to the server that fails.

    Attributes:
        rules: rules of pg_hba.conf for connections over TCP.
        parameters: parameters of DATABASE_URL.
        words: words of the message.
        tls: whether the server offers TLS.
    """

    words: tuple[str, ...]
    rules: tuple[str, ...] = ("host all all 127.0.0.1/32 trust",)
    parameters: dict[str, str] = field(default_factory=dict[str, str])
    tls: bool = True


WAYS = {
    "no root certificate": Way(
        ("there is no root certificate", "sslrootcert=FILE"), parameters={"sslmode": "verify-full"}
    ),
    "root certificate missing": Way(
        ("there is no root certificate", "sslrootcert=FILE"),
        parameters={"sslmode": "verify-ca", "sslrootcert": "/nowhere/root.crt"},
    ),
    "not in the system's list": Way(
        ("no authority in sslrootcert signed", "sslrootcert=FILE", "sslmode=require"),
        parameters={"sslmode": "verify-full", "sslrootcert": "system", "host": HOST, "hostaddr": "127.0.0.1"},
    ),
    "another authority": Way(
        ("no authority in sslrootcert signed", "sslrootcert=FILE", "sslmode=require"),
        parameters={"sslmode": "verify-ca", "sslrootcert": "OTHER"},
    ),
    "another host name": Way(
        ("is for another host name", "sslmode=verify-ca"), parameters={"sslmode": "verify-full", "sslrootcert": "OWN"}
    ),
    "only encrypted": Way(
        ("from this machine without encryption", "sslmode=require"),
        ("hostssl all all 127.0.0.1/32 trust",),
        {"sslmode": "disable"},
    ),
    "only unencrypted": Way(
        ("no rule that lets this user in from this machine.", "pg_hba.conf"),
        ("hostnossl all all 127.0.0.1/32 trust",),
        {"sslmode": "require"},
    ),
    "nobody is let in": Way(("no rule that lets this user in from this machine", "pg_hba.conf"), ()),
    "rejected": Way(
        ("no rule that lets this user in from this machine", "pg_hba.conf"), ("host all all 127.0.0.1/32 reject",)
    ),
    "no TLS": Way(
        ("does not offer encrypted connections", "sslmode=prefer"), parameters={"sslmode": "require"}, tls=False
    ),
    "nothing listens": Way(("no server listens at that host and port",), parameters={"host": "::1", "port": "FREE"}),
    "only IPv6": Way(
        ("has only an IPv6 address", "IPv4 address"), parameters={"host": HOST, "hostaddr": NO_ROUTE, "port": "5432"}
    ),
    "IPv6 address": Way(("has only an IPv6 address", "IPv4 address"), parameters={"host": NO_ROUTE}),
    "IPv6 and IPv4": Way(
        ("no server listens at that host and port",),
        parameters={"host": f"{HOST},{HOST}", "hostaddr": f"{NO_ROUTE},127.0.0.1", "port": "FREE,FREE"},
    ),
    "unknown name": Way(("the host name is unknown",), parameters={"host": "db.example.invalid"}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = chosen_programs() or debian_programs()
    if programs is None:
        pytest.skip("TLS needs Debian's PostgreSQL server: make debian-postgresql")
    with running_server(programs) as server:
        for name in ("own", "other"):
            certificate, key = self_signed(HOST)
            server.write(f"{name}.crt", certificate)
            server.write(f"{name}.key", key)
        yield server


def prepared(server: Server, way: Way) -> URL:
    """Set up the server. Return the URL of the way."""
    server.write("pg_hba.conf", "\n".join((LOCAL, *way.rules)))
    tls = f"ssl = {'on' if way.tls else 'off'}\nssl_cert_file = 'own.crt'\nssl_key_file = 'own.key'"
    server.write("postgresql.auto.conf", tls)
    server.control("restart", "--mode=immediate")
    values = {
        "OWN": f"{server.data}/own.crt",
        "OTHER": f"{server.data}/other.crt",
        "FREE": (port := str(free_port())),
        "FREE,FREE": f"{port},{port}",
    }
    return server.tcp_url.update_query_dict({n: values.get(v, v) for n, v in way.parameters.items()})


def psycopg_error(url: URL) -> str:
    database = Database(url)
    try:
        with pytest.raises(ClinikoPipelineError) as raised, database.operator():
            pass
    finally:
        database.close()
    return str(raised.value)


def psycopg2_error(url: URL) -> str:
    """Return the error of opening Dagster's storage, which has its own driver."""
    engine = sa.create_engine(storage_url(url, STORAGE_SCHEMA))
    with pytest.raises(Exception, match=r".") as raised:
        engine.connect()
    return str(database_error_behind(raised.value, "LOCATION"))


def assert_said(url: URL, *words: str) -> None:
    for said in (psycopg_error(url), psycopg2_error(url)):
        for word in words:
            assert word in said, said
        for word in NEVER_THE_CAUSE:
            assert word not in said


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_cause_and_remedy_are_said_by_both_drivers(server: Server, way: Way) -> None:
    assert_said(prepared(server, way), *way.words)


def test_name_with_an_ipv6_address_only_is_told_from_others() -> None:
    """The messages are those of libpq for a name that it has looked up."""
    unreachable = 'connection to server at "db.example.org" (2001:db8::5), port 5432 failed: Network is unreachable\n'
    refused = 'connection to server at "db.example.org" (192.0.2.5), port 5432 failed: Connection refused\n'
    for said, words in ((unreachable, "only an IPv6 address"), (unreachable + refused, "no server listens")):
        assert words in str(translated(psycopg.OperationalError(said), "LOCATION"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_cause_and_remedy_are_said_by_commands(server: Server, way: Way, tmp_path: Path) -> None:
    command = CommandLine(environment(prepared(server, way), tmp_path), tmp_path)
    assert_refused(command("migrate"), *way.words)
    examined = command("doctor")
    assert examined.returncode == 1
    for word in way.words:
        assert word in examined.stdout
    for said in (command("migrate").stderr, examined.stdout):
        assert not any(word in said for word in NEVER_THE_CAUSE)


REMEDIES = (
    {"sslmode": "require"},
    {"sslmode": "verify-ca", "sslrootcert": "OWN"},
    {"sslmode": "verify-full", "sslrootcert": "OWN", "host": HOST, "hostaddr": "127.0.0.1"},
)


@pytest.mark.parametrize("parameters", REMEDIES, ids=lambda each: each["sslmode"])
def test_remedies_for_certificates_help(server: Server, parameters: dict[str, str]) -> None:
    """The remedies help with both drivers. The storage's error is only about its missing schema."""
    url = prepared(server, Way((), ("hostssl all all 127.0.0.1/32 trust",), parameters))
    database = Database(url)
    with database.operator() as connection:
        is_encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
        assert connection.exec_driver_sql(is_encrypted).scalar_one()
    database.close()
    assert "The schema dagster cannot be used" in psycopg2_error(url)


@pytest.mark.slow
def test_pooler_that_refuses_options_is_named(database_url: URL, tmp_path: Path) -> None:
    """The pipeline itself sends no `options`."""
    with pooler(database_url) as url:
        command = CommandLine(environment(url, tmp_path), tmp_path)
        assert command("migrate").returncode == 0
        assert command("organizations", "list").returncode == 0
        with_options = url.update_query_dict({"options": "-c statement_timeout=60000"})
        words = ("a pooler refuses the start-up parameter `options`", "ignore_startup_parameters = options")
        assert_said(with_options, *words)
        command = CommandLine(environment(with_options, tmp_path), tmp_path)
        assert_refused(command("migrate"), *words)
        assert words[0] in command("doctor").stdout
