"""The service beside itself: tokens' limits, what it says when the database or Dagster is gone, and defects."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres import api_tokens, organizations, sync_runs
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.services import client, token


@pytest.fixture
def environ(database_url: URL, tmp_path: Path) -> dict[str, str]:
    return environment(database_url, tmp_path / "home") | {"API_DAGSTER_URL": f"http://127.0.0.1:{free_port()}"}


@pytest.fixture
def clinics(environ: dict[str, str]) -> Iterator[Clinics]:
    with opened_clinics(environ) as opened:
        opened.open(["alpha", "beta"])
        yield opened


@pytest.fixture
def runtime(environ: dict[str, str], clinics: Clinics) -> Iterator[Runtime]:
    with open_runtime(load_settings(environ)) as opened:
        yield opened


@pytest.fixture
def url(runtime: Runtime) -> Iterator[str]:
    with served(runtime) as address:
        yield address


def test_a_token_may_ask_so_much_in_a_minute_and_others_are_not_held_up(url: str, database: Database) -> None:
    with client(url, token(database, requests_per_minute=5)) as whoever:
        statuses = [whoever.get("/v1/organizations").status_code for _ in range(8)]
        refused = whoever.get("/v1/organizations")
    assert statuses == [200] * 5 + [429] * 3
    assert 0 < int(refused.headers["retry-after"]) <= 60
    with client(url, token(database)) as another:
        assert another.get("/v1/organizations").status_code == 200


def test_without_dagster_everything_can_be_read_and_no_sync_be_requested(
    url: str, database: Database, clinics: Clinics
) -> None:
    with client(url, token(database, "read", "sync")) as whoever:
        assert whoever.get("/readyz").json() == {"database": "ok", "dagster": "unreachable"}
        assert whoever.get("/v1/organizations/alpha/syncs").json()["items"] == []
        answer = whoever.post("/v1/organizations/alpha/syncs")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        _note_sync(clinics, 1)
        (listed,) = whoever.get("/v1/organizations/alpha/syncs").json()["items"]
        assert whoever.get(f"/v1/syncs/{listed['id']}").json() == listed
        assert (listed["status"], listed["tables"][0]["counts"]) == ("succeeded", {"rows": 3})
    with client(url, token(database, organizations=["beta"])) as whoever:
        # Whether it is another's or there is none cannot be told apart.
        assert whoever.get(f"/v1/syncs/{listed['id']}").status_code == 503


def _note_sync(clinics: Clinics, number: int) -> None:
    with clinics.database.organization("alpha") as connection:
        connection.execute(
            sa.text(
                "insert into cliniko.sync_runs"
                " (organization_id, run_id, planned, status, started_at, finished_at, assets)"
                " values ('alpha', :run_id, array['cliniko/patients', 'cliniko/appointments', 'contact_mapping',"
                " 'active_patients'], 'succeeded', now() - make_interval(mins => :ago), now(), :assets)"
            ),
            {
                "run_id": f"00000000-0000-4000-8000-{number:012d}",
                # Two at a time began in the same moment.
                "ago": number // 2,
                "assets": '{"active_patients": {"status": "succeeded", "rows": 3}}',
            },
        )


def test_syncs_come_in_pages_the_latest_first(url: str, database: Database, clinics: Clinics) -> None:
    for number in range(7):
        _note_sync(clinics, number)
    found: list[str] = []
    cursor: dict[str, str] = {}
    with client(url, token(database, "sync")) as whoever:
        for _ in range(4):
            page = whoever.get("/v1/organizations/alpha/syncs", params={"limit": 2, **cursor}).json()
            assert len(page["items"]) <= 2
            found += [each["id"][-1] for each in page["items"]]
            cursor = {"cursor": page["next_cursor"]}
        assert page["next_cursor"] is None
        for wrong in ("", "x", "MjAyNg", "a" * 100):
            refused = whoever.get("/v1/organizations/alpha/syncs", params={"cursor": wrong})
            assert refused.status_code == 422
    assert "".join(found) == "1032546"


def test_a_disabled_organization_is_read_and_not_synced(url: str, database: Database, clinics: Clinics) -> None:
    with database.operator() as connection:
        connection.exec_driver_sql(
            "update public.api_credentials set is_active = false where organization_id = 'alpha'"
        )
    with client(url, token(database, "read", "sync")) as whoever:
        assert whoever.get("/v1/organizations/alpha").json()["is_active"] is False
        assert whoever.post("/v1/organizations/alpha/syncs").status_code == 409


def test_people_without_a_contact_are_listed_by_why_in_pages(url: str, database: Database) -> None:
    with database.organization("alpha") as connection:
        connection.exec_driver_sql(
            "insert into cliniko.contact_mapping (organization_id, patient_id, status, candidate_count)"
            " select 'alpha', n::text, case when n %% 3 = 0 then 'ambiguous' else 'unmatched' end,"
            " case when n %% 3 = 0 then 2 end from generate_series(1, 25) as n"
        )
    address = "/v1/organizations/alpha/people-without-contact"
    found, cursor = [], {}
    with client(url, token(database, organizations=["alpha"])) as whoever:
        while True:
            page = whoever.get(address, params={"limit": 4, **cursor}).json()
            found += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        ambiguous = whoever.get(address, params={"status": "ambiguous"}).json()["items"]
    assert [int(each["patient_id"]) for each in found] == [n for n in range(1, 26) if n % 3]
    assert [(int(each["patient_id"]), each["candidate_count"]) for each in ambiguous] == [
        (n, 2) for n in range(3, 26, 3)
    ]
    with client(url, token(database, organizations=["beta"])) as whoever:
        assert whoever.get(address.replace("alpha", "beta")).json()["items"] == []


def test_a_database_that_is_gone_is_said(environ: dict[str, str], clinics: Clinics) -> None:
    text = token(clinics.database)
    gone = environ["DATABASE_URL"].rpartition("/")[0] + "/gone"
    settings = load_settings(environ | {"DATABASE_URL": gone})
    with open_runtime(settings) as runtime, served(runtime) as url, client(url, text) as whoever:
        ready, answer = whoever.get("/readyz"), whoever.get("/v1/organizations")
        assert whoever.get("/healthz").status_code == 200
    assert (ready.status_code, ready.json()["database"]) == (503, "unusable")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_defect_is_answered_and_logged_without_its_text(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = token(database)

    def broken(*_: object) -> None:
        # In two parts: a traceback shows this line.
        raise ZeroDivisionError("Ja" + "ne Doe, 555-1234")

    monkeypatch.setattr("cliniko_pipeline.api.organizations.scheduling.schedulings", broken)
    with caplog.at_level(logging.DEBUG), client(url, text) as whoever:
        answer = whoever.get("/v1/organizations")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "Jane" not in answer.text + caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_answers_are_kept_by_no_cache_and_taken_for_nothing_else(url: str, database: Database) -> None:
    with client(url, token(database)) as whoever:
        for address in ("/v1/organizations", "/v1/nothing", "/healthz"):
            headers = whoever.get(address).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers


def test_a_token_is_noted_as_used_and_never_stored(url: str, database: Database) -> None:
    text = token(database)
    with client(url, text) as whoever:
        whoever.get("/v1/organizations")
    with database.operator() as connection:
        (found,) = api_tokens.tokens(connection)
        stored = connection.exec_driver_sql("select t::text from cliniko.api_tokens as t").scalar_one()
    assert found.last_used_at is not None
    assert text not in stored
    assert text.rpartition("_")[2] not in stored
    assert text not in repr(found)


@pytest.mark.parametrize("header", ["", "Bearer", "Basic YTpi", "bearer x", "Bearer ~", "Bearer " + "a" * 5000])
def test_a_malformed_authorization_is_a_401(url: str, header: str) -> None:
    answer = httpx.get(f"{url}/v1/organizations", headers={"Authorization": header}, trust_env=False)
    assert answer.status_code == 401


def test_a_body_without_an_end_is_not_gathered(url: str, database: Database) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(4096):
            sent += 16 * 1024
            yield b" " * 16 * 1024

    address = "/v1/organizations/alpha/syncs"
    for text in (None, token(database, "sync")):
        sent = 0
        with client(url, text) as whoever, suppress(httpx.WriteError, httpx.ReadError):
            answer = whoever.post(address, content=endless(), headers={"Content-Type": "application/json"})
            assert answer.status_code == 413
        assert sent < 32 * 1024 * 1024, "the rest is not read: what was sent stands in the sockets' buffers"
    with client(url, token(database, "sync")) as whoever:
        assert whoever.post(address, json={"full": "x" * 70_000}).status_code == 413
        assert whoever.post(address, json={"full": "x" * 60_000}).status_code == 422


def test_what_is_noted_of_a_refusal_is_short_and_nothing_that_a_terminal_obeys(url: str, database: Database) -> None:
    with client(url, token(database, organizations=["alpha"])) as whoever:
        whoever.get("/v1/organizations/%1b%5D0;title%07%00" + "a" * 5000)
    httpx.get(f"{url}/v1/organizations", headers={"X-Forwarded-For": "a" * 5000}, trust_env=False)
    with database.operator() as connection:
        noted = api_tokens.refusals(connection, 10)
    assert len(noted) == 2
    for each in noted:
        for text in (each.refusal.organization_id, each.refusal.address):
            assert text.isprintable()
            assert len(text) <= 100


def test_a_token_of_a_removed_organization_does_not_open_another_of_the_same_id(
    url: str, database: Database, clinics: Clinics
) -> None:
    with client(url, token(database, organizations=["alpha", "beta"])) as whoever:
        assert whoever.get("/v1/organizations/alpha").status_code == 200
        organizations.remove(database, "alpha")
        with database.operator() as connection:
            organizations.save(connection, "alpha", "Another", {"encrypted_data": "x"}, validated=False)
        assert whoever.get("/v1/organizations/alpha").status_code == 404
        assert whoever.get("/v1/organizations/beta").status_code == 200


def test_who_follows_a_sync_is_told_of_its_end_though_the_database_was_gone_meanwhile(
    url: str, runtime: Runtime, server_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    database, run_id = runtime.database, str(uuid4())
    planned = ["cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"]
    with database.organization("alpha") as connection:
        sync_runs.started(connection, run_id=run_id, asset=planned[0], planned=planned, is_full=False)
    server = sa.create_engine(server_url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    name = database.url.database
    end_all = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    with client(url, token(database)) as whoever, whoever.stream("GET", f"/v1/syncs/{run_id}/events") as answer:
        told = (line for line in answer.iter_lines() if line.startswith("event:"))
        assert next(told) == "event: sync"
        with server.connect() as administrator:
            administrator.exec_driver_sql(f'alter database "{name}" allow_connections false')
            administrator.exec_driver_sql(end_all)
            # Longer than from one look to the next.
            time.sleep(2.5)
            administrator.exec_driver_sql(f'alter database "{name}" allow_connections true')
        with database.organization("alpha") as connection:
            sync_runs.finished(
                connection, run_id=run_id, asset=planned[0], counts={}, requests=1, seconds_waited=0.0, error="broken"
            )
        assert next(told) == "event: ended"
    server.dispose()
    assert "defect" not in caplog.text
