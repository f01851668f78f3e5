"""`cliniko-pipeline explain`: why a patient is or is not active, and how it was or was not matched.

Shows ids, instants, kinds and statuses, and the names of appointment types and practitioners; never a patient's or a
contact's name or address: what a terminal has shown stays in its scrollback.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import click
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.status import output_console
from cliniko_pipeline.cli.terminal import printable
from cliniko_pipeline.cliniko import records
from cliniko_pipeline.errors import ArgumentError, DataError
from cliniko_pipeline.instants import parse_instant
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.reads import explanations
from cliniko_pipeline.postgres.reads.explanations import (
    Attendance,
    Candidate,
    Explanation,
    Mapping,
    Match,
    Pass,
    PatientRecord,
    Person,
    Rules,
    UnknownPatient,
)
from cliniko_pipeline.runtime import Runtime

RESOURCES = tuple(
    each.name
    for each in (
        records.PATIENTS,
        records.INDIVIDUAL_APPOINTMENTS,
        records.GROUP_APPOINTMENTS,
        records.ATTENDEES,
        records.APPOINTMENT_TYPES,
        records.PRACTITIONERS,
    )
)
"""What has to be read before anything can be computed."""

MOST_ATTENDANCES = 20
MOST_IDS = 5
LONGEST_NAME = 24
WIDE = 120
"""From so many columns on there is room for appointment types and practitioners."""


@click.command()
@click.argument("organization_id", metavar="ORG")
@click.argument("patient_id", metavar="PATIENT_ID")
@click.option(
    "--as-of", metavar="INSTANT", help="Judge by this instant (2026-01-31T09:30:00Z), not by the last sync's."
)
@click.option("--json", "as_json", is_flag=True, help="For programs, with every attendance.")
def explain(organization_id: str, patient_id: str, *, as_of: str | None, as_json: bool) -> None:
    """Say why a patient is or is not active, and how it was or was not matched, from the stored data."""
    if not re.fullmatch("[0-9]{1,20}", patient_id):
        raise click.BadParameter("must be Cliniko's id of the patient: digits.", param_hint="PATIENT_ID")
    instant = None if as_of is None else parse_instant(as_of)
    with session() as runtime:
        found = _explained(runtime, organization_id, patient_id.lstrip("0") or "0", instant)
    if as_json:
        click.echo(json.dumps(_as_json(organization_id, found), indent=2, default=_plain))
    else:
        _show(output_console(), found)


def _explained(runtime: Runtime, organization_id: str, patient_id: str, as_of: datetime | None) -> Explanation:
    """Raises OrganizationUnknownError, ArgumentError, DataError where there is nothing to explain."""
    rules = Rules(timedelta(days=runtime.settings.activity_window_days), runtime.settings.count_no_shows)
    with runtime.database.organization(organization_id) as connection:
        found = explanations.explain(connection, patient_id, rules, as_of)
        if found is not None:
            return found
        unknown = explanations.unknown_patient(connection, patient_id)
    with runtime.database.operator() as connection:
        organizations.organization(connection, organization_id)
    raise _nothing_to_explain(organization_id, patient_id, unknown)


def _nothing_to_explain(organization_id: str, patient_id: str, unknown: UnknownPatient) -> DataError | ArgumentError:
    where = f"Patient {patient_id} of organization '{organization_id}'"
    if unknown.rejected_because is not None:
        return DataError(
            f"{where} is not stored: Cliniko's record could not be understood and was set aside"
            f" ({unknown.rejected_because}); correct it in Cliniko, then sync again."
        )
    if unknown.mentions:
        return ArgumentError(
            f"{where} has no record in what was read, though {_number(unknown.mentions, 'record')} of others name it:"
            f" it counts for nobody. `cliniko-pipeline sync {organization_id} --full` reads all patients again."
        )
    return ArgumentError(
        f"{where} is not stored: the id is the number at the end of the patient's address in Cliniko;"
        f" `cliniko-pipeline sync {organization_id}` reads what is new there."
    )


# What is shown. -----------------------------------------------------------------------------------------------------


def _show(console: Console, found: Explanation) -> None:
    colour = "green" if found.is_active else "yellow"
    console.print(Text(verdict(found), style=f"bold {colour}"))
    for line in (listing(found), *problems(found)):
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))
    _show_section(console, "Judged by", [_judged_by(found)])
    _show_section(console, "The person", _person_lines(found.person))
    _show_section(console, "The contact", _match_lines(found))
    _show_section(console, "The appointments", [_counts_line(found)])
    _show_attendances(console, found.attendances)


def _show_section(console: Console, heading: str, lines: Sequence[str]) -> None:
    console.print()
    console.print(Text(heading, style="bold"))
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False))


def _show_attendances(console: Console, attendances: Sequence[Attendance]) -> None:
    if not attendances:
        return
    shown = most_telling(attendances)
    wide = console.width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("Starts (UTC)", "When", "Kind", "Appointment"):
        table.add_column(heading, no_wrap=True)
    if wide:
        for heading in ("Type", "Practitioner"):
            table.add_column(heading, no_wrap=True, max_width=LONGEST_NAME if console.is_terminal else None)
    table.add_column("Counts", overflow="fold")
    for each in shown:
        names = (printable(each.appointment_type), printable(each.practitioner)) if wide else ()
        style = None if each.counts else "dim"
        cells = (_at(each.starts_at), each.window, each.kind, each.id or "unknown", *names, standing(each))
        table.add_row(*(Text(cell) for cell in cells), style=style)
    console.print()
    console.print(table)
    if len(attendances) > len(shown):
        rest = len(attendances) - len(shown)
        console.print(Text(f"{rest} more, further from the instant judged by: --json has all."))


def most_telling(attendances: Sequence[Attendance]) -> list[Attendance]:
    """Those that decide: of the window, then what is to come, then what was before; in the order given."""
    recent = [each for each in attendances if each.window == "recent"]
    upcoming = [each for each in attendances if each.window == "upcoming"]
    rest = [each for each in attendances if each.window not in {"recent", "upcoming"}]
    # Latest first: the soonest of what is to come stands last.
    chosen = {id(each) for each in [*recent, *reversed(upcoming), *rest][:MOST_ATTENDANCES]}
    return [each for each in attendances if id(each) in chosen]


def verdict(found: Explanation) -> str:
    """The answer in one sentence."""
    who = f"Patient {found.patient_id}"
    if found.person.id != found.patient_id:
        who += f", as patient {found.person.id} that it was merged into,"
    if found.is_active:
        return f"{who} is active: {_number(found.counts.recent, 'appointment')} {_window(found)}."
    record = found.person.record
    if record is None:
        return (
            f"Patient {found.patient_id} is not active: it was merged into patient {found.person.id},"
            " of which no record was read."
        )
    if found.person.state == "archived":
        return f"{who} is not active: archived on {_at(record.archived_at)} UTC."
    if found.person.state == "deleted":
        return f"{who} is not active: {_deleted(record)}."
    return f"{who} is not active: no appointment that counts {_window(found)}{_what_there_is(found)}."


def _deleted(record: PatientRecord) -> str:
    if record.vanished_at is not None and record.vanished_at == record.deleted_at:
        return f"no longer in Cliniko (noticed on {_at(record.vanished_at)} UTC)"
    return f"deleted on {_at(record.deleted_at)} UTC"


def _window(found: Explanation) -> str:
    return f"from {_at(found.rules.window_start(found.as_of))} to {_at(found.as_of)} UTC"


def _what_there_is(found: Explanation) -> str:
    left_out = sum(each.window == "recent" and not each.counts for each in found.attendances)
    parts = [
        *([f"{left_out} there left out"] if left_out else []),
        *([f"{found.counts.upcoming} upcoming"] if found.counts.upcoming else []),
        *([f"the last one on {_at(found.counts.last)} UTC"] if found.counts.last else []),
    ]
    return f" ({', '.join(parts)})" if parts else ""


def listing(found: Explanation) -> str:
    """How the person stands in public.active_patients, and why."""
    row = found.row
    if row is not None:
        place = f"In public.active_patients it has row {row.id}, judged by {_at(row.search_date_to)} UTC"
        match found.listing:
            case "out_of_date":
                return f"{place}: by what is stored now it would have none{_since(found)}."
            case "differs":
                return f"{place}: by what is stored now {', '.join(row.differences)} would be different{_since(found)}."
            case _:
                other = "" if found.is_active else ", when it was active"
                return f"{place}{other}: as it should be."
    why = {
        "not_active": ", as it should be",
        "unmapped": ": since it was read the mapping was not computed",
        "unmatched": ": no contact is certain to be it (unmatched)",
        "ambiguous": f": which contact it is, is not certain (ambiguous among {_candidates(found.match.stored)})",
        "contact_gone": f": its contact {_absence(found.match)} since the mapping was computed",
        "other_instant": f": that was computed by {_at(found.state.judged_at)} UTC, when it was not active",
        "not_computed": ", which is older than what is stored: the next sync that succeeds adds it"
        if found.state.judged_at
        else ", which is empty: the next sync that succeeds adds it",
    }[found.listing]
    return f"It has no row in public.active_patients{why}."


def _absence(match: Match) -> str:
    """What has happened to the stored mapping's contact."""
    return {
        "soft_deleted": "was deleted softly in the application (deleted_at or is_deleted)",
        "filtered": "has been left out by CLINIKO_CONTACTS_FILTER",
    }.get(match.contact_absence or "", "was deleted")


def _candidates(mapping: Mapping | None) -> str:
    return _number((mapping and mapping.candidate_count) or 0, "contact")


def _since(found: Explanation) -> str:
    row = found.row
    if row is not None and row.search_date_from and row.search_date_to:
        then = row.search_date_to - row.search_date_from
        if then != found.rules.activity_window:
            return f" (the window was {_days(then)} then and is {_days(found.rules.activity_window)} now)"
    if found.changed_after is not None:
        return f" (its records changed since, the last at {_at(found.changed_after)} UTC)"
    return ""


def problems(found: Explanation) -> list[str]:
    """What makes all of this doubtful."""
    state = found.state
    lines: list[str] = []
    if state.last_run_status is None:
        lines.append("No sync of this organization is known.")
    elif state.last_run_status == "failed":
        lines.append(f"The last sync, of {_at(state.last_run_started_at)} UTC, failed. {state.last_run_error or ''}")
    elif state.last_run_status == "running":
        lines.append(
            f"A sync that began at {_at(state.last_run_started_at)} UTC has not ended: what is stored may be changing."
        )
    incomplete = [each for each in RESOURCES if each not in state.resources_complete]
    if incomplete:
        lines.append(f"Not read to the end, and so missing or a mixture of old and new: {', '.join(incomplete)}.")
    if state.rejected_records:
        lines.append(
            f"{_number(state.rejected_records, 'record')} of the organization could not be understood and"
            f" {'was' if state.rejected_records == 1 else 'were'} set aside: what is missing here may be among them"
            " (cliniko.rejected_records has the reasons)."
        )
    if state.doubtful_deletions:
        lines.append(
            f"The last full sync no longer found {_number(state.doubtful_deletions, 'record')} of the organization, too"
            " many to be believed deleted: what is shown here may be among them."
        )
    return [line.rstrip() for line in lines]


def _judged_by(found: Explanation) -> str:
    source = {
        "argument": "as asked for",
        "active_patients": "as public.active_patients was computed last",
        "last_run": "when the last sync that succeeded began",
        "now": "now, for nothing was computed yet",
    }[found.as_of_source]
    no_shows = "count" if found.rules.count_no_shows else "do not count"
    return (
        f"{_at(found.as_of)} UTC ({source}); the window is the {_days(found.rules.activity_window)} before;"
        f" no-shows {no_shows}."
    )


def _counts_line(found: Explanation) -> str:
    counts = found.counts
    last = "none so far" if counts.last is None else f"the last so far {_at(counts.last)} UTC"
    left_out = sum(not each.counts for each in found.attendances)
    return (
        f"That count: {counts.recent} recent, {counts.upcoming} upcoming, {counts.total} in all, {last}."
        f" Left out: {left_out}."
    )


def _person_lines(person: Person) -> list[str]:
    lines = [_patient_line(each, person) for each in person.chain]
    between = len(lines) - 2 * MOST_IDS
    if between > 0:
        lines[MOST_IDS:-MOST_IDS] = [f"... {_number(between, 'merge')} more ..."]
    if person.record is None:
        lines.append(f"Patient {person.id}: no record was read, so nobody is counted or matched.")
    if person.in_loop:
        lines.append(f"The merges go round in a loop: its lowest id, {person.id}, stands for all of it.")
    if person.merged:
        ids = _listed([each.id for each in person.merged])
        lines.append(f"Merged into the same person: {'patient' if len(person.merged) == 1 else 'patients'} {ids}.")
    return lines


def _patient_line(patient: PatientRecord, person: Person) -> str:
    parts: list[str] = []
    if patient.merged_into_id is not None:
        when = "" if patient.merged_at is None else f" on {_at(patient.merged_at)} UTC"
        parts.append(f"merged into patient {patient.merged_into_id}{when}")
    if patient.archived_at is not None:
        parts.append(f"archived on {_at(patient.archived_at)} UTC")
    if patient.deleted_at is not None:
        parts.append(_deleted(patient))
    if not parts:
        parts.append("neither merged, archived nor deleted")
    role = " (the person)" if patient.id == person.id else ""
    return f"Patient {patient.id}{role}: {', '.join(parts)}."


def standing(attendance: Attendance) -> str:
    """Whether it counts, and why not."""
    no_show = " (no-show)" if attendance.is_no_show else ""
    if attendance.counts:
        return f"yes{no_show}"
    words = {
        "cancelled": "cancelled",
        "archived": "archived",
        "deleted": "deleted",
        "booking_archived": "its group archived",
        "booking_deleted": "its group deleted",
        "vanished": "no longer in Cliniko, noticed",
        "booking_vanished": "its group no longer in Cliniko, noticed",
        "booking_unknown": "its booking was not read",
        "no_show": "no-show, left out by the setting",
        "counted_once": f"this group counts once, by attendee {attendance.counted_attendee_id}",
    }
    reasons = [words[reason] + ("" if at is None else f" {_at(at)}") for reason, at in attendance.left_out]
    return f"no: {', '.join(reasons)}"


# The match. ---------------------------------------------------------------------------------------------------------


def _match_lines(found: Explanation) -> list[str]:
    matching = found.match
    if matching.now is None:
        return ["No person, so no contact."]
    lines = ["Not mapped yet." if matching.stored is None else f"{_mapping(matching.stored)}."]
    if matching.contact_absence is not None:
        lines.append(f"That contact {_absence(matching)} since.")
    if matching.stored != matching.now:
        lines.append(
            f"By what is stored now the next mapping would say: {_mapping(matching.now, capital=False)}."
            " The passes are told by that:"
        )
    for each in matching.passes:
        by = "cliniko_patient_id" if each.method == "cliniko_patient_id" else _key(each)
        lines.append(f"By {by}: {_pass(each, found)}.")
    return lines


def _mapping(mapping: Mapping, *, capital: bool = True) -> str:
    by = {"cliniko_patient_id": "cliniko_patient_id", "email": "e-mail", "name": "name", None: ""}[mapping.method]
    words = {
        "matched": f"matched to contact {mapping.contact_id} by {by}",
        "ambiguous": f"ambiguous by {by}, among {_candidates(mapping)}",
        "unmatched": "unmatched",
    }[mapping.status]
    return words[0].upper() + words[1:] if capital else words


def _key(each: Pass) -> str:
    return "e-mail" if each.method == "email" else "name"


def _pass(each: Pass, found: Explanation) -> str:
    """What the pass found, as the second half of a sentence."""
    key = _key(each)
    if each.method == "cliniko_patient_id":
        return _pass_by_id(each, found.person)
    if each.reason == "only_pair":
        (contact,) = (one for one in each.candidates if one.state == "free")
        return f"contact {contact.id} is the only free one with the same {key}, and no other patient has it"
    simple = {
        "not_current": f"not looked at, for the patient is {found.person.state}",
        "no_key": f"the patient has no {key}",
        "no_contact": f"no contact has the same {key}",
        "none_free": f"{_not_free(each.candidates)}, so no contact with the same {key} is free",
    }
    return simple.get(each.reason) or _pass_among_several(each, key)


def _pass_by_id(each: Pass, person: Person) -> str:
    if each.reason == "no_contact":
        others = len(person.patient_ids) - 1
        merged = f" or that of one of the {_number(others, 'patient')} merged into it" if others else ""
        return f"no contact carries its id, {person.id}{merged}"
    carried = _listed([f"contact {one.id} carries {one.patient_id}" for one in each.candidates])
    if each.reason == "only_pair":
        return carried
    equal = [one for one in each.candidates if one.equal_name]
    if len(equal) == 1:
        return f"{carried}; only {equal[0].id} has the name of patient {person.id}, too"
    return (
        f"{carried}; {len(equal) or 'none'} of them {'have' if equal else 'has'} the name of patient {person.id}, too"
    )


def _pass_among_several(each: Pass, key: str) -> str:
    free = [str(one.id) for one in each.candidates if one.state == "free"]
    sharing = (
        f"it shares its {key} with patient{'s' if len(each.other_patient_ids) > 1 else ''}"
        f" {_listed(each.other_patient_ids)}"
        if each.other_patient_ids
        else f"no other patient has its {key}"
    )
    contacts = f"free with the same {key}: contact{'s' if len(free) > 1 else ''} {_listed(free)}"
    if each.reason == "equal_names":
        return f"{sharing}; {contacts}; of these and the patients only it and its contact have equal names"
    gone = [one for one in each.candidates if one.state != "free"]
    not_free = f"; {_not_free(gone)}" if gone else ""
    why = "no two of them that have equal names are unique" if key == "e-mail" else "nothing tells them apart"
    return f"{sharing}; {contacts}{not_free}; {why}"


def _not_free(candidates: Sequence[Candidate]) -> str:
    told = [
        f"contact {each.id} {'names' if each.state == 'names_another' else 'is taken by'} patient {each.patient_id}"
        for each in candidates
    ]
    return _listed(told)


# Words. -------------------------------------------------------------------------------------------------------------


def _listed(items: Sequence[str]) -> str:
    shown = ", ".join(items[:MOST_IDS])
    return shown if len(items) <= MOST_IDS else f"{shown} and {len(items) - MOST_IDS} more"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _days(window: timedelta) -> str:
    return _number(window.days, "day")


def _at(instant: datetime | None) -> str:
    if instant is None:
        return "unknown"
    plain = instant.astimezone(UTC).replace(tzinfo=None)
    return plain.isoformat(sep=" ", timespec="seconds" if plain.second or plain.microsecond else "minutes")


def _as_json(organization_id: str, found: Explanation) -> dict[str, Any]:
    return {
        "organization_id": organization_id,
        "patient_id": found.patient_id,
        "is_active": found.is_active,
        "verdict": verdict(found),
        "active_patients": {
            "listing": found.listing,
            "explanation": listing(found),
            "row": None if found.row is None else asdict(found.row),
        },
        "problems": problems(found),
        "state": asdict(found.state),
        "as_of": {
            "instant": found.as_of,
            "source": found.as_of_source,
            "window_from": found.rules.window_start(found.as_of),
            "activity_window_days": found.rules.activity_window.days,
            "count_no_shows": found.rules.count_no_shows,
        },
        "person": {**asdict(found.person), "state": found.person.state},
        "counts": asdict(found.counts),
        "match": _match_as_json(found),
        "attendances": [_attendance_as_json(each) for each in found.attendances],
    }


def _match_as_json(found: Explanation) -> dict[str, Any]:
    values = asdict(found.match)
    values["passes"] = [{**asdict(each), "explanation": _pass(each, found)} for each in found.match.passes]
    return values


def _attendance_as_json(attendance: Attendance) -> dict[str, Any]:
    return {**asdict(attendance), "left_out": [{"reason": reason, "at": at} for reason, at in attendance.left_out]}


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(type(value).__name__)
