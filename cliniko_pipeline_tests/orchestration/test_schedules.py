"""What runs by itself, on a real Dagster instance: the schedule, the sensors, pauses and second tries."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.schedules import cliniko_count_comparisons, cliniko_syncs
from cliniko_pipeline.postgres import organizations, scheduling
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline_tests.support.deployments import NOW, Deployment, paused
from cliniko_pipeline_tests.support.pipelines import errors_of

# --- The schedule -----------------------------------------------------------------------------------------


def test_new_organizations_are_requested_once_each_with_their_partition(deployment: Deployment) -> None:
    requested = deployment.tick()
    assert {name: tags["dagster/partition"] for name, tags in requested.items()} == {"alpha": "alpha", "beta": "beta"}
    assert deployment.tick() == {}
    assert deployment.tick(NOW + timedelta(minutes=1)) == {}
    within_two_hours = [deployment.tick(NOW + timedelta(minutes=minute)) for minute in range(10, 121, 10)]
    assert sum("alpha" in requested for requested in within_two_hours) == 2


def test_the_requested_run_is_one_that_can_be_run(deployment: Deployment) -> None:
    context = dg.build_schedule_context(
        instance=deployment.pipeline.instance, scheduled_execution_time=NOW, resources=deployment.resources
    )
    ensure_partitions(deployment.pipeline.instance, ["alpha", "beta"])
    for request in cliniko_syncs.evaluate_tick(context).run_requests or []:
        result = deployment.pipeline.definitions.resolve_job_def("cliniko_sync").execute_in_process(
            instance=deployment.pipeline.instance, run_config=request.run_config, partition_key=request.partition_key
        )
        assert result.success


def test_a_night_brings_a_full_sync(deployment: Deployment) -> None:
    deployment.tick()
    requested = [deployment.tick(NOW + timedelta(hours=hour)) for hour in range(1, 25)]
    full = [tags for each in requested for tags in each.values() if tags["cliniko_pipeline/full"] == "true"]
    assert sorted(tags["dagster/partition"] for tags in full) == ["alpha", "beta"]


def test_an_organization_whose_run_still_goes_on_is_left_alone(deployment: Deployment) -> None:
    ensure_partitions(deployment.pipeline.instance, ["alpha", "beta"])
    deployment.pipeline.instance.create_run_for_job(
        deployment.pipeline.definitions.resolve_job_def("cliniko_sync"),
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": "alpha"},
    )
    assert set(deployment.tick()) == {"beta"}


def test_a_disabled_organization_is_left_alone_and_one_that_was_removed_leaves_nothing(deployment: Deployment) -> None:
    deployment.tick()
    with deployment.pipeline.database.operator() as connection:
        organizations.set_active(connection, "alpha", active=False)
    assert set(deployment.tick(NOW + timedelta(hours=2))) == {"beta"}
    organizations.remove(deployment.pipeline.database, "beta")
    with deployment.pipeline.database.operator() as connection:
        left = connection.execute(sa.text("select organization_id from cliniko.scheduling")).scalars().all()
    assert left == ["alpha"]


def test_counts_are_compared_once_a_day_of_what_was_synced(deployment: Deployment) -> None:
    def compared(at: datetime) -> list[str]:
        context = dg.build_schedule_context(
            instance=deployment.pipeline.instance, scheduled_execution_time=at, resources=deployment.resources
        )
        found = cliniko_count_comparisons.evaluate_tick(context)
        return sorted(request.tags["dagster/partition"] for request in found.run_requests or [])

    now = datetime.now(UTC)
    assert compared(now + timedelta(days=2)) == [], "nothing was synced yet"
    assert deployment.sync("alpha").success
    assert compared(now) == [], "what was just read agrees"
    days = [compared(now + timedelta(hours=hour)) for hour in range(1, 73)]
    assert sum(each == ["alpha"] for each in days) == 3
    assert sum(map(len, days)) == 3, "beta was never synced"
    result = deployment.pipeline.compare_counts("alpha")
    assert result.success, errors_of(result)


# --- Pauses and second tries ------------------------------------------------------------------------------


def test_a_revoked_key_fails_one_run_and_pauses_the_organization_until_the_key_is_replaced(
    deployment: Deployment,
) -> None:
    deployment.tick()
    deployment.accounts["alpha"].revoked = True
    result = deployment.sync("alpha")
    assert not result.success
    paused = deployment.scheduling("alpha")
    assert paused.paused_at is not None
    assert "401" in (paused.pause_reason or "")
    assert paused.retry_at is None
    for hours in (1, 2, 30):
        assert set(deployment.tick(NOW + timedelta(hours=hours))) == {"beta"}

    # Another encryption of the same key changes nothing.
    credentials = deployment.pipeline.runtime.credentials("alpha")
    with deployment.pipeline.database.operator() as connection:
        organizations.replace_encrypted(connection, "alpha", deployment.pipeline.runtime.vault.encrypt(credentials))
    assert deployment.scheduling("alpha").paused_at is not None

    replaced = Account("replaced", "au4", "another-key-au4")
    deployment.sandbox.add(replaced)
    new = ClinikoCredentials(replaced.api_key, None, deployment.sandbox.base_url(replaced))
    with deployment.pipeline.database.operator() as connection:
        organizations.save(
            connection, "alpha", "Alpha", deployment.pipeline.runtime.vault.encrypt(new), validated=False
        )
    assert deployment.scheduling("alpha").paused_at is None
    assert "alpha" in deployment.tick(NOW + timedelta(hours=31))
    assert deployment.sync("alpha").success


def test_a_paused_organization_goes_on_when_it_is_enabled(deployment: Deployment) -> None:
    with deployment.pipeline.database.operator() as connection:
        paused(connection, "alpha", reason="revoked", run_id="run")
        paused(connection, "alpha", reason="another reason", run_id="run")
    assert deployment.scheduling("alpha").pause_reason == "revoked"
    with deployment.pipeline.database.operator() as connection:
        scheduling.end_pause(connection, "alpha")
    assert "alpha" in deployment.tick()


def test_a_sync_that_succeeds_ends_a_pause(deployment: Deployment) -> None:
    deployment.accounts["alpha"].revoked = True
    assert not deployment.sync("alpha").success
    deployment.accounts["alpha"].revoked = False
    assert deployment.sync("alpha").success
    assert deployment.scheduling("alpha").pause_reason is None


def test_what_fails_for_a_reason_that_passes_is_tried_again_later_and_later_until_it_succeeds(
    deployment: Deployment,
) -> None:
    deployment.sandbox.faults = Faults(broken_pages=(BrokenPage("patients", 1, status=404),))
    assert not deployment.sync("alpha").success
    assert deployment.scheduling("alpha").retry_at is None, "a refusal does not pass"
    assert deployment.scheduling("alpha").paused_at is None

    deployment.sandbox.faults = Faults()
    assert deployment.sync("alpha").success
    with deployment.pipeline.database.operator() as connection:
        waits = []
        for _ in range(9):
            scheduling.note_failure(
                connection, "alpha", reason="down", run_id="run", begun_at=datetime.now(UTC), is_permanent=False
            )
            waits.append(
                connection.execute(
                    sa.text("select retry_at - now() from cliniko.scheduling where organization_id = 'alpha'")
                ).scalar_one()
            )
    assert [wait // timedelta(minutes=1) for wait in waits] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert deployment.scheduling("beta").retry_at is None

    assert deployment.sync("alpha").success
    assert deployment.scheduling("alpha").retry_at is None


def test_a_run_that_failed_for_a_reason_that_passes_is_requested_again(deployment: Deployment) -> None:
    deployment.tick()
    deployment.sandbox.faults = Faults(reset_before_body_rate=1.0)
    result = deployment.sync("alpha")
    assert not result.success, errors_of(result)
    retry_at = deployment.scheduling("alpha").retry_at
    assert retry_at is not None
    assert "alpha" in deployment.tick(retry_at)
    assert deployment.scheduling("alpha").retry_at is None


# --- Partitions -------------------------------------------------------------------------------------------


def test_partitions_follow_the_organizations(deployment: Deployment) -> None:
    deployment.watch_partitions()
    assert deployment.partitions == {"alpha", "beta"}
    assert "those of the organizations" in (deployment.watch_partitions() or "")
    with deployment.pipeline.database.operator() as connection:
        organizations.set_active(connection, "alpha", active=False)
    deployment.watch_partitions()
    assert deployment.partitions == {"beta"}


def test_a_partition_whose_run_goes_on_is_not_removed(deployment: Deployment) -> None:
    deployment.watch_partitions()
    deployment.pipeline.instance.create_run_for_job(
        deployment.pipeline.definitions.resolve_job_def("cliniko_sync"),
        status=dg.DagsterRunStatus.STARTING,
        tags={"dagster/partition": "alpha"},
    )
    organizations.remove(deployment.pipeline.database, "alpha")
    organizations.remove(deployment.pipeline.database, "beta")
    deployment.watch_partitions()
    assert deployment.partitions == {"alpha"}


def test_while_the_organizations_cannot_be_read_no_partition_goes(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.watch_partitions()
    with deployment.pipeline.database.operator() as connection:
        connection.exec_driver_sql("alter table public.api_credentials rename to away")
    assert "Nothing is changed" in (deployment.watch_partitions() or "")
    assert deployment.partitions == {"alpha", "beta"}
