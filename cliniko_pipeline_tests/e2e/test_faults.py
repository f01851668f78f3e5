"""Tests of syncs while Cliniko, the network or the database fails, and of records that cannot be understood."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline_tests.support.hostile_accounts import individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import (
    PipelineUnderTest,
    SkippedTime,
    errors_of,
    materializations_of,
    opened_pipeline,
)
from cliniko_pipeline_tests.support.synced_organizations import SyncedOrganization, synced_demo
from cliniko_pipeline_tests.support.waiting import wait_until

RESULTS = ("cliniko.contact_mapping", "public.active_patients")
OTHER_SESSIONS = (
    "pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    " and backend_type = 'client backend'"
)


@pytest.fixture
def waits() -> SkippedTime:
    return SkippedTime()


@pytest.fixture
def pipeline(environ: dict[str, str], waits: SkippedTime) -> Iterator[PipelineUnderTest]:
    """Yield a pipeline whose client waits without taking time."""
    with opened_pipeline(environ, waits=waits) as opened:
        yield opened


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[SyncedOrganization]:
    with synced_demo(pipeline) as organization:
        yield organization


def fail(clinic: SyncedOrganization, faults: Faults, *, full: bool = False) -> str:
    """Sync with the faults. Assert that the sync fails, and return its errors."""
    clinic.sandbox.faults = faults
    try:
        return clinic.fail(full=full)
    finally:
        clinic.sandbox.faults = Faults()


def results(clinic: SyncedOrganization) -> dict[str, Any]:
    tables = clinic.pipeline.tables(clinic.id)
    return {name: tables[name] for name in RESULTS}


NO_RESULTS: dict[str, Any] = {name: [] for name in RESULTS}


def test_passing_faults_change_nothing_stored(pipeline: PipelineUnderTest, waits: SkippedTime) -> None:
    with synced_demo(pipeline, "harbour-pilates") as clinic:
        clinic.sandbox.faults = Faults(
            seed=2,
            server_error_rate=0.05,
            reset_before_body_rate=0.01,
            reset_in_body_rate=0.01,
            truncated_body_rate=0.02,
            html_ok_rate=0.03,
            html_bad_gateway_rate=0.03,
            too_many_requests_first=3,
            too_many_requests_rate=0.03,
        )
        clinic.sync()
        assert waits.skipped > 0
        clinic.assert_right()
        amid_faults = pipeline.contents(clinic.id)

        organizations.delete_tenant_rows(pipeline.database, clinic.id)
        clinic.sandbox.faults = Faults()
        clinic.sync()
        assert pipeline.contents(clinic.id) == amid_faults


def test_429_waits_are_summed_in_the_run(clinic: SyncedOrganization, waits: SkippedTime) -> None:
    clinic.sandbox.faults = Faults(too_many_requests_first=5, too_many_requests_wait_seconds=60.0)
    clinic.sync()
    clinic.assert_right()
    assert clinic.sandbox.counters.rate_limited == 5
    assert waits.skipped >= 5 * 60
    assert clinic.last_run().seconds_waited >= 5 * 60


LASTING_FAULTS = {
    Faults(broken_pages=(BrokenPage("individual_appointments", 2, status=404),)): (
        "individual_appointments, page 2",
        "answer 404",
    ),
    Faults(server_error_rate=1.0, server_error_statuses=(500,)): ("patients, page 1", "6 attempts", "6 answers 500"),
    Faults(truncated_body_rate=1.0): ("patients, page 1", "given up after 6 attempts", "6 broken connections"),
    Faults(html_ok_rate=1.0): ("patients, page 1", "appointment_types, page 1", "6 unreadable answers"),
    Faults(too_many_requests_rate=1.0): (
        "patients, page 1",
        "6 answers 429",
        "give the pipeline its own user",
    ),
    Faults(not_an_object_rate=1.0): ("patients", "not the list of patients that its API promises"),
}


def test_lasting_fault_fails_the_sync_and_keeps_the_results(clinic: SyncedOrganization) -> None:
    """The results stay unchanged until a sync succeeds. They are not computed from an incomplete crawl."""
    clinic.sync()
    before = results(clinic)
    clinic.put("patients", patient("990001", "New", "Person", clinic.contacts[0]["email"]))
    clinic.put("individual_appointments", individual_appointment("990002", "990001", "2026-06-14T10:00:00Z"))

    for faults, parts in LASTING_FAULTS.items():
        message = fail(clinic, faults, full=True)
        assert results(clinic) == before
        run = clinic.last_run()
        assert run.status == "failed"
        assert run.finished_at is not None
        assert clinic.id in (run.error or "")
        for part in parts:
            assert part in message
        assert parts[0] in (run.error or "") or parts[-1] in (run.error or "")

    for asset in ("contact_mapping", "active_patients"):
        alone = clinic.pipeline.materialize(clinic.id, asset)
        assert not alone.success
        assert "is not complete: materialize" in errors_of(alone)[0]
        assert "materialize cliniko/patients and cliniko/appointments first" in errors_of(alone)[0]
        assert results(clinic) == before

    clinic.sync()
    clinic.assert_right()
    assert clinic.last_run().status == "succeeded"


def test_other_hosts_get_no_request(clinic: SyncedOrganization) -> None:
    """Links and redirects are not followed. A first sync that fails leaves no results."""
    with running_sandbox([]) as other:
        origin = f"http://{other.host}"
        httpx.get(origin)
        assert other.counters.requests() == 1
        other.counters.clear()
        following = fail(clinic, Faults(next_links_to=origin))
        assert "the link to the next page leaves the organization's API URL and was not followed" in following
        redirected = fail(clinic, Faults(redirect_rate=1.0, redirect_to=origin))
        assert "Cliniko answered with a redirect, which is not followed" in redirected
        assert other.counters.requests() == 0
    assert clinic.last_run().status == "failed"
    assert results(clinic) == NO_RESULTS
    clinic.sync()
    clinic.assert_right()


@pytest.mark.parametrize(
    "page",
    [BrokenPage("individual_appointments", 3), pytest.param(BrokenPage("patients", 1), marks=pytest.mark.slow)],
    ids=lambda page: page.resource,
)
def test_connections_lost_between_statements_fail_the_sync(environ: dict[str, str], page: BrokenPage) -> None:
    """The sync must fail, because it also lost the organization lock and another run may be writing."""
    ended: list[int] = []

    def end_connections() -> None:
        # The crawl reads pages while earlier pages are being written.
        wait_until(lambda: not _sessions(pipeline, "xact_start is not null"), "something is being written")
        ended.append(_end_sessions(pipeline))
        clinic.sandbox.faults = Faults()

    with (
        opened_pipeline(environ, waits=SkippedTime(on_sleep=end_connections)) as pipeline,
        synced_demo(pipeline) as clinic,
    ):
        message = fail(clinic, Faults(broken_pages=(page,)))
        assert "PostgreSQL cannot be used" in message or "was lost" in message
        assert len(ended) == 1
        assert ended[0] >= 1
        clinic.sync()
        clinic.assert_right()


ENDED_BY_THE_SERVER = "PostgreSQL cannot be used", "the server shut down or ended the connection"


def test_connection_lost_in_a_statement_fails_the_sync(clinic: SyncedOrganization) -> None:
    clinic.sync()
    before = results(clinic)["public.active_patients"]
    for number, table in enumerate(("cliniko.patients", *RESULTS)):
        clinic.put("patients", patient(f"99000{number}", "New", "Person"))
        with _ending_the_session_that_writes_to(clinic.pipeline, table):
            message = clinic.fail()
        assert any(each in message for each in ENDED_BY_THE_SERVER), message
        run = clinic.last_run()
        assert run.status == "failed"
        assert any(each in (run.error or "") for each in ENDED_BY_THE_SERVER)
        assert results(clinic)["public.active_patients"] == before
    clinic.sync()
    clinic.assert_right()


@contextmanager
def _ending_the_session_that_writes_to(pipeline: PipelineUnderTest, table: str) -> Iterator[None]:
    """Hold a lock that the first write must wait for, and end the waiting session."""
    engine = sa.create_engine(pipeline.database.url, isolation_level="AUTOCOMMIT")
    is_over = threading.Event()

    def end_the_waiting_session(holder: sa.Connection) -> None:
        try:
            wait_until(lambda: is_over.is_set() or _end_sessions(pipeline, "cardinality(pg_blocking_pids(pid)) > 0"))
        finally:
            holder.exec_driver_sql("rollback")

    with engine.connect() as holder:
        holder.exec_driver_sql("begin")
        holder.exec_driver_sql(f"lock table {table} in share row exclusive mode")
        thread = threading.Thread(target=end_the_waiting_session, args=(holder,))
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
    engine.dispose()


def _sessions(pipeline: PipelineUnderTest, condition: str) -> int:
    with pipeline.database.operator() as connection:
        return connection.exec_driver_sql(f"select count(*) from {OTHER_SESSIONS} and {condition}").scalar_one()


def _end_sessions(pipeline: PipelineUnderTest, condition: str = "true") -> int:
    engine = sa.create_engine(pipeline.database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        statement = f"select count(pg_terminate_backend(pid)) from {OTHER_SESSIONS} and {condition}"
        ended = connection.exec_driver_sql(statement).scalar_one()
    engine.dispose()
    return ended


def test_rejected_record_is_stored_when_it_is_mended(clinic: SyncedOrganization) -> None:
    good = patient("990001", "Set", "Aside", "aside@example.org")
    clinic.account.put("patients", good | {"archived_at": "soon"})

    result = clinic.sync()

    clinic.assert_right()
    (rejected,) = clinic.rows("cliniko.rejected_records")
    assert (rejected["resource"], rejected["id"]) == ("patients", "990001")
    assert rejected["reason"].startswith("archived_at: ")
    assert "soon" not in rejected["reason"]
    metadata = materializations_of(result)["cliniko/patients"]
    assert metadata["records_rejected"] == 1
    (shown,) = metadata["problems"].records
    assert shown.data == {"resource": "patients", "reason": rejected["reason"], "records": 1}
    assert clinic.last_run().rejected_records == 1
    (run,) = clinic.rows("cliniko.sync_runs")
    assert run["assets"]["cliniko/patients"]["rejected"] == 1
    assert "990001" not in clinic.pipeline.contact_mapping(clinic.id)

    clinic.put("patients", good)
    clinic.sync()
    assert clinic.rows("cliniko.rejected_records") == []
    assert clinic.last_run().rejected_records == 0
    assert "990001" in clinic.pipeline.contact_mapping(clinic.id)
    clinic.assert_right()

    # A stored record that is now rejected stays as it was stored.
    before = results(clinic)["cliniko.contact_mapping"]
    clinic.account.put("patients", {**good, "first_name": "Other", "updated_at": "yesterday"})
    clinic.sync()
    assert results(clinic)["cliniko.contact_mapping"] == before
    assert clinic.last_run().rejected_records == 1
