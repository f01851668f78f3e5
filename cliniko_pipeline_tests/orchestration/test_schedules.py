"""The schedules, pauses, retries and partitions, on a real Dagster instance and database."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.schedules import cliniko_count_comparisons, cliniko_syncs
from cliniko_pipeline.postgres import organizations, scheduling
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline_tests.support.deployments import NOW, Deployment
from cliniko_pipeline_tests.support.pipelines import errors_of


def set_active(deployment: Deployment, name: str, *, active: bool) -> None:
    with deployment.database.operator() as connection:
        organizations.set_active(connection, name, active=active)


# --- The schedule -----------------------------------------------------------------------------------------


def test_schedule_requests_each_due_organization_once(deployment: Deployment) -> None:
    requested = deployment.tick()
    assert {name: tags["dagster/partition"] for name, tags in requested.items()} == {"alpha": "alpha", "beta": "beta"}
    assert deployment.tick() == {}
    assert deployment.tick(NOW + timedelta(minutes=1)) == {}
    two_hours = [deployment.tick(NOW + timedelta(minutes=minute)) for minute in range(10, 121, 10)]
    assert sum("alpha" in requested for requested in two_hours) == 2


def test_run_that_the_schedule_requests_succeeds(deployment: Deployment) -> None:
    ensure_partitions(deployment.instance, ["alpha", "beta"])
    job = deployment.pipeline.definitions.resolve_job_def("cliniko_sync")
    request = deployment.requests(cliniko_syncs)[0]
    result = job.execute_in_process(
        instance=deployment.instance, run_config=request.run_config, partition_key=request.partition_key
    )
    assert result.success


def test_full_sync_is_due_once_a_day(deployment: Deployment) -> None:
    deployment.tick()
    requested = [deployment.tick(NOW + timedelta(hours=hour)) for hour in range(1, 25)]
    full = [tags for each in requested for tags in each.values() if tags["cliniko_pipeline/full"] == "true"]
    assert sorted(tags["dagster/partition"] for tags in full) == ["alpha", "beta"]


def test_organization_with_a_run_in_flight_is_not_due(deployment: Deployment) -> None:
    ensure_partitions(deployment.instance, ["alpha", "beta"])
    deployment.add_run(dg.DagsterRunStatus.STARTED, {"dagster/partition": "alpha"})
    assert set(deployment.tick()) == {"beta"}


def test_disabled_or_removed_organization_is_not_due(deployment: Deployment) -> None:
    deployment.tick()
    set_active(deployment, "alpha", active=False)
    assert set(deployment.tick(NOW + timedelta(hours=2))) == {"beta"}
    organizations.remove(deployment.database, "beta")
    assert deployment.execute("select organization_id from cliniko.scheduling") == ["alpha"]


def test_count_comparison_is_due_once_a_day_after_a_sync(deployment: Deployment) -> None:
    def compared(at: datetime) -> list[str]:
        return sorted(each.tags["dagster/partition"] for each in deployment.requests(cliniko_count_comparisons, at))

    now = datetime.now(UTC)
    assert compared(now + timedelta(days=2)) == [], "nothing was synced yet"
    assert deployment.sync("alpha").success
    assert compared(now) == [], "it was just synced"
    days = [compared(now + timedelta(hours=hour)) for hour in range(1, 73)]
    assert sum(each == ["alpha"] for each in days) == 3
    assert sum(map(len, days)) == 3, "beta was never synced"
    result = deployment.pipeline.compare_counts("alpha")
    assert result.success, errors_of(result)


# --- Pauses and retries -----------------------------------------------------------------------------------


def test_revoked_key_pauses_until_the_key_is_replaced(deployment: Deployment) -> None:
    deployment.tick()
    deployment.accounts["alpha"].revoked = True
    assert not deployment.sync("alpha").success
    paused = deployment.scheduling("alpha")
    assert paused.paused_at is not None
    assert "401" in (paused.pause_reason or "")
    assert paused.retry_at is None
    for hours in (1, 2, 30):
        assert set(deployment.tick(NOW + timedelta(hours=hours))) == {"beta"}

    # Another encryption of the same key changes nothing.
    vault = deployment.pipeline.runtime.vault
    credentials = deployment.pipeline.runtime.credentials("alpha")
    with deployment.database.operator() as connection:
        organizations.replace_encrypted(connection, "alpha", vault.encrypt(credentials))
    assert deployment.scheduling("alpha").paused_at is not None

    replaced = Account("replaced", "au4", "another-key-au4")
    deployment.sandbox.add(replaced)
    new = ClinikoCredentials(replaced.api_key, None, deployment.sandbox.base_url(replaced))
    with deployment.database.operator() as connection:
        organizations.save(connection, "alpha", "Alpha", vault.encrypt(new), validated=False)
    assert deployment.scheduling("alpha").paused_at is None
    assert "alpha" in deployment.tick(NOW + timedelta(hours=31))
    assert deployment.sync("alpha").success


def test_failure_of_a_replaced_key_pauses_nothing(deployment: Deployment) -> None:
    with deployment.database.operator() as connection:
        used = scheduling.credentials_digest(connection, "alpha")
    deployment.pipeline.add_organization("alpha", deployment.sandbox, deployment.accounts["alpha"])
    with deployment.database.operator() as connection:
        scheduling.pause(connection, "alpha", reason="401", run_id="run", credentials=used)
    assert deployment.scheduling("alpha").paused_at is None


def test_pause_keeps_its_first_reason_until_enabled(deployment: Deployment) -> None:
    deployment.pause("alpha", "revoked")
    deployment.pause("alpha", "another reason")
    assert deployment.scheduling("alpha").pause_reason == "revoked"
    with deployment.database.operator() as connection:
        scheduling.end_pause(connection, "alpha")
    assert "alpha" in deployment.tick()


def test_successful_sync_ends_a_pause(deployment: Deployment) -> None:
    deployment.pause("alpha")
    assert deployment.sync("alpha").success
    assert deployment.scheduling("alpha").pause_reason is None


def test_permanent_failure_is_not_retried(deployment: Deployment) -> None:
    deployment.sandbox.faults = Faults(broken_pages=(BrokenPage("patients", 1, status=404),))
    assert not deployment.sync("alpha").success
    assert deployment.scheduling("alpha").retry_at is None
    assert deployment.scheduling("alpha").paused_at is None


def test_retries_back_off_until_a_sync_succeeds(deployment: Deployment) -> None:
    waits = []
    for _ in range(9):
        with deployment.database.operator() as connection:
            scheduling.note_failure(
                connection, "alpha", reason="down", run_id="run", begun_at=datetime.now(UTC), is_permanent=False
            )
            query = "select retry_at - now() from cliniko.scheduling where organization_id = 'alpha'"
            waits.append(connection.exec_driver_sql(query).scalar_one())
    assert [wait // timedelta(minutes=1) for wait in waits] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert deployment.scheduling("beta").retry_at is None
    assert deployment.sync("alpha").success
    assert deployment.scheduling("alpha").retry_at is None


def test_transient_failure_is_retried_when_due(deployment: Deployment) -> None:
    deployment.tick()
    deployment.sandbox.faults = Faults(reset_before_body_rate=1.0)
    assert not deployment.sync("alpha").success
    retry_at = deployment.scheduling("alpha").retry_at
    assert retry_at is not None
    assert "alpha" in deployment.tick(retry_at)
    assert deployment.scheduling("alpha").retry_at is None


# --- Partitions -------------------------------------------------------------------------------------------


def test_partitions_are_the_active_organizations(deployment: Deployment) -> None:
    deployment.watch_partitions()
    assert deployment.partitions == {"alpha", "beta"}
    assert "those of the organizations" in (deployment.watch_partitions() or "")
    set_active(deployment, "alpha", active=False)
    deployment.watch_partitions()
    assert deployment.partitions == {"beta"}


def test_partition_of_a_run_in_flight_is_not_removed(deployment: Deployment) -> None:
    deployment.watch_partitions()
    deployment.add_run(dg.DagsterRunStatus.STARTING, {"dagster/partition": "alpha"})
    organizations.remove(deployment.database, "alpha")
    organizations.remove(deployment.database, "beta")
    deployment.watch_partitions()
    assert deployment.partitions == {"alpha"}


def test_partitions_stay_while_organizations_are_unreadable(deployment: Deployment) -> None:
    deployment.watch_partitions()
    deployment.execute("alter table public.api_credentials rename to away")
    assert "Nothing is changed" in (deployment.watch_partitions() or "")
    assert deployment.partitions == {"alpha", "beta"}
