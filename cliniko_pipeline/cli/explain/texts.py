"""Sentences of an explanation, except those about the match."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cliniko_pipeline.cliniko import records
from cliniko_pipeline.postgres.reads.explanations.attendances import Attendance
from cliniko_pipeline.postgres.reads.explanations.explanation import ActiveRow, Explanation, State
from cliniko_pipeline.postgres.reads.explanations.match import Mapping, Match
from cliniko_pipeline.postgres.reads.explanations.person import PatientRecord, Person

RESOURCES = tuple(
    resource.name
    for resource in (
        records.PATIENTS,
        records.INDIVIDUAL_APPOINTMENTS,
        records.GROUP_APPOINTMENTS,
        records.ATTENDEES,
        records.APPOINTMENT_TYPES,
        records.PRACTITIONERS,
    )
)
"""The resources from which active patients are computed."""

MAX_IDS = 5


def verdict(found: Explanation) -> str:
    """Return whether and why the patient is active, in one sentence."""
    patient = f"Patient {found.patient_id}"
    record = found.person.record
    if record is None:
        return f"{patient} is not active: it was merged into patient {found.person.id}, which has no record."
    if found.person.id != found.patient_id:
        patient += f", merged into patient {found.person.id},"
    window = f"from {utc(found.rules.window_start(found.as_of))} to {utc(found.as_of)} UTC"
    if found.is_active:
        return f"{patient} is active: {number_of(found.counts.recent, 'appointment')} {window}."
    if found.person.state == "archived":
        return f"{patient} is not active: archived on {utc(record.archived_at)} UTC."
    if found.person.state == "deleted":
        return f"{patient} is not active: {_deletion(record)}."
    return f"{patient} is not active: no appointment that counts {window}{_other_appointments(found)}."


def _other_appointments(found: Explanation) -> str:
    not_counted = sum(attendance.window == "recent" and not attendance.counts for attendance in found.attendances)
    parts = [
        *([f"{not_counted} recent not counted"] if not_counted else []),
        *([f"{found.counts.upcoming} upcoming"] if found.counts.upcoming else []),
        *([f"the last counted one on {utc(found.counts.last)} UTC"] if found.counts.last else []),
    ]
    return f" ({', '.join(parts)})" if parts else ""


def listing(found: Explanation) -> str:
    """Return whether the person has a row in public.active_patients, and why."""
    if found.row is not None:
        computed_for = utc(found.row.search_date_to)
        row = f"It has row {found.row.id} in public.active_patients, which was computed for {computed_for} UTC."
        if found.listing == "out_of_date":
            return f"{row} The stored records now give no row{_since(found, found.row)}."
        if found.listing == "differs":
            columns = ", ".join(found.row.differences)
            return f"{row} The stored records now give other values of {columns}{_since(found, found.row)}."
        return f"{row} The row is correct{'' if found.is_active else ', because the patient was active then'}."
    age = "is older than the stored records" if found.state.judged_at else "is empty"
    reason = {
        "not_active": ", which is correct",
        "unmapped": ", because the mapping is older than the patient's record",
        "unmatched": ", because no contact matches the patient (unmatched)",
        "ambiguous": f", because its contact is not certain (ambiguous among {candidates(found.match.stored)})",
        "contact_gone": f", because its contact {contact_absence(found.match)} after the mapping was computed",
        "other_instant": f". It was not active at {utc(found.state.judged_at)} UTC, for which the table was computed",
        "not_computed": f". The table {age}, and the next successful sync adds the row",
    }[found.listing]
    return f"It has no row in public.active_patients{reason}."


def contact_absence(match: Match) -> str:
    """Return what happened to the contact of the stored mapping."""
    return {
        "soft_deleted": "was marked as deleted by the application (deleted_at or is_deleted)",
        "filtered": "was excluded by CLINIKO_CONTACTS_FILTER",
    }.get(match.contact_absence or "", "was deleted")


def candidates(mapping: Mapping | None) -> str:
    """Return how many contacts an ambiguous patient may match, e.g. `2 contacts`."""
    return number_of((mapping and mapping.candidate_count) or 0, "contact")


def _since(found: Explanation, row: ActiveRow) -> str:
    if row.search_date_from and row.search_date_to:
        window = row.search_date_to - row.search_date_from
        if window != found.rules.activity_window:
            return f" (the window was {_days(window)} and is {_days(found.rules.activity_window)} now)"
    if found.changed_after is not None:
        return f" (its records changed later, last at {utc(found.changed_after)} UTC)"
    return ""


def problems(state: State) -> list[str]:
    """Return the reasons to doubt the explanation."""
    lines: list[str] = []
    started_at = f"{utc(state.last_run_started_at)} UTC"
    if state.last_run_status is None:
        lines.append("No sync of this organization has run.")
    elif state.last_run_status == "failed":
        lines.append(f"The last sync, started at {started_at}, failed. {state.last_run_error or ''}".rstrip())
    elif state.last_run_status == "running":
        lines.append(f"A sync started at {started_at} is still running: the stored records may change.")
    incomplete = [resource for resource in RESOURCES if resource not in state.resources_complete]
    if incomplete:
        lines.append(f"Records may be missing or out of date, because crawls are incomplete: {', '.join(incomplete)}.")
    if state.rejected_records:
        lines.append(
            f"Rejected records of the organization: {state.rejected_records}. A record that is missing here may be"
            " among them (cliniko.rejected_records has the reasons)."
        )
    if state.doubtful_deletions:
        lines.append(
            f"The last full sync missed {number_of(state.doubtful_deletions, 'record')}, too many to mark them as"
            " deleted. A record shown here may be among them."
        )
    return lines


def as_of_line(found: Explanation) -> str:
    """Return the instant and the rules of the explanation."""
    source = {
        "argument": "given by --as-of",
        "active_patients": "the last computation of public.active_patients",
        "last_run": "start of the last successful sync",
        "now": "now; nothing was computed yet",
    }[found.as_of_source]
    no_shows = "count" if found.rules.count_no_shows else "do not count"
    window = _days(found.rules.activity_window)
    return f"{utc(found.as_of)} UTC ({source}); the window is the {window} before; no-shows {no_shows}."


def counts_line(found: Explanation) -> str:
    """Return a sentence with the numbers of attendances."""
    counts = found.counts
    last = "none so far" if counts.last is None else f"last one {utc(counts.last)} UTC"
    not_counted = sum(not attendance.counts for attendance in found.attendances)
    return (
        f"Counted: {counts.recent} recent, {counts.upcoming} upcoming, {counts.total} in total, {last}."
        f" Not counted: {not_counted}."
    )


def person_lines(person: Person) -> list[str]:
    """Return sentences about the person's patient records and their merges."""
    lines = [_patient_line(patient, person) for patient in person.chain]
    if person.record is None:
        lines.append(f"Patient {person.id} has no record, so the person is neither active nor matched.")
    if person.in_loop:
        lines.append(f"The merges form a loop, so the person has the lowest id of the loop, {person.id}.")
    if person.merged:
        ids = list_of([patient.id for patient in person.merged])
        lines.append(f"Merged into the same person: {'patient' if len(person.merged) == 1 else 'patients'} {ids}.")
    return lines


def _patient_line(patient: PatientRecord, person: Person) -> str:
    parts: list[str] = []
    if patient.merged_into_id is not None:
        at = "" if patient.merged_at is None else f" on {utc(patient.merged_at)} UTC"
        parts.append(f"merged into patient {patient.merged_into_id}{at}")
    if patient.archived_at is not None:
        parts.append(f"archived on {utc(patient.archived_at)} UTC")
    if patient.deleted_at is not None:
        parts.append(_deletion(patient))
    role = " (the person)" if patient.id == person.id else ""
    return f"Patient {patient.id}{role}: {', '.join(parts) or 'not merged, archived or deleted'}."


def _deletion(record: PatientRecord) -> str:
    if record.vanished_at is not None and record.vanished_at == record.deleted_at:
        return f"deleted in Cliniko (found missing on {utc(record.vanished_at)} UTC)"
    return f"deleted on {utc(record.deleted_at)} UTC"


def standing(attendance: Attendance) -> str:
    """Return whether the attendance is counted, with the reasons if it is not."""
    if attendance.counts:
        return f"yes{' (no-show)' if attendance.is_no_show else ''}"
    texts = {
        "cancelled": "cancelled",
        "archived": "archived",
        "deleted": "deleted",
        "booking_archived": "group archived",
        "booking_deleted": "group deleted",
        "vanished": "deleted in Cliniko, found missing",
        "booking_vanished": "group deleted in Cliniko, found missing",
        "booking_unknown": "booking has no record",
        "no_show": "no-show, excluded by CLINIKO_COUNT_NO_SHOWS",
        "counted_once": f"group counts once, by attendee {attendance.counted_attendee_id}",
    }
    reasons = [texts[reason] + ("" if at is None else f" {utc(at)}") for reason, at in attendance.left_out]
    return f"no: {', '.join(reasons)}"


def list_of(items: Sequence[str]) -> str:
    """Return the first MAX_IDS items, separated by commas, and how many more there are."""
    shown = ", ".join(items[:MAX_IDS])
    return shown if len(items) <= MAX_IDS else f"{shown} and {len(items) - MAX_IDS} more"


def number_of(number: int, noun: str) -> str:
    """Return the number with the noun, e.g. `2 contacts`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc(instant: datetime | None) -> str:
    """Return the instant in UTC, without its zone."""
    if instant is None:
        return "unknown"
    plain = instant.astimezone(UTC).replace(tzinfo=None)
    return plain.isoformat(sep=" ", timespec="seconds" if plain.second or plain.microsecond else "minutes")


def _days(window: timedelta) -> str:
    return number_of(window.days, "day")
