"""Tests of the effects of schedules, pauses, retries and partitions. orchestration/plans has tests of the rules."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.schedules import cliniko_count_comparisons, cliniko_syncs
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline_tests.support.deployments import NOW, Deployment
from cliniko_pipeline_tests.support.pipelines import errors_of

HOUR = timedelta(hours=1)


def set_active(deployment: Deployment, name: str, *, active: bool) -> None:
    with deployment.database.operator() as connection:
        organizations.set_active(connection, name, active=active)


def test_schedule_requests_each_due_organization_once(deployment: Deployment) -> None:
    ensure_partitions(deployment.instance, ["alpha", "beta"])
    request, other = deployment.requests(cliniko_syncs)
    assert {each.partition_key: each.tags["dagster/partition"] for each in (request, other)} == {
        "alpha": "alpha",
        "beta": "beta",
    }
    job = deployment.pipeline.definitions.resolve_job_def("cliniko_sync")
    assert job.execute_in_process(
        instance=deployment.instance, run_config=request.run_config, partition_key=request.partition_key
    ).success
    assert deployment.tick() == deployment.tick(NOW + timedelta(seconds=1)) == {}


def test_due_organization_without_changes_is_verified_without_a_run(deployment: Deployment) -> None:
    assert deployment.sync("alpha").success
    synced = deployment.scheduling("alpha")
    later = datetime.now(UTC) + HOUR
    deployment.execute("update cliniko.scheduling set full_requested_at = :later", later=later + 24 * HOUR)
    assert set(deployment.tick(later)) == {"beta"}, "it was never synced"
    verified = deployment.scheduling("alpha")
    assert verified.succeeded_at == synced.succeeded_at
    assert verified.verified_at is not None
    assert synced.verified_at is not None
    assert verified.verified_at > synced.verified_at
    assert verified.requested_at == later
    deployment.change("alpha")
    assert "alpha" not in deployment.tick(later + timedelta(minutes=1)), "it is not due again"
    assert set(deployment.tick(later + HOUR)) == {"alpha", "beta"}


def test_failed_probe_is_retried_later_without_a_run(deployment: Deployment) -> None:
    assert deployment.sync("alpha").success
    later = datetime.now(UTC) + HOUR
    deployment.execute("update cliniko.scheduling set full_requested_at = :later", later=later + 24 * HOUR)
    deployment.sandbox.faults = Faults(server_error_rate=1.0)
    assert "alpha" not in deployment.tick(later)
    failed = deployment.scheduling("alpha")
    assert (failed.failures, failed.retry_at is None) == (1, False)
    assert "alpha" not in deployment.tick(datetime.now(UTC)), "its retry is not due"
    assert deployment.scheduling("alpha").failures == 1
    deployment.sandbox.faults = Faults()
    deployment.execute("update cliniko.scheduling set retry_at = now()")
    assert "alpha" not in deployment.tick(later)
    assert deployment.scheduling("alpha").failures == 0


def test_full_sync_is_requested_once_a_day(deployment: Deployment) -> None:
    requested = [deployment.tick(NOW + hours * HOUR) for hours in range(25)]
    full = [tags for each in requested for tags in each.values() if tags["cliniko_pipeline/full"] == "true"]
    assert sorted(tags["dagster/partition"] for tags in full) == ["alpha", "beta"]


def test_full_sync_is_requested_in_the_night_of_each_clinic(deployment: Deployment) -> None:
    """Full syncs start at 02:00 local time, spread over four hours."""
    zones = {"alpha": "Australia/Sydney", "beta": "America/New_York"}
    with deployment.database.operator() as connection:
        for name, zone in zones.items():
            scheduling.set_schedule(connection, name, time_zone=zone)
    for minutes in range(0, 24 * 60, 20):
        now = NOW + timedelta(minutes=minutes)
        for name, tags in deployment.tick(now).items():
            if tags["cliniko_pipeline/full"] == "true":
                assert 2 <= now.astimezone(ZoneInfo(zones.pop(name))).hour <= 6
    assert zones == {}


def test_running_disabled_or_removed_organization_is_not_due(deployment: Deployment) -> None:
    ensure_partitions(deployment.instance, ["alpha", "beta"])
    run = deployment.add_run(dg.DagsterRunStatus.STARTED, {"dagster/partition": "alpha"})
    assert set(deployment.tick()) == {"beta"}
    deployment.instance.report_run_canceled(run)
    set_active(deployment, "beta", active=False)
    assert set(deployment.tick(NOW + 2 * HOUR)) == {"alpha"}
    organizations.remove(deployment.database, "alpha")
    assert deployment.execute("select organization_id from cliniko.scheduling") == ["beta"]


def test_count_comparison_is_due_once_a_day_after_a_sync(deployment: Deployment) -> None:
    def compared(at: datetime) -> list[str]:
        return [each.tags["dagster/partition"] for each in deployment.requests(cliniko_count_comparisons, at)]

    def counted() -> int:
        return deployment.sandbox.counters.requests(account="alpha", resource="patients")

    now = datetime.now(UTC)
    assert compared(now + 48 * HOUR) == [], "nothing was synced yet"
    deployment.change("alpha")
    assert deployment.sync("alpha").success
    before = counted()
    assert compared(now) == [], "it was just synced"
    assert [each for hours in range(1, 73) for each in compared(now + hours * HOUR)] == [], "the numbers agree"
    assert counted() == before + 3
    deployment.execute("update cliniko.crawls set cursor = now()")
    deployment.accounts["alpha"].delete("patients", "1")
    assert compared(now + 97 * HOUR) == ["alpha"]
    result = deployment.pipeline.compare_counts("alpha")
    assert result.success, errors_of(result)
    deployment.change("alpha")
    assert deployment.sync("alpha").success
    assert compared(now + 121 * HOUR) == ["alpha"], "the failed check must be repeated"


def test_revoked_key_pauses_until_the_key_is_replaced(deployment: Deployment) -> None:
    deployment.accounts["alpha"].revoked = True
    assert not deployment.sync("alpha").success
    deployment.let_refusals_age()
    assert not deployment.sync("alpha").success
    paused = deployment.scheduling("alpha")
    assert paused.paused_at is not None
    assert "401" in (paused.pause_reason or "")
    assert paused.retry_at is None
    assert set(deployment.tick()) == {"beta"}

    # Another encryption of the same key does not end the pause.
    vault = deployment.pipeline.runtime.vault
    credentials = deployment.pipeline.runtime.credentials("alpha")
    with deployment.database.operator() as connection:
        organizations.replace_encrypted(connection, "alpha", vault.encrypt(credentials))
        used = scheduling.credentials_digest(connection, "alpha")
    assert deployment.scheduling("alpha").paused_at is not None

    replaced = Account("replaced", "au4", "another-key-au4")
    deployment.sandbox.add(replaced)
    new = ClinikoCredentials(replaced.api_key, None, deployment.sandbox.base_url(replaced))
    with deployment.database.operator() as connection:
        organizations.save(connection, "alpha", "Alpha", vault.encrypt(new), validated=False)
    assert deployment.scheduling("alpha").paused_at is None
    with deployment.database.operator() as connection:
        scheduling.pause(connection, "alpha", reason="401", run_id="run", credentials=used)
    assert deployment.scheduling("alpha").paused_at is None, "it was the replaced key that failed"
    assert "alpha" in deployment.tick()
    assert deployment.sync("alpha").success


def test_pause_ends_when_enabled_or_synced(deployment: Deployment) -> None:
    deployment.pause("alpha", "revoked")
    deployment.pause("alpha", "another reason")
    assert deployment.scheduling("alpha").pause_reason == "revoked"
    with deployment.database.operator() as connection:
        scheduling.end_pause(connection, "alpha")
    assert "alpha" in deployment.tick()
    deployment.pause("alpha")
    assert deployment.sync("alpha").success
    assert deployment.scheduling("alpha").pause_reason is None


def test_transient_failure_alone_is_retried_when_due(deployment: Deployment) -> None:
    deployment.tick()
    deployment.sandbox.faults = Faults(broken_pages=(BrokenPage("patients", 1, status=404),))
    assert not deployment.sync("alpha").success
    assert deployment.scheduling("alpha").retry_at is None
    assert deployment.scheduling("alpha").paused_at is None
    deployment.sandbox.faults = Faults(reset_before_body_rate=1.0)
    assert not deployment.sync("alpha").success
    retry_at = deployment.scheduling("alpha").retry_at
    assert retry_at is not None
    assert "alpha" in deployment.tick(retry_at)
    assert deployment.scheduling("alpha").retry_at is None


def test_retries_back_off_until_a_sync_succeeds(deployment: Deployment) -> None:
    waits = []
    for _ in range(8):
        with deployment.database.operator() as connection:
            scheduling.note_failure(
                connection, "alpha", reason="down", run_id="run", started_at=datetime.now(UTC), is_permanent=False
            )
            query = "select retry_at - now() from cliniko.scheduling where organization_id = 'alpha'"
            waits.append(connection.exec_driver_sql(query).scalar_one())
    assert [wait // timedelta(minutes=1) for wait in waits] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert deployment.scheduling("beta").retry_at is None
    assert deployment.sync("alpha").success
    assert deployment.scheduling("alpha").retry_at is None


def test_partitions_are_active_or_running_organizations(deployment: Deployment) -> None:
    deployment.watch_partitions()
    assert deployment.partitions == {"alpha", "beta"}
    assert "equal the active organizations" in (deployment.watch_partitions() or "")
    deployment.add_run(dg.DagsterRunStatus.STARTING, {"dagster/partition": "beta"})
    set_active(deployment, "alpha", active=False)
    organizations.remove(deployment.database, "beta")
    deployment.watch_partitions()
    assert deployment.partitions == {"beta"}
    deployment.execute("alter table public.api_credentials rename to away")
    assert "The partitions are unchanged" in (deployment.watch_partitions() or "")
    assert deployment.partitions == {"beta"}
