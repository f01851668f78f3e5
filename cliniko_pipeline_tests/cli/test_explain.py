"""`cliniko-pipeline explain`: the words for every reason, what fits into a terminal, what must never be shown."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from rich.console import Console
from sqlalchemy.engine import URL

from cliniko_pipeline.cli import explain as command_module
from cliniko_pipeline.cli.main import cli
from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.explanations import Explanation, Rules
from cliniko_pipeline_tests.postgres.test_explanations import (
    AS_OF,
    ENDED,
    MAIL,
    RECENTLY,
    SOON,
    WITHOUT_NO_SHOWS,
    Clinic,
    came,
)
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.hostile_accounts import (
    appointment_type,
    attendee,
    contact,
    group_appointment,
    individual_appointment,
    link,
    patient,
    practitioner,
)
from cliniko_pipeline_tests.support.processes import SCRIPT, CommandLine

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
LONG_ID = "1204000000096468992"


@pytest.fixture(scope="module")
def shared_database(server_url: URL, template: str) -> Iterator[Database]:
    name = f"test_{uuid4().hex}"
    administer(server_url, f"create database {name} template {template}")
    database = Database(server_url.set(database=name))
    yield database
    database.close()
    administer(server_url, f"drop database {name} with (force)")


@pytest.fixture
def clinic(shared_database: Database) -> Clinic:
    return Clinic(shared_database)


def shown(found: Explanation, width: int = 1000) -> str:
    """What the command prints, in one line a statement where there is room."""
    console = Console(file=io.StringIO(), width=width)
    command_module._show(console, found)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


# The words. ---------------------------------------------------------------------------------------------------------


def test_an_active_patient_is_told_with_its_window_its_row_and_its_contact(clinic: Clinic) -> None:
    clinic.store(patients=[patient("1", "Ann")], individual_appointments=[came(), came("11", starts_at=SOON)])
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.add_run("succeeded", AS_OF)
    clinic.compute()
    lines = shown(clinic.explain("1")).splitlines()
    assert lines[0] == "Patient 1 is active: 1 appointment from 2026-04-16 09:30 to 2026-06-15 09:30 UTC."
    assert re.fullmatch(
        r"  In public.active_patients it has row \d+, judged by 2026-06-15 09:30 UTC: as it should be\.", lines[1]
    )
    assert lines[2:] == [
        "",
        "Judged by",
        (
            "  2026-06-15 09:30 UTC (as public.active_patients was computed last); the window is the 60 days before;"
            " no-shows count."
        ),
        "",
        "The person",
        "  Patient 1 (the person): neither merged, archived nor deleted.",
        "",
        "The contact",
        f"  Matched to contact {clinic.contact_id(1)} by cliniko_patient_id.",
        f"  By cliniko_patient_id: contact {clinic.contact_id(1)} carries 1.",
        "",
        "The appointments",
        "  That count: 1 recent, 1 upcoming, 2 in all, the last so far 2026-06-01 09:00 UTC. Left out: 0.",
        "",
        "Starts (UTC)      When      Kind        Appointment  Type  Practitioner  Counts",
        "───────────────────────────────────────────────────────────────────────────────",
        "2026-06-20 09:00  upcoming  individual  11                               yes",
        "2026-06-01 09:00  recent    individual  10                               yes",
    ]


@pytest.mark.parametrize(
    ("asked", "changes", "verdict"),
    [
        ("1", {"archived_at": ENDED}, "Patient 1 is not active: archived on 2026-05-01 00:00 UTC."),
        ("1", {"deleted_at": ENDED}, "Patient 1 is not active: deleted on 2026-05-01 00:00 UTC."),
        (
            "2",
            {"archived_at": ENDED},
            "Patient 2, as patient 1 that it was merged into, is not active: archived on 2026-05-01 00:00 UTC.",
        ),
        (
            "3",
            {},
            "Patient 3 is not active: it was merged into patient 404, of which no record was read.",
        ),
        (
            "2",
            {},
            (
                "Patient 2, as patient 1 that it was merged into, is active: 1 appointment from 2026-04-16 09:30 to"
                " 2026-06-15 09:30 UTC."
            ),
        ),
        (
            "4",
            {},
            (
                "Patient 4 is not active: no appointment that counts from 2026-04-16 09:30 to 2026-06-15 09:30 UTC"
                " (1 there left out, 1 upcoming, the last one on 2026-01-01 00:00 UTC)."
            ),
        ),
        ("5", {}, "Patient 5 is not active: no appointment that counts from 2026-04-16 09:30 to 2026-06-15 09:30 UTC."),
    ],
)
def test_the_first_line_says_whether_and_why(clinic: Clinic, asked: str, changes: dict[str, Any], verdict: str) -> None:
    clinic.store(
        patients=[
            patient("1", **changes),
            patient("2", merged_into="1"),
            patient("3", merged_into="404"),
            patient("4"),
            patient("5"),
        ],
        individual_appointments=[
            came(),
            came("40", "4", cancelled_at=ENDED),
            came("41", "4", SOON),
            came("42", "4", "2026-01-01T00:00:00Z"),
        ],
    )
    assert shown(clinic.explain(asked, AS_OF)).splitlines()[0] == verdict


def test_a_patient_that_cliniko_no_longer_has_is_told_as_such(clinic: Clinic) -> None:
    clinic.store(patients=[patient("1")], individual_appointments=[came()])
    for table in ("patients", "appointments"):
        clinic.run(
            f"update cliniko.{table} set vanished_at = '2026-06-10T08:00:00Z', deleted_at = '2026-06-10T08:00:00Z'"
        )
    text = shown(clinic.explain("1", AS_OF))
    assert text.startswith("Patient 1 is not active: no longer in Cliniko (noticed on 2026-06-10 08:00 UTC).\n")
    assert "  Patient 1 (the person): no longer in Cliniko (noticed on 2026-06-10 08:00 UTC).\n" in text
    assert "no: no longer in Cliniko, noticed 2026-06-10 08:00" in text
    clinic.run("update cliniko.patients set deleted_at = '2026-05-01T00:00:00Z'")
    assert shown(clinic.explain("1", AS_OF)).startswith("Patient 1 is not active: deleted on 2026-05-01 00:00 UTC.\n")


def test_why_each_appointment_does_not_count_is_told(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[
            came("10", cancelled_at=ENDED, archived_at=ENDED),
            came("11", deleted_at=ENDED),
            came("12", did_not_arrive=True),
            came("13"),
        ],
        group_appointments=[
            group_appointment("20", RECENTLY, archived_at=ENDED),
            group_appointment("21", RECENTLY, deleted_at=ENDED),
            group_appointment("22", RECENTLY),
        ],
        attendees=[
            attendee("30", "20", "1"),
            attendee("31", "21", "1"),
            attendee("32", "22", "1"),
            attendee("33", "22", "1"),
            attendee("34", "404", "1"),
            attendee("35", None, "1"),
        ],
    )
    reasons = [_cells(line) for line in shown(clinic.explain("1", AS_OF, WITHOUT_NO_SHOWS)).splitlines()]
    told = [(row[3], row[-1]) for row in reasons if len(row) > 4 and row[2] in {"individual", "group"}]
    assert told == [
        ("10", "no: cancelled 2026-05-01 00:00, archived 2026-05-01 00:00"),
        ("11", "no: deleted 2026-05-01 00:00"),
        ("12", "no: no-show, left out by the setting"),
        ("13", "yes"),
        ("20", "no: its group archived 2026-05-01 00:00"),
        ("21", "no: its group deleted 2026-05-01 00:00"),
        ("22", "yes"),
        ("22", "no: this group counts once, by attendee 32"),
        ("404", "no: its booking was not read"),
        ("unknown", "no: its booking was not read"),
    ]
    assert "12                               yes (no-show)" in shown(clinic.explain("1", AS_OF))
    assert "no-shows do not count." in shown(clinic.explain("1", AS_OF, WITHOUT_NO_SHOWS))


def _cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line)


def test_the_merges_are_told_step_by_step(clinic: Clinic) -> None:
    clinic.store(
        patients=[
            patient("7", merged_into="8", merged_at=ENDED, archived_at=ENDED),
            patient("8", merged_into="10"),
            patient("9", merged_into="10"),
            patient("10"),
            patient("1000", merged_into="91"),
            patient("91", merged_into="1000"),
            patient("95", merged_into="404"),
        ]
    )
    assert """
The person
  Patient 7: merged into patient 8 on 2026-05-01 00:00 UTC, archived on 2026-05-01 00:00 UTC.
  Patient 8: merged into patient 10.
  Patient 10 (the person): neither merged, archived nor deleted.
  Merged into the same person: patient 9.
""" in shown(clinic.explain("7", AS_OF))
    assert "The merges go round in a loop: its lowest id, 91, stands for all of it." in shown(
        clinic.explain("1000", AS_OF)
    )
    nobody = shown(clinic.explain("95", AS_OF))
    assert "  Patient 404: no record was read, so nobody is counted or matched.\n" in nobody
    assert "  No person, so no contact.\n" in nobody


def test_of_a_long_chain_of_merges_both_ends_are_told(clinic: Clinic) -> None:
    clinic.store(patients=[patient(n, merged_into=str(n + 1)) for n in range(1, 30)] + [patient(30)])
    lines = shown(clinic.explain("1", AS_OF)).partition("The person\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == 11
    assert lines[4:7] == [
        "  Patient 5: merged into patient 6.",
        "  ... 20 merges more ...",
        "  Patient 26: merged into patient 27.",
    ]
    assert lines[-1] == "  Patient 30 (the person): neither merged, archived nor deleted."


def test_how_the_person_stands_in_the_table_is_told(clinic: Clinic) -> None:
    ids = [str(n) for n in range(1, 6)]
    clinic.store(
        patients=[patient("1", "Ann"), patient("2", "Bo"), patient("3", "Cy"), patient("4", "Cy"), patient("5", "Di")],
        individual_appointments=[*(came(f"1{n}", n) for n in ids[:4]), came("15", "5", "2026-07-01T00:00:00Z")],
    )
    clinic.add_contacts(contact(1, cliniko_patient_id="1"), contact(3, name="Cy"), contact(5, cliniko_patient_id="5"))
    assert _listing(clinic, "1", AS_OF) == ": since it was read the mapping was not computed."
    clinic.compute()
    assert _listing(clinic, "2") == ": no contact is certain to be it (unmatched)."
    assert _listing(clinic, "3") == ": which contact it is, is not certain (ambiguous among 1 contact)."
    assert _listing(clinic, "5") == ", as it should be."
    assert _listing(clinic, "5", AS_OF + timedelta(days=30)) == (
        ": that was computed by 2026-06-15 09:30 UTC, when it was not active."
    )
    clinic.store(individual_appointments=[came("16", "5")])
    assert _listing(clinic, "5") == ", which is older than what is stored: the next sync that succeeds adds it."
    clinic.store(individual_appointments=[came("17", "1")])
    differs = shown(clinic.explain("1")).splitlines()[1]
    assert "by what is stored now recent_appointment_count, total_appointment_count, recent_appointments" in differs
    assert re.search(r"would be different \(its records changed since, the last at [\d :-]+ UTC\)\.$", differs)
    other_window = shown(clinic.explain("1", rules=Rules(timedelta(days=90), count_no_shows=True))).splitlines()[1]
    assert other_window.endswith("would be different (the window was 60 days then and is 90 days now).")
    clinic.store(individual_appointments=[came(f"1{n}", "1", cancelled_at=ENDED) for n in (1, 7)])
    assert "by what is stored now it would have none (its records changed since" in shown(clinic.explain("1"))
    clinic.run("delete from public.active_patients")
    with clinic.database.operator() as connection:
        connection.execute(sa.text("delete from public.contacts where id = :id"), {"id": clinic.contact_id(5)})
    assert _listing(clinic, "5", AS_OF) == ": its contact was deleted since the mapping was computed."
    assert "  That contact was deleted since.\n" in shown(clinic.explain("5", AS_OF))


def _listing(clinic: Clinic, patient_id: str, as_of: datetime | None = None) -> str:
    line = shown(clinic.explain(patient_id, as_of)).splitlines()[1]
    assert line.startswith("  It has no row in public.active_patients")
    return line.removeprefix("  It has no row in public.active_patients")


def test_an_empty_table_is_told_as_such(clinic: Clinic) -> None:
    clinic.store(patients=[patient("1", "Ann")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.compute(AS_OF + timedelta(days=300))
    assert _listing(clinic, "1", AS_OF) == ", which is empty: the next sync that succeeds adds it."


def test_every_pass_of_the_match_is_told(clinic: Clinic) -> None:
    clinic.store(
        patients=[
            patient("1", "Ann", email=MAIL),
            patient("45", "Bo", email=MAIL),
            patient("77", "Ann", email="other@clinic.example"),
            patient("5", "Eve", archived_at=ENDED),
            patient("6", "Fay"),
            patient("7", merged_into="6"),
            patient("8", "Gus", email="two@clinic.example"),
            patient("9", "Gia", email="two@clinic.example"),
            patient("10", "Hal"),
            patient("11", " "),
            patient("12", "Ida", email="ida@clinic.example"),
            patient("13", "Jo", email="jo@clinic.example"),
            patient("14", "Jay", email="jo@clinic.example"),
        ],
    )
    clinic.add_contacts(
        contact(1, name="Bo", email=MAIL),
        contact(2, name="Ann", cliniko_patient_id="77"),
        contact(6, cliniko_patient_id="6", name="Nobody"),
        contact(7, cliniko_patient_id="7", name="FAY"),
        contact(8, name="Other", email="two@clinic.example"),
        contact(9, name="Hal"),
        contact(10, name="hal"),
        contact(12, email="IDA@clinic.example"),
        contact(13, name="Jo", email="jo@clinic.example"),
        contact(14, name="Who", email="jo@clinic.example"),
    )
    clinic.compute()
    ids = {number: str(clinic.contact_id(number)) for number in range(1, 15)}
    assert _matching(clinic, "1") == [
        "Unmatched.",
        "By cliniko_patient_id: no contact carries its id, 1.",
        f"By e-mail: contact {ids[1]} is taken by patient 45, so no contact with the same e-mail is free.",
        f"By name: contact {ids[2]} names patient 77, so no contact with the same name is free.",
    ]
    assert _matching(clinic, "5") == [
        "Unmatched.",
        "By cliniko_patient_id: no contact carries its id, 5.",
        "By e-mail: not looked at, for the patient is archived.",
        "By name: not looked at, for the patient is archived.",
    ]
    named, by_id = _matching(clinic, "7")
    assert named == f"Matched to contact {ids[7]} by cliniko_patient_id."
    assert {f"contact {ids[6]} carries 6", f"contact {ids[7]} carries 7"} == set(
        by_id.removeprefix("By cliniko_patient_id: ").partition(";")[0].split(", ")
    )
    assert by_id.endswith(f"; only {ids[7]} has the name of patient 6, too.")
    assert _matching(clinic, "8")[0] == "Ambiguous by e-mail, among 1 contact."
    assert _matching(clinic, "8")[-1] == (
        f"By e-mail: it shares its e-mail with patient 9; free with the same e-mail: contact {ids[8]};"
        " no two of them that have equal names are unique."
    )
    hal = _matching(clinic, "10")
    assert hal[2] == "By e-mail: the patient has no e-mail."
    assert hal[-1].startswith("By name: no other patient has its name; free with the same name: contacts ")
    assert hal[-1].endswith("; nothing tells them apart.")
    assert _matching(clinic, "11")[-1] == "By name: the patient has no name."
    assert _matching(clinic, "12")[-1] == (
        f"By e-mail: contact {ids[12]} is the only free one with the same e-mail, and no other patient has it."
    )
    assert _matching(clinic, "13")[-1].startswith("By e-mail: it shares its e-mail with patient 14; free with the same")
    assert _matching(clinic, "13")[-1].endswith("only it and its contact have equal names.")
    assert f"; contact {ids[13]} is taken by patient 13; " in _matching(clinic, "14")[-1]
    with clinic.database.operator() as connection:
        connection.execute(sa.text("delete from public.contacts where id = :id"), {"id": ids[10]})
    assert _matching(clinic, "10")[:2] == [
        "Ambiguous by name, among 2 contacts.",
        (
            f"By what is stored now the next mapping would say: matched to contact {ids[9]} by name."
            " The passes are told by that:"
        ),
    ]


def _matching(clinic: Clinic, patient_id: str) -> list[str]:
    text = shown(clinic.explain(patient_id, AS_OF))
    return [line.strip() for line in text.partition("The contact\n")[2].partition("\n\n")[0].splitlines()]


def test_what_makes_the_answer_doubtful_is_told(clinic: Clinic) -> None:
    clinic.store(patients=[patient("1")])
    assert "  No sync of this organization is known.\n" in shown(clinic.explain("1", AS_OF))
    clinic.add_run("failed", AS_OF, "Cliniko could not be reached.")
    clinic.run("update cliniko.crawls set completed_at = null, doubtful_deletions = 2 where resource = 'attendees'")
    clinic.run("delete from cliniko.crawls where resource = 'practitioners'")
    clinic.run(
        "insert into cliniko.rejected_records (organization_id, resource, position, reason)"
        f" values ('{clinic.id}', 'attendees', 1, 'id: missing')"
    )
    lines = shown(clinic.explain("1", AS_OF)).splitlines()
    assert lines[2:6] == [
        "  The last sync, of 2026-06-15 09:30 UTC, failed. Cliniko could not be reached.",
        "  Not read to the end, and so missing or a mixture of old and new: attendees, practitioners.",
        (
            "  1 record of the organization could not be understood and was set aside: what is missing here may be"
            " among them (cliniko.rejected_records has the reasons)."
        ),
        (
            "  The last full sync no longer found 2 records of the organization, too many to be believed deleted: what"
            " is shown here may be among them."
        ),
    ]
    clinic.add_run("running", AS_OF + timedelta(hours=1))
    assert "  A sync that began at 2026-06-15 10:30 UTC has not ended: what is stored may be changing.\n" in shown(
        clinic.explain("1", AS_OF)
    )
    clinic.add_run("succeeded", AS_OF + timedelta(hours=2))
    assert "A sync" not in shown(clinic.explain("1", AS_OF))


# Long lists and narrow terminals. -----------------------------------------------------------------------------------


def test_of_a_long_list_what_decides_is_shown_and_the_rest_counted(clinic: Clinic) -> None:
    starts = [AS_OF + timedelta(days=days) for days in (*range(-100, -88), *range(-12, 0), *range(1, 13))]
    clinic.store(
        patients=[patient("1")],
        individual_appointments=[
            came(str(100 + n), starts_at=f"{at:%Y-%m-%dT%H:%M:%SZ}") for n, at in enumerate(starts)
        ],
    )
    found = clinic.explain("1", AS_OF)
    assert len(found.attendances) == 36
    text = shown(found)
    rows = [_cells(line) for line in text.splitlines() if re.match(r"\d{4}-", line)]
    assert [row[1] for row in rows] == ["upcoming"] * 8 + ["recent"] * 12
    assert rows[7][0] == "2026-06-16 09:30"
    assert text.endswith("\n16 more, further from the instant judged by: --json has all.")


@pytest.mark.parametrize("width", [70, 80, 140])
def test_ids_and_instants_stay_whole_however_narrow_the_terminal(clinic: Clinic, width: int) -> None:
    clinic.store(
        patients=[patient(LONG_ID, "Ann"), patient("1", merged_into=LONG_ID)],
        individual_appointments=[came(LONG_ID, LONG_ID, cancelled_at=ENDED, archived_at=ENDED)],
        group_appointments=[group_appointment(LONG_ID, RECENTLY)],
        attendees=[attendee("30", LONG_ID, LONG_ID), attendee(LONG_ID, LONG_ID, "1")],
    )
    clinic.add_contacts(*(contact(n, cliniko_patient_id=LONG_ID) for n in range(1, 8)))
    clinic.compute()
    text = shown(clinic.explain("1", AS_OF), width)
    assert max(map(len, text.splitlines())) <= width
    assert sum(line.startswith("2026-06-01 09:00  recent  ") and LONG_ID in line for line in text.splitlines()) == 3
    contacts = {str(clinic.contact_id(n)) for n in range(1, 8)}
    assert len({each for each in contacts if each in text}) == 5
    assert " and 2 more; " in " ".join(text.split())
    assert ("Practitioner" in text) == (width == 140)


def test_what_a_clinic_calls_things_cannot_take_over_the_terminal_or_be_taken_for_a_style(clinic: Clinic) -> None:
    clinic.store(
        patients=[patient("1")],
        appointment_types=[appointment_type("7", "[bold]Class[/oops] \x1b]0;title\x07\n\x9b31m" + "x" * 40)],
        practitioners=[practitioner("8", display_name="Dr \u202eyaR")],
        individual_appointments=[
            came(appointment_type=link("appointment_types", 7), practitioner=link("practitioners", 8))
        ],
    )
    text = shown(clinic.explain("1", AS_OF))
    assert "[bold]Class[/oops]  ]0;title   31m" + "x" * 40 in text
    assert all(character.isprintable() for character in text.replace("\n", ""))


# The command. -------------------------------------------------------------------------------------------------------


SECRETS = [
    "Annabel-Secret",
    "Lee-Secret",
    "secret.mail@clinic.example",
    "Contact-Secret",
    "+61-400-secret",
    "clinical-secret",
]


@pytest.fixture
def stored_clinic(environ: dict[str, str]) -> Iterator[Clinic]:
    """An organization with credentials, and patients whose every text must stay where it is."""
    database = Database(environ["DATABASE_URL"])
    clinic = Clinic(database)
    credentials = ClinikoCredentials("MS0tbm90LWEtc2VjcmV0-au2", None, None)
    encrypted = Vault([environ["CREDENTIALS_ENCRYPTION_KEY"]]).encrypt(credentials)
    with database.operator() as connection:
        organizations.save(connection, clinic.id, "Clinic", encrypted, validated=False)
    patients = [patient(n, SECRETS[0], SECRETS[1], SECRETS[2], notes=SECRETS[5]) for n in ("1", "2", "3") if n != "3"]
    appointments = [
        individual_appointment(
            str(100 + n), "1", RECENTLY, cancellation_reason_description=SECRETS[5], patient_name=SECRETS[0]
        )
        for n in range(30)
    ]
    clinic.store(patients=patients, individual_appointments=appointments)
    clinic.add_contacts(contact(1, name=SECRETS[3], email=SECRETS[2]), contact(2, name=f"{SECRETS[0]} {SECRETS[1]}"))
    with database.operator() as connection:
        connection.execute(
            sa.text("update public.contacts set phone = :phone, cliniko_patient_id = :typed"),
            {"phone": SECRETS[4], "typed": SECRETS[3]},
        )
    clinic.compute()
    clinic.run(
        "insert into cliniko.rejected_records (organization_id, resource, position, id, reason)"
        f" values ('{clinic.id}', 'patients', 1, '5', 'archived_at: not an instant')"
    )
    yield clinic
    database.close()


def test_the_command_answers_for_people_and_for_programs_and_shows_nobodys_name(
    command: CommandLine, stored_clinic: Clinic
) -> None:
    piped = command("explain", stored_clinic.id, "0001", "--as-of", "2026-06-15T19:30:00+10:00")
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout.startswith(
        "Patient 1 is active: 30 appointments from 2026-04-16 09:30 to 2026-06-15 09:30 UTC.\n"
    )
    assert "10 more, further from" in piped.stdout
    rows = [line for line in piped.stdout.splitlines() if re.match(r"\d{4}-", line)]
    assert len(rows) == 20
    assert all(line.rstrip().endswith("yes") for line in rows)
    assert not ESCAPES.search(piped.stdout)

    for_programs = command("explain", stored_clinic.id, "1", "--as-of", "2026-06-15T09:30:00Z", "--json")
    assert (for_programs.returncode, for_programs.stderr) == (0, "")
    told = json.loads(for_programs.stdout)
    assert told["verdict"] == piped.stdout.splitlines()[0]
    assert (told["organization_id"], told["patient_id"], told["is_active"]) == (stored_clinic.id, "1", True)
    assert told["as_of"] == {
        "instant": "2026-06-15T09:30:00Z",
        "source": "argument",
        "window_from": "2026-04-16T09:30:00Z",
        "activity_window_days": 60,
        "count_no_shows": True,
    }
    assert told["counts"] == {"recent": 30, "upcoming": 0, "total": 30, "last": "2026-06-01T09:00:00Z"}
    assert len(told["attendances"]) == 30
    assert told["attendances"][0]["left_out"] == []
    assert told["active_patients"]["listing"] == "ambiguous"
    assert told["state"]["rejected_records"] == 1
    assert told["person"]["state"] == "current"
    assert [(each["method"], each["outcome"]) for each in told["match"]["passes"]] == [
        ("cliniko_patient_id", "no_candidate"),
        ("email", "ambiguous"),
    ]
    assert told["match"]["passes"][1]["other_patient_ids"] == ["2"]
    for secret in SECRETS:
        assert secret.casefold() not in (piped.stdout + for_programs.stdout).casefold()


def test_in_a_terminal_of_80_columns_no_line_is_broken_by_it(command: CommandLine, stored_clinic: Clinic) -> None:
    ours, theirs = pty.openpty()
    changes = {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": "80", "LINES": "40"}
    with subprocess.Popen(
        [SCRIPT, "explain", stored_clinic.id, "1", "--as-of", AS_OF.isoformat()],
        env=command.with_changes(changes),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = _read_all(ours)
    os.close(ours)
    assert process.returncode == 0, seen
    assert ESCAPES.search(seen)
    lines = ESCAPES.sub("", seen).replace("\r", "").splitlines()
    assert lines[0].startswith("Patient 1 is active: 30 appointments from 2026-04-16 09:30 to")
    assert max(map(len, lines)) <= 80
    assert sum(bool(re.match(r"2026-06-01 09:00  recent  individual  1\d\d", line)) for line in lines) == 20


def _read_all(descriptor: int) -> str:
    seen = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # the other end is closed
            return seen.decode()
        if not part:
            return seen.decode()
        seen += part


@pytest.mark.parametrize(
    ("patient_id", "arguments", "words"),
    [
        ("404", [], ["Patient 404 of organization", "is not stored", "cliniko-pipeline sync clinic-"]),
        ("5", [], ["set aside (archived_at: not an instant)", "correct it in Cliniko"]),
        ("6", [], ["has no record in what was read", "1 record of others", "--full"]),
        ("1", ["--as-of", "yesterday"], ["'yesterday' is not an instant"]),
        ("one", [], ["PATIENT_ID", "digits"]),
        ("1e3", [], ["PATIENT_ID", "digits"]),
        ("\u0661", [], ["PATIENT_ID", "digits"]),
        ("123456789012345678901", [], ["PATIENT_ID", "digits"]),
    ],
)
def test_what_cannot_be_explained_is_told_in_one_line_that_says_what_to_do(
    environ: dict[str, str], stored_clinic: Clinic, patient_id: str, arguments: list[str], words: list[str]
) -> None:
    """In this process: how an error ends a command is the same for all."""
    stored_clinic.store(patients=[patient("7", merged_into="6")])
    runner = CliRunner()
    done = runner.invoke(cli, ["explain", stored_clinic.id, patient_id, *arguments], env=environ, standalone_mode=False)
    assert done.output == ""
    assert isinstance(done.exception, click.UsageError if "PATIENT_ID" in words else ClinikoPipelineError)
    message = done.exception.format_message() if isinstance(done.exception, click.UsageError) else str(done.exception)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_an_unknown_organization_is_told_with_how_to_add_it_and_a_wrong_id_as_wrong_usage(command: CommandLine) -> None:
    done = command("explain", "nobody", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: There are no Cliniko credentials for organization 'nobody': add them with"
        " `cliniko-pipeline organizations add nobody --name NAME`.\n"
    )
    assert command("explain", "nobody", "one").returncode == 2


def test_the_command_does_not_wait_for_dagster() -> None:
    check = "import sys, cliniko_pipeline.cli.explain; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
