"""Tests of the output of `cliniko-pipeline explain`: the text of every reason, and the layout on a terminal."""

import io
import re
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from cliniko_pipeline.cli.explain.tables import show
from cliniko_pipeline.cli.explain.texts import RESOURCES, listing, problems, standing, verdict
from cliniko_pipeline.postgres.reads.explanations.attendances import Attendance, Counts
from cliniko_pipeline.postgres.reads.explanations.explanation import ActiveRow, Explanation, State
from cliniko_pipeline.postgres.reads.explanations.match import Candidate, Mapping, Match, Pass
from cliniko_pipeline.postgres.reads.explanations.person import PatientRecord, Person
from cliniko_pipeline.postgres.rules import Rules

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
ENDED = datetime(2026, 5, 1, tzinfo=UTC)
NOTICED = datetime(2026, 6, 10, 8, tzinfo=UTC)
CAME = datetime(2026, 6, 1, 9, tzinfo=UTC)
WINDOW = "from 2026-04-16 09:30 to 2026-06-15 09:30 UTC"
LONG_ID = "1204000000096468992"
CONTACTS = [UUID(int=number) for number in range(8)]
FREE = tuple(Candidate(each, "free", "1", equal_name=False) for each in CONTACTS)
UNMATCHED = Mapping("unmatched", None, None, None)


def record(patient_id: str, **changes: Any) -> PatientRecord:
    ends = dict.fromkeys(("merged_into_id", "merged_at", "archived_at", "deleted_at", "vanished_at"))
    return PatientRecord(id=patient_id, **{**ends, "synced_at": ENDED, **changes})


def person(*chain: PatientRecord, **changes: Any) -> Person:
    return replace(Person(chain[-1].id, chain[-1], chain, merged=(), in_loop=False), **changes)


def attendance(*left_out: tuple[Any, datetime | None], **changes: Any) -> Attendance:
    """Return a recent individual appointment with the changes."""
    unknown = dict.fromkeys(each.name for each in fields(Attendance))
    plain = {"kind": "individual", "id": "10", "patient_id": "1", "starts_at": CAME, "window": "recent"}
    counting = {"counts": not left_out, "is_no_show": False, "left_out": left_out, "synced_at": ENDED}
    return Attendance(**{**unknown, **plain, **counting, **changes})


ROW = ActiveRow(5, CONTACTS[1], 1, 1, 2, CAME, AS_OF - timedelta(days=60), AS_OF, AS_OF, ())
STATE = State(AS_OF, AS_OF, AS_OF, "succeeded", AS_OF, None, RESOURCES, 0, 0)
MATCHED = Mapping("matched", "cliniko_patient_id", CONTACTS[1], 1)
EXPLAINED = Explanation(
    patient_id="1",
    as_of=AS_OF,
    as_of_source="active_patients",
    rules=Rules(timedelta(days=60), count_no_shows=True),
    state=STATE,
    person=person(record("1")),
    attendances=(attendance(id="11", window="upcoming", starts_at=AS_OF + timedelta(days=5)), attendance()),
    counts=Counts(1, 1, 2, CAME),
    match=Match(MATCHED, MATCHED, (Pass("cliniko_patient_id", "matched", "only_pair", FREE[1:2]),)),
    row=ROW,
    listing="listed",
)


def shown(width: int = 1000, **changes: Any) -> str:
    """Return the output of the command on a terminal of this width."""
    output = io.StringIO()
    show(Console(file=output, width=width), replace(EXPLAINED, **changes))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def section(text: str, heading: str) -> list[str]:
    return [line.strip() for line in text.partition(f"{heading}\n")[2].partition("\n\n")[0].splitlines()]


ACTIVE_PATIENT = """\
Patient 1 is active: 1 appointment from 2026-04-16 09:30 to 2026-06-15 09:30 UTC.
  It has row 5 in public.active_patients, which was computed for 2026-06-15 09:30 UTC. The row is correct.

As of
  2026-06-15 09:30 UTC (the last computation of public.active_patients);
  the window is the 60 days before;
  no-shows count.

The person
  Patient 1 (the person): not merged, archived or deleted.

The contact
  Matched to contact 00000000-0000-0000-0000-000000000001 by cliniko_patient_id.
  By cliniko_patient_id: contact 00000000-0000-0000-0000-000000000001 has the patient id 1.

The appointments
  Counted: 1 recent, 1 upcoming, 2 in total, last one 2026-06-01 09:00 UTC. Not counted: 0.

Starts (UTC)      When      Kind        Appointment  Type  Practitioner  Counts
───────────────────────────────────────────────────────────────────────────────
2026-06-20 09:30  upcoming  individual  11                               yes
2026-06-01 09:00  recent    individual  10                               yes"""


def test_active_patient_is_shown_with_row_and_contact() -> None:
    assert shown().replace("; ", ";\n  ") == ACTIVE_PATIENT
    assert "no-shows do not count." in shown(rules=Rules(timedelta(days=60), count_no_shows=False))
    output = io.StringIO()
    show(Console(file=output, force_terminal=True, color_system="standard", no_color=False), EXPLAINED)
    assert output.getvalue().startswith("\x1b[1;32mPatient 1 is active")


NONE = Counts(0, 0, 0, None)


def test_first_line_is_the_verdict() -> None:
    merged = verdict(replace(EXPLAINED, patient_id="2"))
    assert merged == f"Patient 2, merged into patient 1, is active: 1 appointment {WINDOW}."
    some = {"counts": Counts(0, 1, 2, ENDED), "attendances": (attendance(("cancelled", ENDED)),)}
    left_out = "(1 recent not counted, 1 upcoming, the last counted one on 2026-05-01 00:00 UTC)"
    no_record = person(record("1"), id="404", record=None)
    vanished = record("1", deleted_at=NOTICED, vanished_at=NOTICED)
    found_deleted = record("1", deleted_at=ENDED, vanished_at=NOTICED)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"person": no_record}, "it was merged into patient 404, which has no record."),
        (some, f"no appointment that counts {WINDOW} {left_out}."),
        ({"counts": NONE}, f"no appointment that counts {WINDOW}."),
        ({"person": person(record("1", archived_at=ENDED))}, "archived on 2026-05-01 00:00 UTC."),
        ({"person": person(found_deleted)}, "deleted on 2026-05-01 00:00 UTC."),
        ({"person": person(vanished)}, "deleted in Cliniko (found missing on 2026-06-10 08:00 UTC)."),
    ]
    for changes, why in cases:
        assert verdict(replace(EXPLAINED, **changes)) == f"Patient 1 is not active: {why}"


def test_appointment_that_does_not_count_has_its_reasons() -> None:
    assert standing(attendance(is_no_show=True)) == "yes (no-show)"
    assert standing(attendance(("counted_once", None), counted_attendee_id="32")) == (
        "no: group counts once, by attendee 32"
    )
    for reasons, words in (
        ([("cancelled", ENDED), ("archived", ENDED)], "cancelled 2026-05-01 00:00, archived 2026-05-01 00:00"),
        ([("deleted", ENDED)], "deleted 2026-05-01 00:00"),
        ([("booking_archived", ENDED)], "group archived 2026-05-01 00:00"),
        ([("booking_deleted", ENDED)], "group deleted 2026-05-01 00:00"),
        ([("vanished", NOTICED)], "deleted in Cliniko, found missing 2026-06-10 08:00"),
        ([("booking_vanished", NOTICED)], "group deleted in Cliniko, found missing 2026-06-10 08:00"),
        ([("booking_unknown", None)], "booking has no record"),
        ([("no_show", None)], "no-show, excluded by CLINIKO_COUNT_NO_SHOWS"),
    ):
        assert standing(attendance(*reasons)) == f"no: {words}"


def test_merges_are_shown_step_by_step() -> None:
    merged = record("7", merged_into_id="10", merged_at=ENDED, archived_at=ENDED)
    assert section(shown(person=person(merged, record("10"), merged=(record("9"),))), "The person") == [
        "Patient 7: merged into patient 10 on 2026-05-01 00:00 UTC, archived on 2026-05-01 00:00 UTC.",
        "Patient 10 (the person): not merged, archived or deleted.",
        "Merged into the same person: patient 9.",
    ]
    assert "The merges form a loop, so the person has the lowest id of the loop, 91." in shown(
        person=person(record("1000"), record("91"), in_loop=True)
    )
    nobody = shown(person=person(record("95"), id="404", record=None), match=Match(None, None, ()))
    assert "  Patient 404 has no record, so the person is neither active nor matched.\n" in nobody
    assert section(nobody, "The contact") == ["The person has no record, so it has no contact."]


def test_row_of_the_table_is_compared() -> None:
    computed = "It has row 5 in public.active_patients, which was computed for 2026-06-15 09:30 UTC. "
    start = f"{computed}The stored records now give "
    changed = replace(ROW, differences=("total_appointment_count", "recent_appointments"), updated_at=ENDED)
    later = (attendance(synced_at=NOTICED),)
    since = " (its records changed later, last at 2026-06-10 08:00 UTC)."
    assert listing(replace(EXPLAINED, listing="differs", row=changed, attendances=later)) == (
        f"{start}other values of total_appointment_count, recent_appointments{since}"
    )
    assert listing(replace(EXPLAINED, listing="out_of_date", row=changed, attendances=later)) == (
        f"{start}no row{since}"
    )
    wider = replace(EXPLAINED, listing="differs", row=changed, rules=Rules(timedelta(days=90), count_no_shows=True))
    assert listing(wider).endswith(" (the window was 60 days and is 90 days now).")
    assert listing(replace(EXPLAINED, counts=NONE)).endswith("The row is correct, because the patient was active then.")


def test_missing_row_is_explained() -> None:
    missing = replace(EXPLAINED, row=None, match=replace(EXPLAINED.match, stored=Mapping("ambiguous", "name", None, 1)))
    words = {
        "not_active": ", which is correct.",
        "unmapped": ", because the mapping is older than the patient's record.",
        "unmatched": ", because no contact matches the patient (unmatched).",
        "ambiguous": ", because its contact is not certain (ambiguous among 1 contact).",
        "contact_gone": ", because its contact was deleted after the mapping was computed.",
        "other_instant": ". It was not active at 2026-06-15 09:30 UTC, for which the table was computed.",
        "not_computed": ". The table is older than the stored records, and the next successful sync adds the row.",
    }
    assert {each: listing(replace(missing, listing=each)) for each in words} == {
        each: f"It has no row in public.active_patients{why}" for each, why in words.items()
    }
    empty = replace(missing, listing="not_computed", state=replace(STATE, judged_at=None))
    assert listing(empty).endswith(". The table is empty, and the next successful sync adds the row.")


WORDS_OF_PASSES = """\
Unmatched.
By cliniko_patient_id: no contact has the patient id 1.
By cliniko_patient_id: contact c1 has the patient id 1, contact c2 has the patient id 1;
only c1 also has the name of patient 1.
By e-mail: only contact c1 with the same e-mail can still match, and no other patient has this e-mail.
By name: skipped, because the patient is current.
By e-mail: the patient has no e-mail.
By name: no contact has the same name.
By name: contact c3 matches patient 45, contact c4 has the id of patient 77, so no contact with the same name is left.
By e-mail: it shares its e-mail with patient 9;
contact with the same e-mail that can still match: c1;
contact c3 matches patient 45;
no pair with equal names is unique.
By name: no other patient has its name;
contacts with the same name that can still match: c1, c2;
nothing distinguishes them.
By e-mail: it shares its e-mail with patients 8, 9;
contact with the same e-mail that can still match: c1;
only this patient and its contact have equal names."""


def test_passes_of_the_match_are_shown() -> None:
    taken = Candidate(CONTACTS[3], "taken", "45", equal_name=False)
    another = Candidate(CONTACTS[4], "names_another", "77", equal_name=False)
    passes = (
        Pass("cliniko_patient_id", "no_candidate", "no_contact"),
        Pass("cliniko_patient_id", "matched", "equal_names", (replace(FREE[1], equal_name=True), FREE[2])),
        Pass("email", "matched", "only_pair", (taken, FREE[1])),
        Pass("name", "not_taken", "not_current"),
        Pass("email", "no_candidate", "no_key"),
        Pass("name", "no_candidate", "no_contact"),
        Pass("name", "no_candidate", "none_free", (taken, another)),
        Pass("email", "ambiguous", "several", (FREE[1], taken), ("9",)),
        Pass("name", "ambiguous", "several", FREE[1:3]),
        Pass("email", "matched", "equal_names", FREE[1:2], ("8", "9")),
    )
    text = shown(match=Match(UNMATCHED, UNMATCHED, passes))
    text = text.replace("00000000-0000-0000-0000-00000000000", "c")
    assert "\n".join(section(text, "The contact")).replace("; ", ";\n") == WORDS_OF_PASSES


def test_stored_match_is_compared_with_the_next() -> None:
    by_name = replace(MATCHED, method="name")
    now_ambiguous = Match(by_name, Mapping("ambiguous", "email", None, 2), (), contact_absence="deleted")
    next_mapping = "The next mapping will be: ambiguous by e-mail, among 2 contacts."
    assert section(shown(match=now_ambiguous), "The contact") == [
        f"Matched to contact {CONTACTS[1]} by name.",
        "That contact was deleted later.",
        f"{next_mapping} These are its passes:",
    ]
    assert section(shown(match=replace(EXPLAINED.match, stored=None)), "The contact")[0] == "Not mapped yet."


def test_problems_of_the_organization_are_shown() -> None:
    assert problems(STATE) == []
    for changes, words in (
        ({"last_run_status": None}, "No sync of this organization has run."),
        (
            {"last_run_status": "failed", "last_run_error": "E."},
            "The last sync, started at 2026-06-15 09:30 UTC, failed. E.",
        ),
        ({"last_run_status": "running"}, "A sync started at 2026-06-15 09:30 UTC is still running: "),
        (
            {"resources_complete": RESOURCES[:-2]},
            "Records may be missing or out of date, because crawls are incomplete: appointment_types, practitioners.",
        ),
        ({"rejected_records": 1}, "Rejected records of the organization: 1. A record that is missing here may be"),
        ({"doubtful_deletions": 2}, "The last full sync missed 2 records, too many to mark them as deleted."),
    ):
        doubtful = replace(STATE, **changes)
        (line,) = problems(doubtful)
        assert line.startswith(words)
        assert f"\n  {line}\n" in shown(state=doubtful)


def test_long_list_of_attendances_is_shortened() -> None:
    windows = ["upcoming"] * 12 + ["recent"] * 12 + ["earlier"] * 12
    text = shown(attendances=tuple(attendance(id=str(n), window=window) for n, window in enumerate(windows)))
    rows = [line.split()[2:5:2] for line in text.splitlines() if re.match(r"\d{4}-", line)]
    assert rows == [[windows[n], str(n)] for n in range(4, 24)]
    assert text.endswith("\n16 more: --json prints all.")


@pytest.mark.parametrize("width", [70, 140])
def test_ids_and_instants_fit_narrow_terminals(width: int) -> None:
    group = attendance(("counted_once", None), kind="group", id=LONG_ID, counted_attendee_id=LONG_ID)
    ended = attendance(("cancelled", ENDED), ("archived", ENDED), id=LONG_ID)
    several = Match(MATCHED, MATCHED, (Pass("cliniko_patient_id", "ambiguous", "several", FREE[1:]),))
    text = shown(width, person=person(record(LONG_ID)), attendances=(group, ended), match=several)
    assert max(map(len, text.splitlines())) <= width
    assert sum(line.startswith("2026-06-01 09:00  recent  ") and LONG_ID in line for line in text.splitlines()) == 2
    assert [str(each) in text for each in CONTACTS[1:]] == [True] * 5 + [False] * 2
    assert " and 2 more; " in " ".join(text.split())
    assert ("Practitioner" in text) == (width == 140)


def test_control_characters_and_markup_are_not_interpreted() -> None:
    name = "[bold]Class[/oops] \x1b]0;title\x07\n\x9b31m" + "x" * 40
    text = shown(attendances=(attendance(appointment_type=name, practitioner="Dr \u202eyaR"),))
    assert "[bold]Class[/oops]  ]0;title   31m" + "x" * 40 in text
    assert all(character.isprintable() for character in text.replace("\n", ""))
