"""Syncs requested by received webhook events: the sensor on a real Dagster instance and database."""

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.sensors import webhook_syncs
from cliniko_pipeline.postgres import organizations, scheduling, webhooks
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.pipelines import errors_of

MOVE = "update cliniko.webhook_events set received_at = :at where message_id = :id"


@pytest.fixture(autouse=True)
def _partitions(deployment: Deployment) -> None:
    ensure_partitions(deployment.instance, ["alpha", "beta"])


def receive(deployment: Deployment, *message_ids: str, organization_id: str = "alpha") -> None:
    with deployment.database.operator() as connection:
        for each in message_ids:
            assert webhooks.note_event(connection, organization_id, each, None)


def tick(deployment: Deployment) -> Sequence[dg.RunRequest]:
    return deployment.evaluate(webhook_syncs).run_requests or []


def pending(deployment: Deployment) -> dict[str, int]:
    with deployment.database.operator() as connection:
        return {name: each.events for name, each in webhooks.pending_events(connection).items()}


def stored_events(deployment: Deployment) -> set[str]:
    return set(deployment.execute("select message_id from cliniko.webhook_events"))


def let_pass(deployment: Deployment, time: str) -> None:
    deployment.execute(
        "update cliniko.scheduling set requested_at = requested_at - cast(:time as interval),"
        " retry_at = retry_at - cast(:time as interval)",
        time=time,
    )


def test_events_request_one_sync_that_settles_them(deployment: Deployment) -> None:
    receive(deployment, "1", "2", "3")
    (request,) = tick(deployment)
    assert request.partition_key == "alpha"
    assert request.tags["dagster/partition"] == "alpha"
    job = deployment.pipeline.definitions.resolve_job_def("cliniko_sync")
    result = job.execute_in_process(
        instance=deployment.instance,
        partition_key=request.partition_key,
        run_config=request.run_config,
        tags={"dagster/run_key": request.run_key or ""},
    )
    assert result.success, errors_of(result)
    assert pending(deployment) == {}
    let_pass(deployment, "1 minute")
    assert tick(deployment) == []


def test_request_without_a_run_is_repeated_with_its_key(deployment: Deployment) -> None:
    receive(deployment, "1")
    (first,) = tick(deployment)
    assert tick(deployment) == [], "it was just requested"
    let_pass(deployment, "1 minute")
    (second,) = tick(deployment)
    assert first.run_key == second.run_key
    assert pending(deployment) == {"alpha": 1}, "a request settles nothing"


def test_request_with_a_run_is_not_repeated(deployment: Deployment) -> None:
    """Nor does it postpone the organization's next scheduled sync."""
    receive(deployment, "1")
    (request,) = tick(deployment)
    deployment.add_run(dg.DagsterRunStatus.CANCELED, {"dagster/run_key": request.run_key or ""})
    let_pass(deployment, "1 minute")
    before = deployment.scheduling("alpha").requested_at
    assert tick(deployment) == []
    assert deployment.scheduling("alpha").requested_at == before
    receive(deployment, "2")
    assert len(tick(deployment)) == 1


def test_no_sync_is_requested_while_a_run_is_in_flight(deployment: Deployment) -> None:
    receive(deployment, "1")
    receive(deployment, "1", organization_id="beta")
    deployment.add_run(dg.DagsterRunStatus.STARTED, {"dagster/partition": "alpha"})
    assert [each.partition_key for each in tick(deployment)] == ["beta"]


def test_sync_is_requested_when_the_partition_exists(deployment: Deployment) -> None:
    receive(deployment, "1")
    deployment.instance.delete_dynamic_partition("organizations", "alpha")
    assert tick(deployment) == []
    deployment.watch_partitions()
    assert len(tick(deployment)) == 1


def test_event_received_during_a_sync_stays_pending(deployment: Deployment) -> None:
    receive(deployment, "before", "during")
    assert deployment.sync("alpha", full=True).success
    (started,) = deployment.pipeline.rows("alpha", "cliniko.sync_runs")
    began = started["started_at"]
    deployment.execute(MOVE, at=began - timedelta(milliseconds=1), id="before")
    deployment.execute(MOVE, at=began, id="during")
    assert pending(deployment) == {"alpha": 1}
    let_pass(deployment, "1 minute")
    assert len(tick(deployment)) == 1
    assert deployment.sync("alpha").success
    assert pending(deployment) == {}


def test_partial_or_failed_sync_settles_no_event(deployment: Deployment) -> None:
    assert deployment.sync("alpha").success
    receive(deployment, "1")
    assert deployment.pipeline.materialize("alpha", "contact_mapping", "active_patients").success
    assert deployment.pipeline.materialize("alpha", "cliniko/patients").success
    assert pending(deployment) == {"alpha": 1}
    deployment.accounts["alpha"].forbidden_resources = {"individual_appointments"}
    assert not deployment.sync("alpha").success
    assert pending(deployment) == {"alpha": 1}


def test_failed_sync_is_retried_when_due(deployment: Deployment) -> None:
    receive(deployment, "1")
    (first,) = tick(deployment)
    with deployment.database.operator() as connection:
        began = connection.execute(sa.text("select now()")).scalar_one()
        scheduling.note_failure(connection, "alpha", reason="down", run_id="run", begun_at=began, is_permanent=False)
        connection.execute(sa.text("update cliniko.scheduling set retry_at = now() + interval '1 hour'"))
    let_pass(deployment, "30 minutes")
    assert tick(deployment) == []
    let_pass(deployment, "30 minutes")
    (second,) = tick(deployment)
    assert first.run_key != second.run_key


def test_events_of_a_paused_or_disabled_organization_wait(deployment: Deployment) -> None:
    receive(deployment, "1")
    deployment.pause("alpha")
    assert tick(deployment) == []
    with deployment.database.operator() as connection:
        scheduling.end_pause(connection, "alpha")
        organizations.set_active(connection, "alpha", active=False)
    assert tick(deployment) == []
    with deployment.database.operator() as connection:
        organizations.set_active(connection, "alpha", active=True)
    assert len(tick(deployment)) == 1


def test_old_event_is_forgotten_unless_it_requests_a_sync(deployment: Deployment) -> None:
    alpha = {"settled": 100, "earlier": 90, "fresh": 80, "latest": 79}
    beta = {"old": 99, "new": 1, "settled and new": 2}
    gone = {"of nobody": 99}
    for organization_id, hours in {"alpha": alpha, "beta": beta, "gone": gone}.items():
        receive(deployment, *hours, organization_id=organization_id)
    for message_id, hours in {**alpha, **beta, **gone}.items():
        deployment.execute(
            "update cliniko.webhook_events set received_at = now() - make_interval(hours => :hours)"
            " where message_id = :id",
            hours=hours,
            id=message_id,
        )
    deployment.execute(
        "insert into cliniko.scheduling (organization_id, read_began_at) values ('alpha', now() - interval '95 hours'),"
        " ('beta', now() - interval '90 minutes')"
    )
    assert pending(deployment) == {"alpha": 3, "beta": 1, "gone": 1}
    tick(deployment)
    assert stored_events(deployment) == {"latest", "new", "settled and new"}
    assert pending(deployment) == {"alpha": 1, "beta": 1}
    deployment.execute("update cliniko.scheduling set read_began_at = now()")
    tick(deployment)
    assert stored_events(deployment) == {"new", "settled and new"}


def test_tick_takes_few_statements_for_many_events(deployment: Deployment) -> None:
    receive(deployment, *(str(number) for number in range(200)))
    statements: list[str] = []
    sa.event.listen(deployment.database._engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    tick(deployment)
    assert 0 < len(statements) < 10


def test_clock_set_back_settles_no_later_event(deployment: Deployment) -> None:
    receive(deployment, "by the clock that was ahead")
    assert deployment.sync("alpha").success
    deployment.execute("update cliniko.webhook_events set received_at = received_at + interval '1 hour'")
    deployment.execute("update cliniko.scheduling set read_began_at = read_began_at + interval '1 hour'")
    receive(deployment, "now")
    (requested,) = tick(deployment)
    deployment.add_run(dg.DagsterRunStatus.SUCCESS, {"dagster/run_key": requested.run_key or ""})
    assert deployment.sync("alpha").success
    receive(deployment, "later")
    let_pass(deployment, "1 minute")
    (request,) = tick(deployment)
    assert request.run_key != requested.run_key
    assert deployment.sync("alpha").success
    deployment.execute("delete from cliniko.webhook_events where received_at > now()")
    assert pending(deployment) == {}
