"""What webhooks have said leads to syncs, and is settled by nothing else: the sensor on a real Dagster instance."""

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.sensors import webhook_syncs
from cliniko_pipeline.postgres import organizations, scheduling, webhooks
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline_tests.support.deployments import Deployment, paused
from cliniko_pipeline_tests.support.pipelines import errors_of

SECOND = timedelta(seconds=1)


@pytest.fixture
def database(deployment: Deployment) -> Database:
    ensure_partitions(deployment.pipeline.instance, ["alpha", "beta"])
    return deployment.pipeline.database


def receive(database: Database, *message_ids: str, organization_id: str = "alpha") -> None:
    with database.operator() as connection:
        for each in message_ids:
            assert webhooks.note_event(connection, organization_id, each, None)


def tick(deployment: Deployment) -> Sequence[dg.RunRequest]:
    context = dg.build_sensor_context(instance=deployment.pipeline.instance, resources=deployment.resources)
    return webhook_syncs.evaluate_tick(context).run_requests or []


def pending(database: Database) -> dict[str, int]:
    with database.operator() as connection:
        return {name: each.events for name, each in webhooks.pending_events(connection).items()}


def execute(database: Database, statement: str, **values: object) -> None:
    with database.operator() as connection:
        connection.execute(sa.text(statement), values)


def a_minute_passes(database: Database) -> None:
    execute(
        database,
        "update cliniko.scheduling set requested_at = requested_at - interval '1 minute',"
        " retry_at = retry_at - interval '1 minute'",
    )


def add_run(deployment: Deployment, status: dg.DagsterRunStatus, **tags: str) -> None:
    run = dg.DagsterRun(
        job_name="cliniko_sync", status=status, tags={name.replace("__", "/"): value for name, value in tags.items()}
    )
    deployment.pipeline.instance.add_run(run)


def test_all_that_has_come_is_one_incremental_run_that_can_be_run_and_settles_it(
    deployment: Deployment, database: Database
) -> None:
    receive(database, "1", "2", "3")
    (request,) = tick(deployment)
    assert request.partition_key == "alpha"
    assert request.tags["dagster/partition"] == "alpha"
    job = deployment.pipeline.definitions.resolve_job_def("cliniko_sync")
    result = job.execute_in_process(
        instance=deployment.pipeline.instance,
        partition_key=request.partition_key,
        run_config=request.run_config,
        tags={"dagster/run_key": request.run_key or ""},
    )
    assert result.success, errors_of(result)
    assert pending(database) == {}
    a_minute_passes(database)
    assert tick(deployment) == []


def test_a_tick_of_which_nothing_came_is_repeated_with_the_same_key(deployment: Deployment, database: Database) -> None:
    receive(database, "1")
    (first,) = tick(deployment)
    assert tick(deployment) == [], "not at once"
    a_minute_passes(database)
    (second,) = tick(deployment)
    assert first.run_key == second.run_key
    assert pending(database) == {"alpha": 1}, "what was requested is not yet read"


def test_what_dagster_has_made_is_not_requested_again_and_does_not_keep_the_schedule_from_its_turn(
    deployment: Deployment, database: Database
) -> None:
    receive(database, "1")
    (request,) = tick(deployment)
    add_run(deployment, dg.DagsterRunStatus.CANCELED, dagster__run_key=request.run_key or "")
    a_minute_passes(database)
    before = deployment.scheduling("alpha").requested_at
    assert tick(deployment) == []
    assert deployment.scheduling("alpha").requested_at == before
    receive(database, "2")
    assert len(tick(deployment)) == 1


def test_while_a_run_goes_on_nothing_is_requested(deployment: Deployment, database: Database) -> None:
    receive(database, "1")
    receive(database, "1", organization_id="beta")
    add_run(deployment, dg.DagsterRunStatus.STARTED, dagster__partition="alpha")
    assert [each.partition_key for each in tick(deployment)] == ["beta"]


def test_an_organization_that_has_no_partition_yet_waits_for_it(deployment: Deployment, database: Database) -> None:
    receive(database, "1")
    deployment.pipeline.instance.delete_dynamic_partition("organizations", "alpha")
    assert tick(deployment) == []
    deployment.watch_partitions()
    assert len(tick(deployment)) == 1


def test_an_organization_that_the_schedule_leaves_alone_is_synced(deployment: Deployment, database: Database) -> None:
    with database.operator() as connection:
        scheduling.set_schedule(connection, "alpha", is_on=False)
    receive(database, "1")
    assert len(tick(deployment)) == 1


def test_what_came_while_a_sync_read_is_not_settled_by_it(deployment: Deployment, database: Database) -> None:
    receive(database, "before", "meanwhile")
    assert deployment.sync("alpha").success
    with database.organization("alpha") as connection:
        began = connection.execute(sa.text("select started_at from cliniko.sync_runs")).scalar_one()
    place = "update cliniko.webhook_events set received_at = :at where message_id = :id"
    execute(database, place, at=began - timedelta(milliseconds=1), id="before")
    execute(database, place, at=began, id="meanwhile")
    assert pending(database) == {"alpha": 1}
    a_minute_passes(database)
    assert len(tick(deployment)) == 1
    assert deployment.sync("alpha").success
    assert pending(database) == {}


def test_neither_a_part_of_a_sync_nor_a_failed_one_settles_anything(deployment: Deployment, database: Database) -> None:
    assert deployment.sync("alpha").success
    receive(database, "1")
    assert deployment.pipeline.materialize("alpha", "contact_mapping", "active_patients").success
    assert deployment.pipeline.materialize("alpha", "cliniko/patients").success
    assert pending(database) == {"alpha": 1}
    deployment.accounts["alpha"].forbidden_resources = {"individual_appointments"}
    assert not deployment.sync("alpha").success
    assert pending(database) == {"alpha": 1}


def test_a_sync_of_whatever_kind_settles_what_came_before(deployment: Deployment, database: Database) -> None:
    receive(database, "1")
    assert deployment.pipeline.sync("alpha", full=True).success
    assert pending(database) == {}


def test_what_has_failed_is_tried_again_when_its_time_has_come(deployment: Deployment, database: Database) -> None:
    receive(database, "1")
    (first,) = tick(deployment)
    with database.operator() as connection:
        began = connection.execute(sa.text("select now()")).scalar_one()
        scheduling.note_failure(connection, "alpha", reason="down", run_id="run", begun_at=began, is_permanent=False)
    execute(database, "update cliniko.scheduling set requested_at = requested_at - interval '30 seconds'")
    assert tick(deployment) == []
    a_minute_passes(database)
    (second,) = tick(deployment)
    assert first.run_key != second.run_key


def test_a_paused_or_disabled_organization_keeps_what_was_said_for_later(
    deployment: Deployment, database: Database
) -> None:
    receive(database, "1")
    with database.operator() as connection:
        paused(connection, "alpha", reason="401", run_id="run")
    assert tick(deployment) == []
    with database.operator() as connection:
        scheduling.end_pause(connection, "alpha")
        organizations.set_active(connection, "alpha", active=False)
    assert tick(deployment) == []
    with database.operator() as connection:
        organizations.set_active(connection, "alpha", active=True)
    assert len(tick(deployment)) == 1


def test_only_what_nothing_hangs_on_is_forgotten_and_only_after_days(
    deployment: Deployment, database: Database
) -> None:
    ages = {"settled": 100, "earlier": 90, "latest": 80}
    receive(database, *ages, "fresh", organization_id="alpha")
    receive(database, "old", "new", "settled and new", organization_id="beta")
    receive(database, "of nobody", organization_id="gone")
    place = (
        "update cliniko.webhook_events set received_at = now() - make_interval(hours => :hours) where message_id = :id"
    )
    ages = {"settled": 100, "earlier": 90, "fresh": 80, "latest": 79, "old": 99, "new": 1, "settled and new": 2}
    for message_id, hours in {**ages, "of nobody": 99}.items():
        execute(database, place, hours=hours, id=message_id)
    execute(
        database,
        "insert into cliniko.scheduling (organization_id, read_began_at) values ('alpha', now() - interval '95 hours'),"
        " ('beta', now() - interval '90 minutes')",
    )
    assert pending(database) == {"alpha": 3, "beta": 1, "gone": 1}
    tick(deployment)
    with database.operator() as connection:
        left = set(connection.execute(sa.text("select message_id from cliniko.webhook_events")).scalars())
    assert left == {"latest", "new", "settled and new"}
    assert pending(database) == {"alpha": 1, "beta": 1}
    execute(database, "update cliniko.scheduling set read_began_at = now()")
    tick(deployment)
    with database.operator() as connection:
        left = set(connection.execute(sa.text("select message_id from cliniko.webhook_events")).scalars())
    assert left == {"new", "settled and new"}


def test_a_tick_costs_few_statements_however_much_has_come(deployment: Deployment, database: Database) -> None:
    receive(database, *(str(number) for number in range(200)))
    statements: list[str] = []
    engine = database._engine
    sa.event.listen(engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    tick(deployment)
    assert len(statements) < 10


def test_a_clock_that_is_set_back_settles_nothing_that_comes_after(deployment: Deployment, database: Database) -> None:
    receive(database, "by the clock that was ahead")
    assert deployment.sync("alpha").success
    execute(database, "update cliniko.webhook_events set received_at = received_at + interval '1 hour'")
    execute(database, "update cliniko.scheduling set read_began_at = read_began_at + interval '1 hour'")
    receive(database, "now")
    (requested,) = tick(deployment)
    add_run(deployment, dg.DagsterRunStatus.SUCCESS, dagster__run_key=requested.run_key or "")
    assert deployment.sync("alpha").success
    receive(database, "later")
    a_minute_passes(database)
    (request,) = tick(deployment)
    assert request.run_key != requested.run_key
    assert deployment.sync("alpha").success
    execute(database, "delete from cliniko.webhook_events where received_at > now()")
    assert pending(database) == {}
