"""Tests of what a prune deletes from the pipeline's own history, and of the plans of its statements."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.orchestration.retention import dagster_tables
from cliniko_pipeline.orchestration.retention.pruning import Prune
from cliniko_pipeline.orchestration.schedules import cliniko_prunes
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.operator_tables import sync_runs
from cliniko_pipeline.postgres.operator_tables.retention import prune_lock
from cliniko_pipeline.postgres.operator_tables.sync_runs import DayOfTrend
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused
from cliniko_pipeline_tests.support.synced_organizations import SyncedOrganization

DAY = timedelta(days=1)
ADD_SYNCS = """
    insert into cliniko.sync_runs (organization_id, run_id, planned, status, started_at, finished_at, assets)
    select
        current_setting('app.organization_id'),
        'run ' || number,
        cast(:planned as text[]),
        case when number % 7 = 3 then 'failed' else 'succeeded' end,
        now() - number * interval '5 hours' - interval '30 minutes',
        now() - number * interval '5 hours',
        jsonb_build_object('active_patients', jsonb_build_object('rows', number))
    from generate_series(1, :syncs) as number
"""
ALL = ["active_patients", "cliniko/appointments", "cliniko/patients", "contact_mapping"]


def prune(deployment: Deployment, now: datetime | None = None) -> dict[str, int]:
    """Prune at this time, by default now; return the number of rows by kind."""
    pruned = Prune(deployment.pipeline.runtime, deployment.instance, now=now).run()
    return {each.kind: each.rows for each in pruned if each.rows}


def add_syncs(deployment: Deployment, name: str, syncs: int, planned: list[str] = ALL) -> None:
    with deployment.database.organization(name) as connection:
        connection.execute(sa.text(ADD_SYNCS), {"syncs": syncs, "planned": planned})


def trend(deployment: Deployment, name: str, days: int = 730) -> list[DayOfTrend]:
    with deployment.database.organization(name) as connection:
        return sync_runs.trend(connection, days)


def test_trend_keeps_its_daily_numbers(deployment: Deployment) -> None:
    """This also holds for a day whose syncs are deleted by several prunes, and for shorter trends."""
    add_syncs(deployment, "alpha", 400)
    lengths = (1, 29, 30, 31, 60, 730)
    before = [trend(deployment, "alpha", days) for days in lengths]
    assert len(before[-1]) > 80
    now = datetime.now(UTC)
    for hours in range(0, 35, 5):
        deleted = prune(deployment, now + timedelta(hours=hours))
        assert hours > 0 or deleted["syncs"] > 200
        assert [trend(deployment, "alpha", days) for days in lengths] == before
    assert len(deployment.pipeline.rows("alpha", "cliniko.sync_runs")) < 150


def test_numbers_leave_the_trend_after_two_years(deployment: Deployment) -> None:
    add_syncs(deployment, "alpha", 5 * 800)
    shown = trend(deployment, "alpha")
    prune(deployment)
    assert trend(deployment, "alpha") == shown
    assert len(deployment.pipeline.rows("alpha", "cliniko.daily_active_patients")) < 735


def test_status_and_other_organizations_are_unchanged(deployment: Deployment) -> None:
    """The last sync, the last success and the last computation are kept, however old they are."""
    for name in ("alpha", "beta"):
        add_syncs(deployment, name, 3)
    with deployment.database.organization("alpha") as connection:
        before = sync_runs.organization_status(connection)
    assert prune(deployment, datetime.now(UTC) + 400 * DAY) == {"syncs": 2}
    with deployment.database.organization("alpha") as connection:
        assert sync_runs.organization_status(connection) == before
    rows = {row["run_id"] for row in deployment.pipeline.rows("beta", "cliniko.sync_runs")}
    assert rows == {"run 1", "run 3"}, "the last success and the last failure"


def test_running_syncs_are_kept(deployment: Deployment) -> None:
    add_syncs(deployment, "alpha", 3)
    deployment.execute("alter table cliniko.sync_runs no force row level security")
    deployment.execute("update cliniko.sync_runs set status = 'running', finished_at = null")
    assert prune(deployment, datetime.now(UTC) + 400 * DAY) == {}


@pytest.fixture
def variables() -> dict[str, str]:
    return {"CLINIKO_KEEP_DELIVERIES_DAYS": "10", "CLINIKO_KEEP_REFUSALS_DAYS": "0"}


def test_settings_say_how_long_history_is_kept(deployment: Deployment) -> None:
    deployment.execute(
        "insert into cliniko.webhook_deliveries (organization_id, run_id, body, send_at, ended_at)"
        " select 'alpha', days, '', null, now() - make_interval(days => days) from unnest(array[8, 9, 11, 12]) as days"
    )
    deployment.execute(
        "insert into cliniko.api_refusals (minute, reason, token_id, address, method, route, organization_id)"
        " values (now() - interval '10 years', '', '', '', '', '', '')"
    )
    assert prune(deployment) == {"webhook deliveries": 2}
    assert deployment.execute("select run_id from cliniko.webhook_deliveries order by 1") == ["8", "9"]
    assert deployment.execute("select count(*) from cliniko.api_refusals") == [1]


def test_schedule_requests_one_run_a_day(deployment: Deployment) -> None:
    (request,) = deployment.requests(cliniko_prunes)
    assert request.tags.get("dagster/partition") is None
    deployment.execute("update cliniko.database_identity set identity = 'another database'")
    assert deployment.requests(cliniko_prunes) == []


def test_command_shows_deleted_rows_and_sizes(command: CommandLine, clinics: Clinics) -> None:
    clinics.add("alpha")
    assert command("sync", "alpha").returncode == 0
    with clinics.database.operator() as connection:
        connection.exec_driver_sql("update dagster.event_logs set timestamp = timestamp - interval '4 days'")
    counted = command("prune", "--dry-run")
    assert (counted.returncode, counted.stderr) == (0, "")
    deleted = command("prune")
    assert deleted.returncode == 0
    lines = [*counted.stdout.splitlines(), *deleted.stdout.splitlines()]
    numbers = [line.split()[-2] for line in lines if "details of runs" in line]
    assert int(numbers[0]) > 10
    assert len(numbers) == 2
    assert numbers[0] == numbers[1]
    assert "MB before" in deleted.stdout
    with prune_lock(clinics.database) as is_free:
        assert is_free
        assert_refused(command("prune"), "Another process prunes")


def test_prune_beside_running_syncs_disturbs_none(clinic: SyncedOrganization) -> None:
    """Everything older than the present is old here, except what has not ended."""
    pipeline, ended = clinic.pipeline, threading.Event()

    def prune_repeatedly() -> int:
        prunes = 0
        while not ended.is_set():
            Prune(pipeline.runtime, pipeline.instance, now=datetime.now(UTC) + 400 * DAY).run()
            prunes += 1
        return prunes

    with ThreadPoolExecutor(2) as executor:
        pruning = [executor.submit(prune_repeatedly) for _ in range(2)]
        try:
            for _ in range(2):
                clinic.sync()
        finally:
            ended.set()
        assert all(future.result() for future in pruning)
    clinic.assert_right()


# Plans. --------------------------------------------------------------------------------------------------------------

FILL_EVENTS = """
    insert into dagster.event_logs (run_id, event, dagster_event_type, timestamp, asset_key, partition)
    select
        'run ' || number / 20,
        repeat('x', 500),
        (array['STEP_OUTPUT', 'ASSET_MATERIALIZATION', 'ASSET_MATERIALIZATION_PLANNED', null, 'STEP_START'])
            [number % 5 + 1],
        now() - number * interval '1 second',
        case when number % 5 in (1, 2) then '["asset"]' end,
        case when number % 5 in (1, 2) then 'clinic ' || number % 100 end
    from generate_series(1, 60000) as number
"""


@pytest.fixture
def filled(stored_pipeline: PipelineUnderTest) -> Database:
    """Return a database with many events, whose tables were never analyzed."""
    with stored_pipeline.database.operator() as connection:
        for table in ("event_logs", "runs", "asset_check_executions"):
            connection.exec_driver_sql(f"alter table dagster.{table} set (autovacuum_enabled = false)")
        connection.execute(sa.text(FILL_EVENTS))
    return stored_pipeline.database


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_statements_read_events_by_index_without_statistics(filled: Database) -> None:
    of_events = {"after": 100, "limit": 2000, "unfinished": ["a"], "replacing": ["ASSET_MATERIALIZATION"]}
    statements: list[tuple[str, dict[str, Any]]] = [
        (sql("retention/event_details").format(condition=condition), of_events)
        for condition in dagster_tables.CONDITIONS
    ]
    statements += [
        (
            sql("retention/latest_materializations"),
            {"run_ids": ["run 1", "run 2"], "types": ["ASSET_MATERIALIZATION"]},
        ),
        ("delete from event_logs where id = any(cast(:ids as bigint[]))", {"ids": list(range(2000))}),
    ]
    with filled.operator() as connection:
        connection.exec_driver_sql("set local search_path = dagster")
        for text, parameters in statements:
            found = connection.execute(sa.text(f"explain (format json) {text}"), parameters).scalar_one()
            plan = found if isinstance(found, list) else json.loads(found)
            scans = [node["Node Type"] for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == "event_logs"]
            assert scans, text
            assert "Seq Scan" not in scans, text


def test_settings_and_lock_are_released_after_a_prune(stored_pipeline: PipelineUnderTest) -> None:
    runtime: Runtime = stored_pipeline.runtime
    for _ in range(2):
        with prune_lock(runtime.database) as is_free, open_instance(runtime) as instance:
            assert is_free
            assert isinstance(instance, dg.DagsterInstance)
            with prune_lock(runtime.database) as second:
                assert not second
