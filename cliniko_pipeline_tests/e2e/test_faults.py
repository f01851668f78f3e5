"""The main job while Cliniko, the network, the database or the process itself fails."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.postgres import organizations, sync_runs
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.demo import DemoOrganization, demo_organizations
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import hand_written_account, individual_appointment, patient
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import (
    PipelineUnderTest,
    SkippedTime,
    errors_of,
    materializations_of,
    opened_pipeline,
    sync_in_a_process,
)

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
SMALL = "old-mill-physio"
RESULTS = ("cliniko.contact_mapping", "public.active_patients")


class Clinic:
    """A demo organization, served by a sandbox that can be made to fail. Waits take no time."""

    def __init__(
        self, demo: DemoOrganization, pipeline: PipelineUnderTest, sandbox: Sandbox, waits: SkippedTime
    ) -> None:
        self.pipeline = pipeline
        self.sandbox = sandbox
        self.waits = waits
        self.id = demo.id
        self.account = demo.account
        self.contacts = [contact | {"id": UUID(contact["id"])} for contact in demo.contacts]
        pipeline.add_organization(self.id, sandbox, self.account)
        pipeline.add_contacts(self.contacts)

    def sync(self, faults: Faults | None = None, *, full: bool = False):
        self.sandbox.faults = faults or Faults()
        return self.pipeline.sync(self.id, AS_OF, full=full)

    def sync_well(self, faults: Faults | None = None) -> None:
        result = self.sync(faults)
        assert result.success, errors_of(result)

    def sync_badly(self, faults: Faults | None = None, *, full: bool = False) -> str:
        """What the failed run says. There must be one failure for each of the assets that could not be read."""
        result = self.sync(faults, full=full)
        assert not result.success
        return "\n".join(errors_of(result))

    def change(self, resource: str, record: dict[str, Any]) -> None:
        """Puts the record as one that changed just now, by the sandbox's clock."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.account.put(resource, record | {"updated_at": now})

    def results(self) -> dict[str, Any]:
        tables = self.pipeline.tables(self.id)
        return {name: tables[name] for name in RESULTS}

    def last_run(self) -> sync_runs.OrganizationStatus:
        with self.pipeline.database.organization(self.id) as connection:
            return sync_runs.organization_status(connection)

    def assert_right(self) -> None:
        wire = {name: self.account.wire_records(name, "http://sandbox/v1") for name in RESOURCES}
        assert self.pipeline.contact_mapping(self.id) == expected_contact_mapping(wire, self.contacts, self.id)
        assert self.pipeline.active_patients(self.id) == expected_active_patients(wire, self.contacts, self.id, AS_OF)


RESOURCES = (
    "patients",
    "individual_appointments",
    "group_appointments",
    "attendees",
    "appointment_types",
    "practitioners",
)


@pytest.fixture
def environ(database_url: URL, tmp_path: Path) -> dict[str, str]:
    return environment(database_url, tmp_path)


@contextmanager
def opened_clinic(environ: dict[str, str], waits: SkippedTime, organization_id: str = SMALL) -> Iterator[Clinic]:
    demo = next(demo for demo in demos() if demo.id == organization_id)
    # A copy, which the test may change.
    records = {resource: list(found.values()) for resource, found in demo.account.records.items()}
    account = Account.from_records(demo.account.name, demo.account.shard, demo.account.api_key, records)
    with (
        opened_pipeline(environ, waits=waits) as pipeline,
        pipeline.sandbox([account]) as sandbox,
    ):
        yield Clinic(replace(demo, account=account), pipeline, sandbox, waits)


@cache
def demos() -> list[DemoOrganization]:
    return list(demo_organizations(AS_OF))


@pytest.fixture
def clinic(environ: dict[str, str]) -> Iterator[Clinic]:
    with opened_clinic(environ, SkippedTime()) as clinic:
        yield clinic


# --- What passes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("organization_id", "seed"), [("surf-rehab", 1), ("harbour-pilates", 2)])
def test_a_sync_amid_passing_faults_stores_exactly_what_one_without_them_stores(
    environ: dict[str, str], organization_id: str, seed: int
) -> None:
    with opened_clinic(environ, SkippedTime(), organization_id) as clinic:
        clinic.sync_well(
            Faults(
                seed=seed,
                server_error_rate=0.05,
                reset_before_body_rate=0.01,
                reset_in_body_rate=0.01,
                truncated_body_rate=0.02,
                html_ok_rate=0.03,
                html_bad_gateway_rate=0.03,
                too_many_requests_first=3,
                too_many_requests_rate=0.03,
            )
        )
        assert clinic.waits.skipped > 0
        clinic.assert_right()
        amid_faults = clinic.pipeline.contents(clinic.id)

        organizations.delete_tenant_rows(clinic.pipeline.database, clinic.id)
        clinic.sync_well()
        assert clinic.pipeline.contents(clinic.id) == amid_faults


def test_a_storm_of_refusals_is_waited_out(clinic: Clinic) -> None:
    clinic.sync_well(Faults(too_many_requests_first=5, too_many_requests_wait_seconds=60.0))
    clinic.assert_right()
    assert clinic.sandbox.counters.rate_limited == 5
    assert clinic.waits.skipped >= 5 * 60
    assert clinic.last_run().seconds_waited >= 5 * 60


def test_answers_that_never_come_are_asked_for_again(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ClinikoClient.__init__.__kwdefaults__, "timeout", httpx.Timeout(0.3))
    clinic.sync_well(Faults(seed=4, hang_rate=0.2, hang_seconds=2.0))
    clinic.assert_right()
    assert clinic.sandbox.counters.requests(status=0) > 0


# --- What stays -------------------------------------------------------------------------------------------

STAYING = {
    "a page that is always answered 500": (
        Faults(broken_pages=(BrokenPage("individual_appointments", 2),)),
        ("individual_appointments, page 2", "given up after 6 attempts", "6 answers 500"),
    ),
    "a page that is always cut short": (
        Faults(broken_pages=(BrokenPage("individual_appointments", 2, truncated=True),)),
        ("individual_appointments, page 2", "given up after 6 attempts", "6 broken connections"),
    ),
    "patients that are always answered 503": (
        Faults(broken_pages=(BrokenPage("patients", 1, status=503),)),
        ("patients, page 1", "given up after 6 attempts", "6 answers 503"),
    ),
    "web pages instead of answers": (
        Faults(html_ok_rate=1.0),
        ("patients, page 1", "appointment_types, page 1", "6 unreadable answers"),
    ),
    "refusals without end": (
        Faults(too_many_requests_rate=1.0),
        ("patients, page 1", "6 answers 429", "give the pipeline a user of its own"),
    ),
    "JSON that is no object": (
        Faults(not_an_object_rate=1.0),
        ("patients", "not the list of patients that its API promises"),
    ),
}


@pytest.mark.parametrize(("faults", "said"), STAYING.values(), ids=STAYING.keys())
def test_a_fault_that_stays_fails_the_sync_saying_so_and_leaves_the_results_as_they_were(
    clinic: Clinic, faults: Faults, said: tuple[str, ...]
) -> None:
    clinic.sync_well()
    before = clinic.results()
    clinic.change("patients", patient("990001", "New", "Person", clinic.contacts[0]["email"]))
    clinic.change("individual_appointments", individual_appointment("990002", "990001", "2026-06-14T10:00:00Z"))

    message = clinic.sync_badly(faults, full=True)

    assert clinic.results() == before
    run = clinic.last_run()
    assert run.status == "failed"
    assert run.finished_at is not None
    assert clinic.id in (run.error or "")
    for part in said:
        assert part in message
    assert said[0] in (run.error or "") or said[-1] in (run.error or "")

    for asset in RESULTS:
        key = asset.removeprefix("cliniko.").removeprefix("public.")
        alone = clinic.pipeline.materialize(clinic.id, key)
        assert not alone.success
        assert "is not a complete reading of Cliniko" in errors_of(alone)[0]
        assert "materialize cliniko/patients and cliniko/appointments first" in errors_of(alone)[0]
        assert clinic.results() == before

    clinic.sync_well()
    clinic.assert_right()
    assert clinic.last_run().status == "succeeded"


def test_a_failed_first_sync_leaves_no_results_at_all(clinic: Clinic) -> None:
    clinic.sync_badly(Faults(broken_pages=(BrokenPage("patients", 1),)))
    assert clinic.results() == {name: [] for name in RESULTS}
    clinic.sync_well()
    clinic.assert_right()


# --- Other hosts ------------------------------------------------------------------------------------------


@contextmanager
def foreign_server() -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(500)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def test_no_link_and_no_redirect_leads_to_another_host(clinic: Clinic) -> None:
    with foreign_server() as (origin, requests):
        httpx.get(origin)
        assert requests == ["/"]
        requests.clear()
        following = clinic.sync_badly(Faults(next_links_to=origin))
        assert "the link to the next page leaves the organization's API URL and was not followed" in following
        redirected = clinic.sync_badly(Faults(redirect_rate=1.0, redirect_to=origin))
        assert "Cliniko answered with a redirect, which is not followed" in redirected
        assert requests == []
        assert clinic.last_run().status == "failed"
        assert clinic.results() == {name: [] for name in RESULTS}


# --- Ends in the middle -----------------------------------------------------------------------------------


def test_after_a_process_was_killed_in_the_middle_the_next_sync_is_right_and_no_lock_is_left(
    clinic: Clinic, environ: dict[str, str]
) -> None:
    clinic.sandbox.faults = Faults(latency_ms=200)
    process = sync_in_a_process(environ, AS_OF, clinic.id)
    _wait_until(lambda: clinic.sandbox.counters.requests(resource="individual_appointments") >= 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    _wait_until(lambda: _connections_of_others(clinic.pipeline) == 0)
    with clinic.pipeline.database.operator() as connection:
        locks = connection.execute(
            sa.text("select count(*) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()")
        ).scalar_one()
    assert locks == 0
    assert clinic.last_run().status == "running"
    assert clinic.results() == {name: [] for name in RESULTS}
    clinic.sandbox.faults = Faults()
    in_a_new_process = sync_in_a_process(environ, AS_OF, clinic.id)
    _, told = in_a_new_process.communicate(timeout=60)
    assert in_a_new_process.returncode == 0, told
    clinic.assert_right()
    assert clinic.last_run().status == "succeeded"


@pytest.mark.parametrize("page", [BrokenPage("patients", 1), BrokenPage("individual_appointments", 3)], ids=str)
def test_when_the_database_ends_all_connections_between_two_statements_the_sync_fails_and_the_next_is_right(
    environ: dict[str, str], page: BrokenPage
) -> None:
    ended: list[int] = []

    def end_connections() -> None:
        _wait_until_nothing_is_being_written(clinic.pipeline)
        ended.append(_terminate_all_connections(clinic.pipeline))
        clinic.sandbox.faults = Faults()

    with opened_clinic(environ, SkippedTime(on_sleep=end_connections)) as clinic:
        # It has lost its turn: others may be writing, and a server that crashed may have lost what it had confirmed.
        message = clinic.sync_badly(Faults(broken_pages=(page,)))
        assert "PostgreSQL cannot be used" in message or "was lost" in message
        assert len(ended) == 1
        assert ended[0] >= 1
        clinic.sync_well()
        clinic.assert_right()


@pytest.mark.parametrize("table", ["cliniko.patients", "cliniko.contact_mapping", "public.active_patients"])
def test_when_the_database_ends_a_connection_within_a_statement_the_sync_fails_clearly_and_the_next_is_right(
    clinic: Clinic, table: str
) -> None:
    clinic.sync_well()
    before = clinic.results()["public.active_patients"]
    clinic.change("patients", patient("990001", "New", "Person"))
    with _ending_the_connection_that_writes_to(clinic.pipeline, table):
        message = clinic.sync_badly()
    assert "PostgreSQL cannot be used" in message
    assert "then try again" in message
    run = clinic.last_run()
    assert run.status == "failed"
    assert "PostgreSQL cannot be used" in (run.error or "")
    assert clinic.results()["public.active_patients"] == before
    clinic.sync_well()
    clinic.assert_right()


@contextmanager
def _ending_the_connection_that_writes_to(pipeline: PipelineUnderTest, table: str) -> Iterator[None]:
    """Holds a lock that the first write must wait for, and ends the connection that waits for it."""
    engine = sa.create_engine(pipeline.database.url, isolation_level="AUTOCOMMIT")
    statement = sa.text(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0"
    )
    over = threading.Event()

    def end_who_waits(holder: sa.Connection) -> None:
        with engine.connect() as watcher:
            while not over.is_set() and not watcher.execute(statement).all():
                time.sleep(0.01)
        holder.exec_driver_sql("rollback")

    with engine.connect() as holder:
        holder.exec_driver_sql("begin")
        holder.exec_driver_sql(f"lock table {table} in share row exclusive mode")
        thread = threading.Thread(target=end_who_waits, args=(holder,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
    engine.dispose()


# --- Records that cannot be understood --------------------------------------------------------------------


def test_one_bad_record_is_set_aside_with_its_reason_and_taken_when_it_gets_well(clinic: Clinic) -> None:
    good = patient("990001", "Set", "Aside", "aside@example.org")
    clinic.account.put("patients", good | {"archived_at": "soon"})

    result = clinic.sync()

    assert result.success, errors_of(result)
    clinic.assert_right()
    (rejected,) = clinic.pipeline.rows(clinic.id, "cliniko.rejected_records")
    assert (rejected["resource"], rejected["id"]) == ("patients", "990001")
    assert rejected["reason"].startswith("archived_at: ")
    assert "soon" not in rejected["reason"]
    metadata = materializations_of(result)["cliniko/patients"]
    assert metadata["records_rejected"] == 1
    (shown,) = metadata["problems"].records
    assert shown.data.pop("since") == str(rejected["rejected_at"])
    assert shown.data == {"resource": "patients", "id": "990001", "reason": rejected["reason"]}
    assert clinic.last_run().rejected_records == 1
    (run,) = clinic.pipeline.rows(clinic.id, "cliniko.sync_runs")
    assert run["assets"]["cliniko/patients"]["rejected"] == 1
    assert "990001" not in clinic.pipeline.contact_mapping(clinic.id)

    clinic.change("patients", good)
    clinic.sync_well()
    assert clinic.pipeline.rows(clinic.id, "cliniko.rejected_records") == []
    assert clinic.last_run().rejected_records == 0
    assert "990001" in clinic.pipeline.contact_mapping(clinic.id)
    clinic.assert_right()


def test_a_record_that_goes_bad_stays_as_it_was_last_understood(clinic: Clinic) -> None:
    clinic.sync_well()
    before = clinic.results()["cliniko.contact_mapping"]
    known = before[0]["patient_id"]
    record = clinic.account.get("patients", known)
    clinic.account.put("patients", {**record, "updated_at": "yesterday"})
    clinic.sync_well()
    assert clinic.results()["cliniko.contact_mapping"] == before
    assert clinic.last_run().rejected_records == 1


def test_bad_records_of_every_resource_cost_only_themselves(environ: dict[str, str]) -> None:
    account = hand_written_account()
    broken = {name: [*rows, {"id": "77", "created_at": None}] for name, rows in account.records.items()}
    served = Account.from_records("hostile", "au4", "hostile-au4", broken)
    with (
        opened_pipeline(environ) as pipeline,
        pipeline.sandbox([served]) as sandbox,
    ):
        pipeline.add_organization(account.organization_id, sandbox, served)
        pipeline.add_contacts(account.contacts)
        result = pipeline.sync(account.organization_id, account.as_of)
        assert result.success, errors_of(result)
        rejected = pipeline.rows(account.organization_id, "cliniko.rejected_records")
        assert {row["resource"] for row in rejected if row["id"] == "77"} == set(broken)
        assert pipeline.active_patients(account.organization_id) == expected_active_patients(
            account.records, account.contacts, account.organization_id, account.as_of
        )


# --- Tools ------------------------------------------------------------------------------------------------


def _wait_until_nothing_is_being_written(pipeline: PipelineUnderTest) -> None:
    """Pages are read while those before them are being written."""
    under_way = sa.text(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and xact_start is not null"
    )
    deadline = time.monotonic() + 30
    while True:
        with pipeline.database.operator() as connection:
            if not connection.execute(under_way).scalar_one():
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _terminate_all_connections(pipeline: PipelineUnderTest) -> int:
    engine = sa.create_engine(pipeline.database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        ended = connection.execute(
            sa.text(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        ).all()
    engine.dispose()
    return len(ended)


def _connections_of_others(pipeline: PipelineUnderTest) -> int:
    with pipeline.database.operator() as connection:
        return connection.execute(
            sa.text(
                "select count(*) from pg_stat_activity where datname = current_database() and state <> 'idle'"
                " and pid <> pg_backend_pid()"
            )
        ).scalar_one()


def _wait_until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
