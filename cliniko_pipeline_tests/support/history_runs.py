"""Runs of histories on a real pipeline. After every quiet sync, the stored rows are compared with the account."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa
from hypothesis import currently_in_test_context, note

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import WRITTEN
from cliniko_pipeline.probes import Unchanged, probe
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.changing_clinics import (
    RESOURCES,
    Beginning,
    Change,
    ChangingClinic,
    Key,
    ServerClock,
    instant,
    linked,
)
from cliniko_pipeline_tests.support.histories import Clock, History, Step, Sync
from cliniko_pipeline_tests.support.hostile_accounts import WireRecord
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.page_by_page import small_pages
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest


class Killed(BaseException):
    """A simulated process is killed. Code that catches this error cannot reach the database any more."""


class KillableDatabase(Database):
    """A database whose process may be killed instead of a commit. Afterwards, no code reaches the database."""

    commits_left: int | None = None
    is_dead = False

    @contextmanager
    def organization(self, organization_id: str, *, is_resumable: bool = False) -> Iterator[sa.Connection]:
        if self.is_dead:
            raise Killed
        with super().organization(organization_id, is_resumable=is_resumable) as connection:
            yield connection
            if self.commits_left is not None and self._has_written(connection):
                self.commits_left -= 1
                if self.commits_left == 0:
                    self.die()

    def die(self) -> None:
        self.is_dead = True
        raise Killed

    @staticmethod
    def _has_written(connection: sa.Connection) -> bool:
        return connection.execute(sa.text("select pg_current_xact_id_if_assigned() is not null")).scalar_one()

    def revive(self, commits_left: int | None = None) -> None:
        self.is_dead = False
        self.commits_left = commits_left


class Requests:
    """A request budget without a limit, which calls `before_each` before a request is sent.

    If several requests are in flight, a change before one request can happen while Cliniko answers another request.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.before_each: Callable[[int], None] = lambda _number: None
        self._lock = threading.Lock()

    @contextmanager
    def request(self) -> Iterator[float]:
        with self._lock:
            self.sent += 1
            self.before_each(self.sent)
        yield 0.0

    def close(self) -> None:
        pass

    def block(self, seconds: float) -> None:
        pass

    def left(self) -> int:
        return 1000


@dataclass
class World:
    """Objects shared by all histories of a test."""

    pipeline: PipelineUnderTest
    database: KillableDatabase
    sandbox: Sandbox
    clock: ServerClock
    requests: Requests
    histories: int = 0
    syncs: int = 0
    unchanged: int = 0


class HistoryRun:
    """A history in progress.

    Attributes:
        may_be_marked: hard-deleted records that the pipeline may mark as deleted.
        must_be_marked: hard-deleted records that the pipeline must mark as deleted.
        left_by_a_full_sync: hard-deleted records that a failed full sync leaves to the next quiet sync.
    """

    def __init__(self, world: World, instance: dg.DagsterInstance) -> None:
        world.clock.passed, world.clock.ahead = 0.0, 0
        world.histories += 1
        self.world = world
        self.pipeline = PipelineUnderTest(world.pipeline.runtime, instance)
        self.clinic = ChangingClinic(f"history-{world.histories}", world.clock)
        self.may_be_marked: set[Key] = set()
        self.must_be_marked: set[Key] = set()
        self.full_may_resume = False
        self.left_by_a_full_sync: set[Key] = set()
        self.stored = Stored(self.pipeline, self.clinic.id)
        self.earliest = world.clock.now

    def begin(self, beginning: Beginning) -> None:
        self.clinic.begin(beginning)
        self.world.sandbox.add(self.clinic.account)
        self.pipeline.add_organization(self.clinic.id, self.world.sandbox, self.clinic.account)

    def apply(self, step: Step) -> None:
        match step:
            case Change():
                self._note(self.clinic.happen(step))
            case Clock():
                self.world.clock.passed += step.seconds
                self.world.clock.set_ahead(step.ahead)
                self._note(f"{step.seconds} s pass")
            case Sync():
                self.sync(step)

    def sync(self, step: Sync) -> None:
        self._note(f"{step} ...")
        self._save_contacts()
        before, as_of = self.stored, self.world.clock.now + timedelta(hours=step.hours)
        gone_before = set(self.clinic.gone)
        unchanged = self._rows() if self._is_unchanged(step, as_of) else None
        result = self._run(step, as_of)
        self.stored = Stored(self.pipeline, self.clinic.id)
        self._note(f"... {'killed' if result is None else 'succeeded' if result.success else _errors(result)}")

        may_have_marked = step.full or self.full_may_resume
        if may_have_marked:
            self.may_be_marked |= self.clinic.gone.keys()
        assert self.stored.vanished <= self.clinic.gone.keys() & self.may_be_marked
        self.full_may_resume = may_have_marked and (result is None or not result.success)
        doubtful = self._doubtful(before, gone_before)
        if not step.accept_deletions:
            self.left_by_a_full_sync.clear()
        if result is None:
            return
        if not result.success:
            self._assert_explained(step, _errors(result), before, doubtful)
            if step.full and step.accept_deletions:
                self.left_by_a_full_sync |= self._older(gone_before)
        elif step.is_quiet:
            self._assert_unchanged(unchanged)
            if step.full:
                assert step.accept_deletions or not doubtful
                self.must_be_marked |= self._older(self.clinic.gone.keys())
            # These records had to be marked by a full sync that failed, so this sync must have marked them.
            self.must_be_marked |= self.left_by_a_full_sync
            self.assert_right(as_of)
            self.clinic.settle()

    def assert_right(self, as_of: datetime) -> None:
        """Assert that the stored rows equal the account, and that the derived tables are right."""
        clinic, vanished = self.clinic, self.stored.vanished
        assert vanished >= self.must_be_marked
        for resource in RESOURCES:
            self._assert_stored(resource)
        self._assert_rejected()
        wire, contacts = clinic.wire(vanished), list(clinic.contacts.values())
        assert self.pipeline.contact_mapping(clinic.id) == expected_contact_mapping(wire, contacts, clinic.id)
        assert self.pipeline.active_patients(clinic.id) == expected_active_patients(wire, contacts, clinic.id, as_of)

    def _is_unchanged(self, step: Sync, as_of: datetime) -> bool:
        """Return whether a probe finds that the incremental sync would change nothing."""
        if step.full:
            return False
        found = probe(self.pipeline.runtime, [self.clinic.id], seconds=60, at=as_of)[self.clinic.id]
        self._note(f"probe: {found}")
        return isinstance(found, Unchanged)

    def _assert_unchanged(self, rows: dict[str, list[dict[str, Any]]] | None) -> None:
        """Assert that the sync has changed nothing, if a probe before the sync had found nothing to do."""
        if rows is not None:
            assert self._rows() == rows
            self.world.unchanged += 1

    def _rows(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of all tables that a sync writes, without the columns that every sync writes."""
        every_sync = {"search_date_from", "search_date_to", "updated_at"}
        tables = [f"{table.schema}.{table.name}" for table in WRITTEN]
        rows = {name: sorted(self.pipeline.rows(self.clinic.id, name), key=repr) for name in tables}
        active = [{c: v for c, v in row.items() if c not in every_sync} for row in rows[tables[-1]]]
        return {**rows, tables[-1]: sorted(active, key=repr)}

    # --- Running ---------------------------------------------------------------------------------------------

    def _run(self, step: Sync, as_of: datetime) -> dg.ExecuteInProcessResult | None:
        """Sync and return the result, or None if the process was killed."""
        world = self.world

        def before_each(number: int) -> None:
            if number == step.killed_at_request:
                world.database.die()
            if number > 1:
                world.clock.passed += step.pace
                for change in step.between_requests[number - 2] if number - 2 < len(step.between_requests) else ():
                    self.apply(change)
            self.earliest = min(self.earliest, world.clock.now)

        world.syncs += 1
        self.earliest = world.clock.now
        world.requests.sent, world.requests.before_each = 0, before_each
        world.sandbox.faults = _faults(step)
        world.database.revive(step.killed_at_commit)
        try:
            result = self.pipeline.sync(
                self.clinic.id,
                as_of,
                full=step.full,
                accept_deletions=step.accept_deletions,
                accept_unmatched=True,
                log_level="CRITICAL",
            )
            # Dagster catches Killed and returns a result, which a killed process would not have.
            return None if world.database.is_dead else result
        finally:
            world.database.revive()
            world.sandbox.faults = Faults()
            world.requests.before_each = lambda _number: None

    def _save_contacts(self) -> None:
        with self.pipeline.database.operator() as connection:
            connection.execute(
                sa.text("delete from public.contacts where organization_id = :id"), {"id": self.clinic.id}
            )
        self.pipeline.add_contacts(list(self.clinic.contacts.values()))

    def _note(self, message: str) -> None:
        clock = self.world.clock
        (note if currently_in_test_context() else print)(f"{clock.now:%d %H:%M:%S} ({clock.ahead:+d}) {message}")

    # --- What is gone -----------------------------------------------------------------------------------------

    def _older(self, gone: Iterable[Key]) -> set[Key]:
        """Return the records that a full sync misses. It ignores records that were created after its start."""
        records = {key: self.clinic.gone[key] for key in gone}
        return {
            key
            for key, record in records.items()
            if record is not None and instant(record, "created_at") < self.earliest
        }

    def _doubtful(self, before: "Stored", gone: set[Key]) -> set[str]:
        """Return the resources of which a full sync misses suspiciously many records."""
        limit = self.pipeline.runtime.settings.vanished_share_limit
        doubtful = set()
        for resource in RESOURCES:
            old = [row_id for row_id, row in before.live(resource).items() if row["created_at"] < self.earliest]
            missed = [row_id for row_id in old if (resource, row_id) in gone]
            if len(missed) > limit * len(old):
                doubtful.add(resource)
        return doubtful

    def _assert_explained(self, step: Sync, message: str, before: "Stored", doubtful: set[str]) -> None:
        if step.broken is not None and f"{step.broken[0]}, page {step.broken[1]}" in message:
            return
        assert "more than CLINIKO_VANISHED_SHARE_LIMIT allows" in message, message
        assert not step.accept_deletions
        for resource in RESOURCES:
            if f"{resource}: " in message and step.is_quiet and step.full:
                assert resource in doubtful
                assert self.stored.vanished_of(resource) == before.vanished_of(resource)

    # --- What is stored ---------------------------------------------------------------------------------------

    def _assert_stored(self, resource: str) -> None:
        rows, live = self.stored.rows[resource], self.stored.live(resource)
        assert all(row["deleted_at"] is not None for row in rows.values() if row["vanished_at"] is not None)
        due = {
            record_id: as_stored(resource, record)
            for record_id, record in self.clinic.stored(resource, ()).items()
            if (resource, record_id) not in self.stored.vanished
        }
        if resource == "attendees":
            # Attendees of individual appointments need not be stored.
            groups = {record_id for record_id, row in due.items() if self.clinic.is_group(row["booking_id"])}
            due = {record_id: row for record_id, row in due.items() if record_id in groups or record_id in live}
        found = {row_id: {c: row[c] for c in due.get(row_id, row)} for row_id, row in live.items()}
        assert differences(found, due) == {}

    def _assert_rejected(self) -> None:
        rows = self.pipeline.rows(self.clinic.id, "cliniko.rejected_records")
        found = [(row["resource"], row["id"]) for row in rows]
        assert len(found) == len(set(found)), "a record is rejected twice"
        gone = self.clinic.bad & self.clinic.gone.keys()
        assert set(found) - gone == self.clinic.bad - gone


class Stored:
    """The stored rows of an organization's records, by resource and id."""

    def __init__(self, pipeline: PipelineUnderTest, organization_id: str) -> None:
        appointments = pipeline.rows(organization_id, "cliniko.appointments")
        found = {
            "patients": pipeline.rows(organization_id, "cliniko.patients"),
            "individual_appointments": [row for row in appointments if row["kind"] == "individual"],
            "group_appointments": [row for row in appointments if row["kind"] == "group"],
            "attendees": pipeline.rows(organization_id, "cliniko.attendees"),
        }
        self.rows = {resource: {row["id"]: row for row in found[resource]} for resource in RESOURCES}
        self.vanished = {key for resource in RESOURCES for key in self.vanished_of(resource)}

    def live(self, resource: str) -> dict[str, dict[str, Any]]:
        return {row_id: row for row_id, row in self.rows[resource].items() if row["vanished_at"] is None}

    def vanished_of(self, resource: str) -> set[Key]:
        return {(resource, row_id) for row_id, row in self.rows[resource].items() if row["vanished_at"] is not None}


def differences(found: dict[str, Any], due: dict[str, Any]) -> dict[str, Any]:
    """Return the stored row and the expected row of every record for which they differ."""
    return {
        record_id: {"stored": found.get(record_id), "due": due.get(record_id)}
        for record_id in found.keys() | due.keys()
        if found.get(record_id) != due.get(record_id)
    }


def as_stored(resource: str, record: WireRecord) -> dict[str, Any]:
    """Return the expected columns of a readable record."""
    stamps = ("created_at", "updated_at", "archived_at", "deleted_at")
    row: dict[str, Any] = {field: instant(record, field) for field in stamps}
    match resource:
        case "patients":
            row |= {field: record[field] for field in ("first_name", "last_name", "email")}
            return row | {"merged_into_id": linked(record, "merged_with_patient")}
        case "attendees":
            row |= {"cancelled_at": instant(record, "cancelled_at"), "arrived": record["arrived"]}
            return row | {"booking_id": linked(record, "booking"), "patient_id": linked(record, "patient")}
        case _:
            return row | {
                "starts_at": instant(record, "starts_at"),
                "cancelled_at": instant(record, "cancelled_at"),
                "did_not_arrive": bool(record.get("did_not_arrive")),
                "patient_id": linked(record, "patient") if "patient" in record else None,
                "appointment_type_id": linked(record, "appointment_type"),
                "practitioner_id": linked(record, "practitioner"),
            }


def _errors(result: dg.ExecuteInProcessResult) -> str:
    """Return the errors of the failed steps. Errors of the pipeline are one line each."""
    failures = [event.step_failure_data for event in result.filter_events(lambda event: event.is_step_failure)]
    return "; ".join(
        (failure.user_failure_data and failure.user_failure_data.description) or failure.error_display_string
        for failure in failures
    )


def _faults(step: Sync) -> Faults:
    if step.broken is not None:
        return Faults(broken_pages=(BrokenPage(*step.broken, status=404),))
    if step.faults is not None:
        return Faults(
            seed=step.faults,
            # The rates are low enough for one of six attempts to succeed.
            server_error_rate=0.03,
            reset_before_body_rate=0.01,
            reset_in_body_rate=0.02,
            truncated_body_rate=0.02,
            html_ok_rate=0.01,
            too_many_requests_rate=0.02,
        )
    return Faults()


def run_history(world: World, history: History) -> None:
    with small_pages(history.page_size, ahead=history.ahead), dg.DagsterInstance.ephemeral() as instance:
        run = HistoryRun(world, instance)
        run.begin(history.beginning)
        for step in history.steps:
            run.apply(step)
