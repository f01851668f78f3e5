"""Tests of the routes of syncs while Dagster is unreachable. e2e/test_service.py uses a real Dagster."""

from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.api.gate import Gate
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import sync_runs
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.services import ServiceAlone, add_organization, every_page, opened_service
from cliniko_pipeline_tests.support.waiting import wait_until

PLANNED = ["cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"]


def note_sync(database: Database, organization_id: str, number: int) -> None:
    """Store a successful sync. Numbers 2n and 2n + 1 start at the same time."""
    with database.organization(organization_id) as connection:
        statement = """
            insert into cliniko.sync_runs (organization_id, run_id, planned, status, started_at, finished_at, assets)
            values (
                :organization_id, '00000000-0000-4000-8000-' || lpad(:number, 12, '0'), :planned, 'succeeded',
                now() - make_interval(mins => cast(:number as int) / 2), now(),
                '{"active_patients": {"status": "succeeded", "rows": 3}}'
            )
        """
        values = {"organization_id": organization_id, "number": str(number), "planned": PLANNED}
        connection.execute(sa.text(statement), values)


def test_syncs_are_read_without_dagster(service: ServiceAlone) -> None:
    with service.client("read", "sync") as caller:
        assert caller.get("/readyz").json() == {"database": "ok", "dagster": "unreachable"}
        assert caller.get("/v1/organizations/alpha/syncs").json()["items"] == []
        refused = caller.post("/v1/organizations/alpha/syncs")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        note_sync(service.database, "alpha", 90)
        (listed,) = caller.get("/v1/organizations/alpha/syncs").json()["items"]
        assert caller.get(f"/v1/syncs/{listed['id']}").json() == listed
        assert (listed["status"], listed["tables"][0]["counts"]) == ("succeeded", {"rows": 3})
    with service.client(organizations=["beta"]) as another:
        # The response is the same as for a sync that does not exist.
        assert another.get(f"/v1/syncs/{listed['id']}").status_code == 503


def test_syncs_are_paged_latest_first(service: ServiceAlone) -> None:
    add_organization(service.database, "paged")
    for number in range(7):
        note_sync(service.database, "paged", number)
    path = "/v1/organizations/paged/syncs"
    with service.client("sync") as caller:
        pages = list(every_page(caller, path, {"limit": 2}))
        refused = [caller.get(path, params={"cursor": wrong}) for wrong in ("", "x", "MjAyNg", "a" * 100)]
    assert [len(page) for page in pages] == [2, 2, 2, 1]
    assert "".join(sync["id"][-1] for page in pages for sync in page) == "1032546"
    assert [answer.status_code for answer in refused] == [422] * 4


def test_followed_sync_survives_a_lost_database(
    database: Database,
    server_url: URL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stream of events continues when the database is back, and sends the end of the sync."""
    run_id, polls, require = str(uuid4()), [], Gate.require_valid_token
    monkeypatch.setattr(Gate, "require_valid_token", lambda *args: polls.append(args) or require(*args))
    monkeypatch.setattr("cliniko_pipeline.api.routes.syncs.EVENT_INTERVAL_SECONDS", 0.02)
    name = database.url.database
    with opened_service(database, tmp_path) as service, service.client() as caller:
        with database.organization("alpha") as connection:
            sync_runs.note_started(connection, run_id=run_id, asset=PLANNED[0], planned=PLANNED, is_full=False)
        with caller.stream("GET", f"/v1/syncs/{run_id}/events") as answer:
            events = (line for line in answer.iter_lines() if line.startswith("event:"))
            assert next(events) == "event: sync"
            administer(
                server_url,
                f'alter database "{name}" allow_connections false',
                f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'",
            )
            before = len(polls)
            wait_until(lambda: len(polls) > before + 1, "nothing was polled while the database was gone")
            administer(server_url, f'alter database "{name}" allow_connections true')
            with database.organization("alpha") as connection:
                connection.exec_driver_sql("update cliniko.sync_runs set status = 'failed', finished_at = now()")
            assert next(events) == "event: ended"
    assert "defect" not in caplog.text
