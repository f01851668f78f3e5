"""Tests of the effects of received webhook events. orchestration/plans/test_webhooks.py has tests of the rules."""

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.retention.pruning import Prune
from cliniko_pipeline.orchestration.schedules import cliniko_syncs
from cliniko_pipeline.orchestration.sensors import webhook_syncs
from cliniko_pipeline.postgres.operator_tables import webhooks
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.pipelines import errors_of

MOVE = "update cliniko.webhook_events set received_at = :at where message_id = :id"


@pytest.fixture(autouse=True)
def _partitions(deployment: Deployment) -> None:
    ensure_partitions(deployment.instance, ["alpha", "beta"])


def receive(deployment: Deployment, *message_ids: str, organization_id: str = "alpha") -> None:
    with deployment.database.operator() as connection:
        for message_id in message_ids:
            assert webhooks.note_event(connection, organization_id, message_id, None)


def tick(deployment: Deployment) -> Sequence[dg.RunRequest]:
    return deployment.evaluate(webhook_syncs).run_requests or []


def pending(deployment: Deployment) -> dict[str, int]:
    with deployment.database.operator() as connection:
        return {name: each.events for name, each in webhooks.pending_events(connection).items()}


def stored_events(deployment: Deployment) -> set[str]:
    return set(deployment.execute("select message_id from cliniko.webhook_events"))


def pass_a_minute(deployment: Deployment) -> None:
    deployment.execute("update cliniko.scheduling set requested_at = requested_at - interval '1 minute'")


def test_events_request_one_sync_that_settles_them(deployment: Deployment) -> None:
    receive(deployment, "1", "2", "3")
    (request,) = tick(deployment)
    assert request.partition_key == request.tags["dagster/partition"] == "alpha"
    job = deployment.pipeline.definitions.resolve_job_def("cliniko_sync")
    result = job.execute_in_process(
        instance=deployment.instance,
        partition_key=request.partition_key,
        run_config=request.run_config,
        tags={"dagster/run_key": request.run_key or ""},
    )
    assert result.success, errors_of(result)
    assert pending(deployment) == {}
    pass_a_minute(deployment)
    assert tick(deployment) == []


def test_webhook_and_schedule_request_equal_runs(deployment: Deployment) -> None:
    """The HTTP API reads from the tags whether the sync is full, before the run has started."""
    scheduled = {request.partition_key: request for request in deployment.requests(cliniko_syncs)}["alpha"]
    pass_a_minute(deployment)
    receive(deployment, "1")
    (announced,) = tick(deployment)
    tags = {"dagster/partition": "alpha", "cliniko_pipeline/full": "false", "dagster-celery/queue": "long"}
    assert announced.tags == tags | {"dagster/sensor_name": "webhook_syncs"}
    assert scheduled.tags == tags | {"dagster/schedule_name": "cliniko_syncs"}
    assert announced.run_config == scheduled.run_config


def test_request_is_repeated_until_it_has_a_run(deployment: Deployment) -> None:
    receive(deployment, "1")
    (first,) = tick(deployment)
    assert tick(deployment) == [], "it was just requested"
    pass_a_minute(deployment)
    (second,) = tick(deployment)
    assert first.run_key == second.run_key
    assert pending(deployment) == {"alpha": 1}, "a request settles nothing"
    deployment.add_run(dg.DagsterRunStatus.CANCELED, {"dagster/run_key": first.run_key or ""})
    pass_a_minute(deployment)
    before = deployment.scheduling("alpha").requested_at
    assert tick(deployment) == []
    assert deployment.scheduling("alpha").requested_at == before, "the scheduled sync is not postponed"
    receive(deployment, "2")
    assert len(tick(deployment)) == 1


def test_sync_is_requested_without_a_run_and_with_a_partition(deployment: Deployment) -> None:
    receive(deployment, "1")
    receive(deployment, "1", organization_id="beta")
    deployment.add_run(dg.DagsterRunStatus.STARTED, {"dagster/partition": "alpha"})
    deployment.instance.delete_dynamic_partition("organizations", "beta")
    assert tick(deployment) == []
    deployment.watch_partitions()
    assert [request.partition_key for request in tick(deployment)] == ["beta"]


def test_event_received_during_a_sync_stays_pending(deployment: Deployment) -> None:
    receive(deployment, "before", "during")
    assert deployment.sync("alpha", full=True).success
    (started,) = deployment.pipeline.rows("alpha", "cliniko.sync_runs")
    began = started["started_at"]
    deployment.execute(MOVE, at=began - timedelta(milliseconds=1), id="before")
    deployment.execute(MOVE, at=began, id="during")
    assert pending(deployment) == {"alpha": 1}
    deployment.change("alpha")
    assert len(tick(deployment)) == 1
    assert deployment.sync("alpha").success
    assert pending(deployment) == {}


def test_probe_that_finds_nothing_settles_events_without_a_run(deployment: Deployment) -> None:
    assert deployment.sync("alpha").success
    receive(deployment, "1")
    pass_a_minute(deployment)
    assert pending(deployment) == {"alpha": 1}
    assert tick(deployment) == []
    assert pending(deployment) == {}
    receive(deployment, "2")
    deployment.change("alpha")
    pass_a_minute(deployment)
    assert len(tick(deployment)) == 1


def test_partial_or_failed_sync_settles_no_event(deployment: Deployment) -> None:
    assert deployment.sync("alpha").success
    receive(deployment, "1")
    assert deployment.pipeline.materialize("alpha", "contact_mapping", "active_patients").success
    assert deployment.pipeline.materialize("alpha", "cliniko/patients").success
    assert pending(deployment) == {"alpha": 1}
    deployment.accounts["alpha"].forbidden_resources = {"individual_appointments"}
    assert not deployment.sync("alpha").success
    assert pending(deployment) == {"alpha": 1}


def test_old_event_is_forgotten_unless_it_requests_a_sync(deployment: Deployment) -> None:
    hours_ago = {
        "alpha": {"settled": 100, "earlier": 90, "fresh": 80, "latest": 79},
        "beta": {"old": 99, "new": 1, "settled and new": 2},
        "gone": {"of nobody": 99},
    }
    for organization_id, events in hours_ago.items():
        receive(deployment, *events, organization_id=organization_id)
        for message_id, hours in events.items():
            at = f"update cliniko.webhook_events set received_at = now() - interval '{hours} hours'"
            deployment.execute(f"{at} where message_id = :id", id=message_id)
    deployment.execute(
        "insert into cliniko.scheduling (organization_id, read_began_at) values ('alpha', now() - interval '95 hours'),"
        " ('beta', now() - interval '90 minutes')"
    )
    assert pending(deployment) == {"alpha": 3, "beta": 1, "gone": 1}
    prune = Prune(deployment.pipeline.runtime, deployment.instance)
    prune.run()
    assert stored_events(deployment) == {"latest", "new", "settled and new"}
    assert pending(deployment) == {"alpha": 1, "beta": 1}
    deployment.execute("update cliniko.scheduling set read_began_at = now()")
    prune.run()
    assert stored_events(deployment) == {"new", "settled and new"}


def test_tick_takes_few_statements_for_many_events(deployment: Deployment) -> None:
    receive(deployment, *(str(number) for number in range(50)))
    statements: list[str] = []
    sa.event.listen(deployment.database._engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    tick(deployment)
    assert 0 < len(statements) < 25


def test_clock_set_back_settles_no_later_event(deployment: Deployment) -> None:
    receive(deployment, "by the clock that was ahead")
    assert deployment.sync("alpha").success
    deployment.execute("update cliniko.webhook_events set received_at = received_at + interval '1 hour'")
    deployment.execute("update cliniko.scheduling set read_began_at = read_began_at + interval '1 hour'")
    receive(deployment, "now")
    deployment.change("alpha")
    (requested,) = tick(deployment)
    deployment.add_run(dg.DagsterRunStatus.SUCCESS, {"dagster/run_key": requested.run_key or ""})
    assert deployment.sync("alpha").success
    receive(deployment, "later")
    deployment.change("alpha")
    pass_a_minute(deployment)
    (request,) = tick(deployment)
    assert request.run_key != requested.run_key
    assert deployment.sync("alpha").success
    deployment.execute("delete from cliniko.webhook_events where received_at > now()")
    assert pending(deployment) == {}
