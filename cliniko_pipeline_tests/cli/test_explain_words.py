"""What `cliniko-pipeline explain` prints of an explanation: the words for every reason, and how they fit a terminal."""

import io
import re
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from cliniko_pipeline.cli import explain as command_module
from cliniko_pipeline.cli.explain import RESOURCES, listing, problems, standing, verdict
from cliniko_pipeline.postgres.reads.explanations import (
    ActiveRow,
    Attendance,
    Candidate,
    Counts,
    Explanation,
    Mapping,
    Match,
    Pass,
    PatientRecord,
    Person,
    Rules,
    State,
)

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
    """A recent individual appointment, unless changed."""
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
    """What the command prints, in one line a statement where there is room."""
    output = io.StringIO()
    command_module._show(Console(file=output, width=width), replace(EXPLAINED, **changes))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def section(text: str, heading: str) -> list[str]:
    return [line.strip() for line in text.partition(f"{heading}\n")[2].partition("\n\n")[0].splitlines()]


ACTIVE_PATIENT = """\
Patient 1 is active: 1 appointment from 2026-04-16 09:30 to 2026-06-15 09:30 UTC.
  In public.active_patients it has row 5, judged by 2026-06-15 09:30 UTC: as it should be.

Judged by
  2026-06-15 09:30 UTC (as public.active_patients was computed last);
  the window is the 60 days before;
  no-shows count.

The person
  Patient 1 (the person): neither merged, archived nor deleted.

The contact
  Matched to contact 00000000-0000-0000-0000-000000000001 by cliniko_patient_id.
  By cliniko_patient_id: contact 00000000-0000-0000-0000-000000000001 carries 1.

The appointments
  That count: 1 recent, 1 upcoming, 2 in all, the last so far 2026-06-01 09:00 UTC. Left out: 0.

Starts (UTC)      When      Kind        Appointment  Type  Practitioner  Counts
───────────────────────────────────────────────────────────────────────────────
2026-06-20 09:30  upcoming  individual  11                               yes
2026-06-01 09:00  recent    individual  10                               yes"""


def test_active_patient_is_shown_with_row_and_contact() -> None:
    assert shown().replace("; ", ";\n  ") == ACTIVE_PATIENT
    assert "no-shows do not count." in shown(rules=Rules(timedelta(days=60), count_no_shows=False))
    output = io.StringIO()
    command_module._show(Console(file=output, force_terminal=True, color_system="standard", no_color=False), EXPLAINED)
    assert output.getvalue().startswith("\x1b[1;32mPatient 1 is active")


NONE = Counts(0, 0, 0, None)


def test_first_line_is_the_verdict() -> None:
    merged = verdict(replace(EXPLAINED, patient_id="2"))
    assert merged == f"Patient 2, as patient 1 that it was merged into, is active: 1 appointment {WINDOW}."
    some = {"counts": Counts(0, 1, 2, ENDED), "attendances": (attendance(("cancelled", ENDED)),)}
    left_out = "(1 there left out, 1 upcoming, the last one on 2026-05-01 00:00 UTC)"
    no_record = person(record("1"), id="404", record=None)
    vanished = record("1", deleted_at=NOTICED, vanished_at=NOTICED)
    found_deleted = record("1", deleted_at=ENDED, vanished_at=NOTICED)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"person": no_record}, "it was merged into patient 404, of which no record was read."),
        (some, f"no appointment that counts {WINDOW} {left_out}."),
        ({"counts": NONE}, f"no appointment that counts {WINDOW}."),
        ({"person": person(record("1", archived_at=ENDED))}, "archived on 2026-05-01 00:00 UTC."),
        ({"person": person(found_deleted)}, "deleted on 2026-05-01 00:00 UTC."),
        ({"person": person(vanished)}, "no longer in Cliniko (noticed on 2026-06-10 08:00 UTC)."),
    ]
    for changes, why in cases:
        assert verdict(replace(EXPLAINED, **changes)) == f"Patient 1 is not active: {why}"


def test_appointment_that_does_not_count_has_its_reasons() -> None:
    assert standing(attendance(is_no_show=True)) == "yes (no-show)"
    assert standing(attendance(("counted_once", None), counted_attendee_id="32")) == (
        "no: this group counts once, by attendee 32"
    )
    for reasons, words in (
        ([("cancelled", ENDED), ("archived", ENDED)], "cancelled 2026-05-01 00:00, archived 2026-05-01 00:00"),
        ([("deleted", ENDED)], "deleted 2026-05-01 00:00"),
        ([("booking_archived", ENDED)], "its group archived 2026-05-01 00:00"),
        ([("booking_deleted", ENDED)], "its group deleted 2026-05-01 00:00"),
        ([("vanished", NOTICED)], "no longer in Cliniko, noticed 2026-06-10 08:00"),
        ([("booking_vanished", NOTICED)], "its group no longer in Cliniko, noticed 2026-06-10 08:00"),
        ([("booking_unknown", None)], "its booking was not read"),
        ([("no_show", None)], "no-show, left out by the setting"),
    ):
        assert standing(attendance(*reasons)) == f"no: {words}"


def test_merges_are_shown_step_by_step() -> None:
    merged = record("7", merged_into_id="10", merged_at=ENDED, archived_at=ENDED)
    assert section(shown(person=person(merged, record("10"), merged=(record("9"),))), "The person") == [
        "Patient 7: merged into patient 10 on 2026-05-01 00:00 UTC, archived on 2026-05-01 00:00 UTC.",
        "Patient 10 (the person): neither merged, archived nor deleted.",
        "Merged into the same person: patient 9.",
    ]
    assert "The merges go round in a loop: its lowest id, 91, stands for all of it." in shown(
        person=person(record("1000"), record("91"), in_loop=True)
    )
    nobody = shown(person=person(record("95"), id="404", record=None), match=Match(None, None, ()))
    assert "  Patient 404: no record was read, so nobody is counted or matched.\n" in nobody
    assert section(nobody, "The contact") == ["No person, so no contact."]
    chain = section(shown(person=person(*(record(str(number)) for number in range(1, 31)))), "The person")
    assert len(chain) == 11
    assert [chain[4][:10], chain[5], chain[6][:10]] == ["Patient 5:", "... 20 merges more ...", "Patient 26"]


def test_row_of_the_table_is_compared() -> None:
    start = "In public.active_patients it has row 5, judged by 2026-06-15 09:30 UTC: by what is stored now "
    changed = replace(ROW, differences=("total_appointment_count", "recent_appointments"), updated_at=ENDED)
    later = (attendance(synced_at=NOTICED),)
    since = " (its records changed since, the last at 2026-06-10 08:00 UTC)."
    assert listing(replace(EXPLAINED, listing="differs", row=changed, attendances=later)) == (
        f"{start}total_appointment_count, recent_appointments would be different{since}"
    )
    assert listing(replace(EXPLAINED, listing="out_of_date", row=changed, attendances=later)) == (
        f"{start}it would have none{since}"
    )
    wider = replace(EXPLAINED, listing="differs", row=changed, rules=Rules(timedelta(days=90), count_no_shows=True))
    assert listing(wider).endswith(" would be different (the window was 60 days then and is 90 days now).")
    assert listing(replace(EXPLAINED, counts=NONE)).endswith(", when it was active: as it should be.")


def test_missing_row_is_explained() -> None:
    missing = replace(EXPLAINED, row=None, match=replace(EXPLAINED.match, stored=Mapping("ambiguous", "name", None, 1)))
    words = {
        "not_active": ", as it should be.",
        "unmapped": ": since it was read the mapping was not computed.",
        "unmatched": ": no contact is certain to be it (unmatched).",
        "ambiguous": ": which contact it is, is not certain (ambiguous among 1 contact).",
        "contact_gone": ": its contact was deleted since the mapping was computed.",
        "other_instant": ": that was computed by 2026-06-15 09:30 UTC, when it was not active.",
        "not_computed": ", which is older than what is stored: the next sync that succeeds adds it.",
    }
    assert {each: listing(replace(missing, listing=each)) for each in words} == {
        each: f"It has no row in public.active_patients{why}" for each, why in words.items()
    }
    empty = replace(missing, listing="not_computed", state=replace(STATE, judged_at=None))
    assert listing(empty).endswith(", which is empty: the next sync that succeeds adds it.")


WORDS_OF_PASSES = """\
Unmatched.
By cliniko_patient_id: no contact carries its id, 1.
By cliniko_patient_id: contact c1 carries 1, contact c2 carries 1;
only c1 has the name of patient 1, too.
By e-mail: contact c1 is the only free one with the same e-mail, and no other patient has it.
By name: not looked at, for the patient is current.
By e-mail: the patient has no e-mail.
By name: no contact has the same name.
By name: contact c3 is taken by patient 45, contact c4 names patient 77, so no contact with the same name is free.
By e-mail: it shares its e-mail with patient 9;
free with the same e-mail: contact c1;
contact c3 is taken by patient 45;
no two of them that have equal names are unique.
By name: no other patient has its name;
free with the same name: contacts c1, c2;
nothing tells them apart.
By e-mail: it shares its e-mail with patients 8, 9;
free with the same e-mail: contact c1;
of these and the patients only it and its contact have equal names."""


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
    next_mapping = "By what is stored now the next mapping would say: ambiguous by e-mail, among 2 contacts."
    assert section(shown(match=now_ambiguous), "The contact") == [
        f"Matched to contact {CONTACTS[1]} by name.",
        "That contact was deleted since.",
        f"{next_mapping} The passes are told by that:",
    ]
    assert section(shown(match=replace(EXPLAINED.match, stored=None)), "The contact")[0] == "Not mapped yet."


def test_problems_of_the_organization_are_shown() -> None:
    assert problems(EXPLAINED) == []
    for changes, words in (
        ({"last_run_status": None}, "No sync of this organization is known."),
        ({"last_run_status": "failed", "last_run_error": "E."}, "The last sync, of 2026-06-15 09:30 UTC, failed. E."),
        ({"last_run_status": "running"}, "A sync that began at 2026-06-15 09:30 UTC has not ended: "),
        (
            {"resources_complete": RESOURCES[:-2]},
            "Not read to the end, and so missing or a mixture of old and new: appointment_types, practitioners.",
        ),
        ({"rejected_records": 1}, "1 record of the organization could not be understood and was set aside: "),
        ({"doubtful_deletions": 2}, "The last full sync no longer found 2 records of the organization, too many to be"),
    ):
        doubtful = replace(STATE, **changes)
        (line,) = problems(replace(EXPLAINED, state=doubtful))
        assert line.startswith(words)
        assert f"\n  {line}\n" in shown(state=doubtful)


def test_long_list_of_attendances_is_shortened() -> None:
    windows = ["upcoming"] * 12 + ["recent"] * 12 + ["earlier"] * 12
    text = shown(attendances=tuple(attendance(id=str(n), window=window) for n, window in enumerate(windows)))
    rows = [line.split()[2:5:2] for line in text.splitlines() if re.match(r"\d{4}-", line)]
    assert rows == [[windows[n], str(n)] for n in range(4, 24)]
    assert text.endswith("\n16 more, further from the instant judged by: --json has all.")


@pytest.mark.parametrize("width", [70, 140])
def test_ids_and_instants_fit_narrow_terminals(width: int) -> None:
    group = attendance(("counted_once", None), kind="group", id=LONG_ID, counted_attendee_id=LONG_ID)
    ended = attendance(("cancelled", ENDED), ("archived", ENDED), id=LONG_ID)
    several = Match(MATCHED, MATCHED, (Pass("cliniko_patient_id", "ambiguous", "several", FREE[1:]),), True)
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
