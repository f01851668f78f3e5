"""Tests of what a prune deletes from Dagster's tables, and of what it keeps, on an instance in PostgreSQL."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.orchestration.retention.pruning import Prune, Pruned
from cliniko_pipeline_tests.support.synced_organizations import SyncedOrganization

DAY = timedelta(days=1)
ASSETS = ("cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients")
RESOURCES = {"RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS"}
DETAILS = {"ENGINE_EVENT", "STEP_INPUT", "LOADED_INPUT", "STEP_OUTPUT", "HANDLED_OUTPUT", *RESOURCES, None}
PLANS = {"ASSET_MATERIALIZATION_PLANNED", "ASSET_CHECK_EVALUATION_PLANNED"}


def prune(clinic: SyncedOrganization, after: timedelta, *, is_dry: bool = False) -> dict[str, int]:
    """Prune as if this time had passed; return the number of rows by kind."""
    now = datetime.now(UTC) + after
    pruned = Prune(clinic.pipeline.runtime, clinic.pipeline.instance, is_dry=is_dry, now=now).run()
    return {each.kind: each.rows for each in pruned if each.rows}


def column(clinic: SyncedOrganization, query: str, **values: object) -> list[Any]:
    with clinic.pipeline.database.operator() as connection:
        return list(connection.execute(sa.text(query), values).scalars())


def event_types(clinic: SyncedOrganization) -> list[str | None]:
    return column(clinic, "select dagster_event_type from dagster.event_logs order by id")


def runs(clinic: SyncedOrganization) -> set[str]:
    return {run.run_id for run in clinic.pipeline.instance.get_runs()}


def shown(clinic: SyncedOrganization) -> dict[str, Any]:
    """Return what the pages of the assets show: materializations, failures and check results of the partition."""
    storage = clinic.pipeline.instance.event_log_storage
    result: dict[str, Any] = {}
    for name in ASSETS:
        key = dg.AssetKey.from_user_string(name)
        filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[clinic.id])
        (latest,) = clinic.pipeline.instance.fetch_materializations(filters, limit=1).records
        failed = storage.get_latest_asset_partition_materialization_attempts_without_materializations(key)
        result[name] = latest.storage_id, latest.asset_materialization, failed
    graph = clinic.pipeline.definitions.resolve_asset_graph()
    results = storage.get_latest_asset_check_execution_by_key(list(graph.asset_check_keys))
    return result | {str(key): (found.run_id, found.status) for key, found in results.items()}


def test_details_of_ended_runs_are_deleted_after_days(clinic: SyncedOrganization) -> None:
    run_id = clinic.sync().run_id
    before = event_types(clinic)
    assert PLANS | {"STEP_OUTPUT", "HANDLED_OUTPUT", None} <= set(before)
    assert prune(clinic, 2 * DAY) == {}
    shown_before = shown(clinic)
    deleted = prune(clinic, 4 * DAY)
    kept = [each for each in before if each not in DETAILS | PLANS]
    assert event_types(clinic) == kept
    assert deleted == {"details of runs": len(before) - len(kept)}
    assert shown(clinic) == shown_before
    assert runs(clinic) == {run_id}
    assert prune(clinic, 4 * DAY) == {}


def test_events_of_unfinished_runs_are_kept(clinic: SyncedOrganization) -> None:
    clinic.sync()
    with clinic.pipeline.database.operator() as connection:
        connection.exec_driver_sql("update dagster.runs set status = 'STARTED'")
    before = event_types(clinic)
    assert prune(clinic, 400 * DAY) == {}
    assert event_types(clinic) == before


def test_failed_partition_stays_failed(clinic: SyncedOrganization) -> None:
    clinic.sync()
    clinic.account.forbidden_resources = {"individual_appointments"}
    clinic.fail()
    before = shown(clinic)
    assert before["cliniko/appointments"][2]
    assert "details of runs" in prune(clinic, 4 * DAY)
    assert shown(clinic) == before


def test_old_runs_are_deleted_except_the_latest_of_a_partition(clinic: SyncedOrganization) -> None:
    """The rows of a deleted run are deleted from all tables."""
    old = [clinic.sync().run_id, clinic.sync().run_id]
    clinic.account.forbidden_resources = {"individual_appointments"}
    clinic.fail()
    clinic.account.forbidden_resources = set()
    latest = clinic.sync().run_id
    before = shown(clinic)
    deleted = prune(clinic, 31 * DAY)
    assert deleted["runs"] == 3
    assert deleted["check results"] > 0
    assert runs(clinic) == {latest}
    assert shown(clinic) == before
    for table in ("event_logs", "run_tags", "asset_check_executions"):
        of_runs = column(clinic, f"select distinct run_id from dagster.{table}")
        assert of_runs == [latest], table
        assert not set(of_runs) & set(old)
    orphans = "select id from dagster.asset_event_tags where event_id not in (select id from dagster.event_logs)"
    assert column(clinic, orphans) == []
    assert prune(clinic, 31 * DAY) == {}
    assert clinic.sync().run_id in runs(clinic)


def test_run_is_kept_for_its_latest_materialization_or_check_alone(clinic: SyncedOrganization) -> None:
    clinic.sync()
    compared = clinic.pipeline.compare_counts(clinic.id).run_id
    latest = clinic.sync().run_id
    prune(clinic, 31 * DAY)
    assert runs(clinic) == {compared, latest}
    with clinic.pipeline.database.operator() as connection:
        connection.exec_driver_sql("delete from dagster.asset_check_executions")
    prune(clinic, 31 * DAY)
    assert runs(clinic) == {latest}


def test_dry_run_counts_what_a_prune_deletes(clinic: SyncedOrganization) -> None:
    for _ in range(3):
        clinic.sync()
    before = event_types(clinic), runs(clinic), clinic.pipeline.tables(clinic.id)
    counted = prune(clinic, 31 * DAY, is_dry=True)
    assert (event_types(clinic), runs(clinic), clinic.pipeline.tables(clinic.id)) == before
    assert counted == prune(clinic, 31 * DAY)
    assert {"details of runs", "runs", "check results", "syncs"} == set(counted)


def test_prune_killed_after_any_transaction_is_completed_by_the_next(clinic: SyncedOrganization) -> None:
    class KilledError(Exception):
        pass

    latest = [clinic.sync().run_id for _ in range(3)][-1]
    now = datetime.now(UTC) + 31 * DAY
    progress: list[Pruned] = []

    def kill(pruned: Pruned) -> None:
        progress.append(pruned)
        raise KilledError

    for _ in range(50):
        before = shown(clinic)
        try:
            Prune(clinic.pipeline.runtime, clinic.pipeline.instance, now=now).run(kill)
        except KilledError:
            assert shown(clinic) == before
        if not progress[-1].rows:
            break
    prune(clinic, 31 * DAY)
    assert runs(clinic) == {latest}
    assert set(column(clinic, "select run_id from dagster.event_logs")) == {latest}
    assert prune(clinic, 31 * DAY) == {}


def test_run_whose_deletion_was_killed_is_found_again(
    clinic: SyncedOrganization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events of a run are deleted first, so that no events without a run are left."""
    first, last = clinic.sync().run_id, clinic.sync().run_id

    def kill(_storage: object, _run_id: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(clinic.pipeline.instance.run_storage), "delete_run", kill)
        with pytest.raises(KeyboardInterrupt):
            prune(clinic, 31 * DAY)
    assert first in runs(clinic)
    prune(clinic, 31 * DAY)
    assert runs(clinic) == {last}
    assert set(column(clinic, "select run_id from dagster.event_logs")) == {last}


def test_job_prunes_in_one_run_for_all_organizations(clinic: SyncedOrganization) -> None:
    clinic.sync()
    with clinic.pipeline.database.operator() as connection:
        connection.exec_driver_sql("update dagster.event_logs set timestamp = timestamp - interval '4 days'")
    job = clinic.pipeline.definitions.resolve_job_def("cliniko_prune")
    result = job.execute_in_process(instance=clinic.pipeline.instance, raise_on_error=False)
    assert result.success
    messages = [event.user_message for event in clinic.pipeline.instance.all_logs(result.run_id)]
    assert any("details of runs" in message for message in messages)
    (old,) = (run_id for run_id in runs(clinic) if run_id != result.run_id)
    types = column(clinic, "select dagster_event_type from dagster.event_logs where run_id = :id", id=old)
    assert types
    assert not set(types) & (DETAILS | PLANS)
