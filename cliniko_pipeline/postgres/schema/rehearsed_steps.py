"""The steps of a rehearsed sync, which call the functions that a sync calls."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import execute_pipelined, sql
from cliniko_pipeline.postgres.operator_tables import (
    alerts,
    check_results,
    organizations,
    run_heartbeats,
    scheduling,
    sync_runs,
)
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult
from cliniko_pipeline.postgres.operator_tables.request_budgets import take
from cliniko_pipeline.postgres.reads import check_queries as claims
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline.postgres.schema.application_tables import require_room_for_every_contact
from cliniko_pipeline.postgres.schema.identity import identities
from cliniko_pipeline.postgres.tables import (
    ACTIVE_PATIENTS,
    APPOINTMENT_TYPES,
    APPOINTMENTS,
    ATTENDEES,
    CONTACT_MAPPING,
    PATIENTS,
    PRACTITIONERS,
    RECONCILED,
    WATCHED,
    Table,
)
from cliniko_pipeline.postgres.writing import computed_tables, crawls, derivations
from cliniko_pipeline.postgres.writing.crawls import RejectedRecord
from cliniko_pipeline.postgres.writing.merge import empty_staging, replace_by_query, replace_by_rows, stage

Act = Callable[[Connection], object]


@dataclass(frozen=True)
class Step:
    """A database access of a sync. `name` completes the sentence "A sync cannot ..."."""

    name: str
    act: Act


class StepFailedError(Exception):
    """The error of a step that PostgreSQL accepts, but with a wrong outcome. It has the remedy."""


# As the database user. ----------------------------------------------------------------------------------------------


def operator_steps(organization_id: str) -> list[Step]:
    """Return the steps that a sync carries out as the database user."""
    now = datetime.now(UTC)
    check = CheckResult(organization_id, "active_patients", "rehearsal", holds=True, remark="", run_id=None)

    def note_failure(connection: Connection) -> None:
        scheduling.note_failure(
            connection, organization_id, reason="", run_id="rehearsal", started_at=now, is_permanent=False
        )

    return [
        Step("know which database this is", identities),
        Step("list the organizations", organizations.organizations),
        Step("read credentials", lambda it: scheduling.credentials_digest(it, organization_id)),
        Step("note that its run is alive", partial(_beat, run_id=organization_id)),
        Step("note that it was requested", lambda it: scheduling.note_requested(it, {organization_id: True}, now)),
        Step("note that it failed", note_failure),
        Step("note that it succeeded", lambda it: scheduling.note_success(it, organization_id, read_began_at=now)),
        Step("be scheduled", scheduling.schedulings),
        Step(
            "note that counts were requested", lambda it: scheduling.note_counts_requested(it, [organization_id], now)
        ),
        Step("store the results of checks", lambda it: check_results.note_checks(it, [check])),
        Step("read alerts", alerts.open_alerts),
        Step("write a row for every contact", require_room_for_every_contact),
        Step("take requests from the budget of an API key", lambda it: take(it, organization_id, wanted=1)),
        Step("use Dagster's tables", lambda it: it.execute(sa.text(sql("schema/use_dagster_tables")))),
    ]


def _beat(connection: Connection, run_id: str) -> None:
    run_heartbeats.note_heartbeat(connection, run_id, "rehearsal")
    run_heartbeats.heartbeats(connection, [run_id])
    run_heartbeats.mark_lost(connection, run_id)
    run_heartbeats.delete_heartbeat(connection, run_id)


# As the role of the organizations. ----------------------------------------------------------------------------------

_NOW = datetime.now(UTC)
_RULES = Rules(timedelta(days=60), count_no_shows=True)
_NOBODY = UUID(int=0)
_FILLED: dict[str, object] = {
    "kind": "individual",
    "id": "1",
    "patient_id": "1",
    "person_id": "1",
    "contact_id": str(_NOBODY),
    "appointment_type_id": "1",
    "practitioner_id": "1",
    "did_not_arrive": False,
    "starts_at": _NOW - timedelta(days=1),
    "created_at": _NOW,
    "updated_at": _NOW,
    "status": "matched",
    "method": "email",
    "attendances": 1,
}


def _row(table: Table, **values: object) -> tuple[object, ...]:
    return tuple({**_FILLED, **values}.get(column) for column in table.written)


# The table of each resource, a new row, and the same row with a changed value.
_RECORDS: dict[str, tuple[Table, tuple[object, ...], tuple[object, ...]]] = {
    "patients": (PATIENTS, _row(PATIENTS), _row(PATIENTS, email="e")),
    "appointment_types": (APPOINTMENT_TYPES, _row(APPOINTMENT_TYPES), _row(APPOINTMENT_TYPES, name="n")),
    "practitioners": (PRACTITIONERS, _row(PRACTITIONERS), _row(PRACTITIONERS, name="n")),
    "individual_appointments": (APPOINTMENTS, _row(APPOINTMENTS), _row(APPOINTMENTS, did_not_arrive=True)),
    "group_appointments": (
        APPOINTMENTS,
        _row(APPOINTMENTS, kind="group", id="2", patient_id=None),
        _row(APPOINTMENTS, kind="group", id="2", patient_id=None, ends_at=_NOW),
    ),
    "attendees": (ATTENDEES, _row(ATTENDEES, booking_id="2"), _row(ATTENDEES, booking_id="2", arrived=True)),
}
_COMPUTED = ((CONTACT_MAPPING, _row(CONTACT_MAPPING), _row(CONTACT_MAPPING, method="name")),)


def organization_steps() -> list[Step]:
    """Return the steps that a sync carries out in the organization context."""
    return [
        Step("note its progress in cliniko.sync_runs", _note_run),
        *(Step(f"write {_RECORDS[each][0].name} ({each})", partial(_read, each)) for each in _RECORDS),
        *(Step(f"replace {table.name}", partial(_replace, table, *rows)) for table, *rows in _COMPUTED),
        Step("read the contacts of an organization", _read_contacts),
        Step("map contacts", _compute_contact_mapping),
        Step("compute active_patients", _compute_active_patients),
        Step("check its work", _check),
        Step("tell the state of an organization", sync_runs.organization_status),
        Step("delete an organization's rows", organizations.delete_rows),
    ]


def _note_run(connection: Connection) -> None:
    asset = "active_patients"
    sync_runs.note_started(connection, run_id="rehearsal", asset=asset, planned=[asset], is_full=True)
    sync_runs.note_progress(connection, run_id="rehearsal", progress="{}")
    sync_runs.note_finished(connection, run_id="rehearsal", asset=asset, counts={}, requests=0, seconds_waited=0.0)


def _read(resource: str, connection: Connection) -> None:
    """Write what a full crawl of the resource writes: a new row, a change, a rejected record."""
    table, new, changed = _RECORDS[resource]
    identity = str(new[table.written.index("id")])
    reconciles = resource in RECONCILED
    crawls.begin(connection, resource, is_full=True, reconciles=reconciles)
    advancing = crawls.build_advance(resource, records=1, next_cursor=_NOW, next_page=1, total_entries=2)
    execute_pipelined(connection, [stage(connection, table, [new], are_new=True), advancing])
    empty_staging(connection, table)  # In a sync the end of each batch's transaction empties the staging table.
    crawls.save_rejected(connection, resource, accepted=[], rejected=[RejectedRecord("9", "rehearsal")])
    execute_pipelined(connection, [stage(connection, table, [changed]), advancing])
    empty_staging(connection, table)
    crawls.save_rejected(connection, resource, accepted=[identity, "9"], rejected=[])
    if reconciles:
        crawls.save_crawled_ids(connection, resource, [identity])
        crawls.count_missing(connection, resource, _NOW)
        crawls.mark_missing_deleted(connection, resource, _NOW)
    crawls.require_full(connection, resource, "rehearsal")
    crawls.complete(connection, resource, next_cursor=_NOW)
    _require_watched(connection, table)


def _replace(table: Table, row: tuple[object, ...], changed: tuple[object, ...], connection: Connection) -> None:
    for rows in ([row], [changed], []):
        replace_by_rows(connection, table, rows)
    _require_watched(connection, table)


def _require_watched(connection: Connection, table: Table) -> None:
    if table in WATCHED and not derivations.is_watched(connection, table):
        raise StepFailedError(
            f"the triggers of {table.schema}.{table.name} did not fire. Enable them (`alter table ... enable trigger"
            " user`), and see that session_replication_role is `origin`."
        )


def _read_contacts(connection: Connection) -> None:
    connection.execute(sa.text("select count(*) from cliniko.organization_contacts()")).scalar_one()
    connection.execute(sa.text("select cliniko.contacts_fingerprint()"))


def _compute_contact_mapping(connection: Connection) -> None:
    crawls.require_complete(connection, list(_RECORDS))
    derivations.write(connection, computed_tables.contact_mapping(), force=True)


def _compute_active_patients(connection: Connection) -> None:
    crawls.require_complete(connection, list(_RECORDS))
    derivations.write(connection, computed_tables.active_patients(_NOW, _RULES), force=True)


def _check(connection: Connection) -> None:
    claims.rejected_counts(connection)
    claims.mapping_counts(connection, force=False)
    claims.recount_active_patients(connection, _RULES.parameters(_NOW))
    for table in (PATIENTS, APPOINTMENTS, CONTACT_MAPPING, ACTIVE_PATIENTS):
        derivations.row_count(connection, table.schema, table.name)


# A contact that exists. ---------------------------------------------------------------------------------------------


def contact_step(contact_id: UUID) -> Step:
    """Return the step that writes the contact's row, in the context of its organization."""
    return Step("write active_patients", partial(_write_active_patient, contact_id))


def _write_active_patient(contact_id: UUID, connection: Connection) -> None:
    """Delete, insert, update and delete the contact's row; leave the organization's other rows."""
    columns = ", ".join(ACTIVE_PATIENTS.written)
    others = f"select {columns} from {ACTIVE_PATIENTS.qualified} where contact_id <> '{contact_id}'"
    # Literals of unknown type fit whatever types the application's columns have.
    row = f"select '{contact_id}', '{{}}', '0', '1', '2000-01-01', '[]', '[]', '2000-01-01', '2000-01-01'"
    present = f"{others} union all {row}"
    for query in (others, present.format(1), present.format(2), others):
        replace_by_query(connection, ACTIVE_PATIENTS, query, {})
        connection.exec_driver_sql("set constraints all immediate")
