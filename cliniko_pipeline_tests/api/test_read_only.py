"""Tests of the service while its database is read-only, as after a full disk or a failover."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import URL
from sqlalchemy.exc import InternalError

from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import sync_runs
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.services import ServiceAlone, opened_service
from cliniko_pipeline_tests.support.signatures import add_secret, send

PARTITIONS = "organizations"


@pytest.fixture
def alone(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceAlone]:
    monkeypatch.setattr("cliniko_pipeline.api.routes.health.READINESS_SECONDS", 0)
    with opened_service(database, tmp_path) as opened:
        yield opened


def begin_read_only(service: ServiceAlone, server_url: URL) -> None:
    """Set the database read-only and end its sessions, as a hosting provider does."""
    name = service.database.url.database
    administer(
        server_url,
        f"alter database {name} set default_transaction_read_only = on",
        f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'",
    )


def end_read_only(service: ServiceAlone, server_url: URL) -> None:
    administer(server_url, f"alter database {service.database.url.database} reset default_transaction_read_only")


def readiness(caller: httpx.Client) -> tuple[int, str]:
    answer = caller.get("/readyz")
    return answer.status_code, answer.json()["database"]


def test_read_only_database_is_read_and_recovers(alone: ServiceAlone, server_url: URL) -> None:
    """Reading works, although the first use of the new token cannot be stored."""
    run_id = str(uuid4())
    with alone.database.organization("alpha") as connection:
        sync_runs.note_started(connection, run_id=run_id, asset="active_patients", planned=[], is_full=False)
    secret, _ = add_secret(alone.runtime, "alpha")
    with alone.client("read", "sync", "admin") as caller:
        begin_read_only(alone, server_url)
        for path in ("", "/alpha", "/alpha/active-patients", "/alpha/people-without-contact", "/alpha/syncs"):
            answer = caller.get(f"/v1/organizations{path}")
            assert answer.status_code == 200, answer.text
        assert caller.get("/metrics").status_code == 200
        assert caller.get("/healthz").status_code == 200
        assert readiness(caller) == (503, "read_only")
        refused = [
            caller.post("/v1/organizations/alpha/syncs"),
            caller.delete(f"/v1/syncs/{run_id}"),
            send(alone.url, "alpha", secret),
        ]
        assert caller.get("/v1/organizations", headers={"Authorization": "Bearer wrong"}).status_code == 401
        for answer in refused:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10"), answer.text
        assert all("read-only" in answer.json()["detail"] for answer in (refused[0], refused[2]))
        end_read_only(alone, server_url)
        assert readiness(caller) == (200, "ok")
        # The first write succeeds, so no read-only connection is left in the pool.
        assert send(alone.url, "alpha", secret).status_code == 202
        assert "Dagster" in caller.post("/v1/organizations/alpha/syncs").json()["detail"]
    with alone.database.operator() as connection:
        query = "select count(*) filter (where last_used_at is not null) from cliniko.api_tokens"
        assert connection.exec_driver_sql(query).scalar_one() == 1
        assert connection.exec_driver_sql("select count(*) from cliniko.webhook_events").scalar_one() == 1


def test_dagster_storage_recovers_from_a_read_only_database(
    alone: ServiceAlone, server_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DAGSTER_HOME", "CLINIKO_DAGSTER_DATABASE_URL"):
        monkeypatch.setenv(name, "")  # so that they are restored after the test, because opening an instance sets them
    with open_instance(alone.runtime) as instance:
        instance.add_dynamic_partitions(PARTITIONS, ["alpha"])
        begin_read_only(alone, server_url)
        assert instance.get_dynamic_partitions(PARTITIONS) == ["alpha"]
        with pytest.raises(InternalError, match="read-only"):
            instance.add_dynamic_partitions(PARTITIONS, ["beta"])
        assert instance.get_dynamic_partitions(PARTITIONS) == ["alpha"]
        end_read_only(alone, server_url)
        instance.add_dynamic_partitions(PARTITIONS, ["beta"])
        assert sorted(instance.get_dynamic_partitions(PARTITIONS)) == ["alpha", "beta"]
