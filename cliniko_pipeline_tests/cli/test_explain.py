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
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from rich.console import Console

from cliniko_pipeline.cli import explain as command_module
from cliniko_pipeline.cli.main import cli
from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.explanations import Explanation, Rules
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
from cliniko_pipeline_tests.support.stored_clinics import (
    AS_OF,
    EMAIL,
    ENDED,
    RECENTLY,
    SOON,
    WITHOUT_NO_SHOWS,
    StoredClinic,
    came,
)

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
LONG_ID = "1204000000096468992"


@pytest.fixture
def clinic(module_database: Database) -> StoredClinic:
    return StoredClinic(module_database)


def shown(found: Explanation, width: int = 1000) -> str:
    """What the command prints, in one line a statement where there is room."""
    console = Console(file=io.StringIO(), width=width)
    command_module._show(console, found)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


# The words. ---------------------------------------------------------------------------------------------------------


def test_active_patient_is_shown_with_row_and_contact(clinic: StoredClinic) -> None:
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
def test_first_line_is_the_verdict(clinic: StoredClinic, asked: str, changes: dict[str, Any], verdict: str) -> None:
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


def test_patient_deleted_in_cliniko_is_shown(clinic: StoredClinic) -> None:
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


def test_appointments_are_shown_with_reasons(clinic: StoredClinic) -> None:
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


def test_merges_are_shown_step_by_step(clinic: StoredClinic) -> None:
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


def test_long_chain_of_merges_is_shortened(clinic: StoredClinic) -> None:
    clinic.store(patients=[patient(n, merged_into=str(n + 1)) for n in range(1, 30)] + [patient(30)])
    lines = shown(clinic.explain("1", AS_OF)).partition("The person\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == 11
    assert lines[4:7] == [
        "  Patient 5: merged into patient 6.",
        "  ... 20 merges more ...",
        "  Patient 26: merged into patient 27.",
    ]
    assert lines[-1] == "  Patient 30 (the person): neither merged, archived nor deleted."


def test_row_in_the_table_is_compared(clinic: StoredClinic) -> None:
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
    clinic.delete_contact(5)
    assert _listing(clinic, "5", AS_OF) == ": its contact was deleted since the mapping was computed."
    assert "  That contact was deleted since.\n" in shown(clinic.explain("5", AS_OF))


def _listing(clinic: StoredClinic, patient_id: str, as_of: datetime | None = None) -> str:
    line = shown(clinic.explain(patient_id, as_of)).splitlines()[1]
    assert line.startswith("  It has no row in public.active_patients")
    return line.removeprefix("  It has no row in public.active_patients")


def test_empty_table_is_shown(clinic: StoredClinic) -> None:
    clinic.store(patients=[patient("1", "Ann")], individual_appointments=[came()])
    clinic.add_contacts(contact(1, cliniko_patient_id="1"))
    clinic.compute(AS_OF + timedelta(days=300))
    assert _listing(clinic, "1", AS_OF) == ", which is empty: the next sync that succeeds adds it."


def test_every_pass_of_the_match_is_shown(clinic: StoredClinic) -> None:
    clinic.store(
        patients=[
            patient("1", "Ann", email=EMAIL),
            patient("45", "Bo", email=EMAIL),
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
        contact(1, name="Bo", email=EMAIL),
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
    clinic.delete_contact(10)
    assert _matching(clinic, "10")[:2] == [
        "Ambiguous by name, among 2 contacts.",
        (
            f"By what is stored now the next mapping would say: matched to contact {ids[9]} by name."
            " The passes are told by that:"
        ),
    ]


def _matching(clinic: StoredClinic, patient_id: str) -> list[str]:
    text = shown(clinic.explain(patient_id, AS_OF))
    return [line.strip() for line in text.partition("The contact\n")[2].partition("\n\n")[0].splitlines()]


def test_problems_of_the_organization_are_shown(clinic: StoredClinic) -> None:
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


def test_long_list_of_attendances_is_shortened(clinic: StoredClinic) -> None:
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
def test_ids_and_instants_fit_narrow_terminals(clinic: StoredClinic, width: int) -> None:
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


def test_control_characters_and_markup_are_not_interpreted(clinic: StoredClinic) -> None:
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
def stored_clinic(environ: dict[str, str]) -> Iterator[StoredClinic]:
    """An organization with credentials, and patients whose every text must stay where it is."""
    database = Database(environ["DATABASE_URL"])
    clinic = StoredClinic(database)
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


def run(environ: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["explain", *arguments], env=environ, standalone_mode=False)


def test_command_prints_text_or_json_without_names(environ: dict[str, str], stored_clinic: StoredClinic) -> None:
    piped = run(environ, stored_clinic.id, "0001", "--as-of", "2026-06-15T19:30:00+10:00")
    assert (piped.exit_code, piped.stderr) == (0, "")
    assert piped.stdout.startswith(
        "Patient 1 is active: 30 appointments from 2026-04-16 09:30 to 2026-06-15 09:30 UTC.\n"
    )
    assert "10 more, further from" in piped.stdout
    rows = [line for line in piped.stdout.splitlines() if re.match(r"\d{4}-", line)]
    assert len(rows) == 20
    assert all(line.rstrip().endswith("yes") for line in rows)
    assert not ESCAPES.search(piped.stdout)

    as_json = run(environ, stored_clinic.id, "1", "--as-of", "2026-06-15T09:30:00Z", "--json")
    assert (as_json.exit_code, as_json.stderr) == (0, "")
    printed = json.loads(as_json.stdout)
    assert printed["verdict"] == piped.stdout.splitlines()[0]
    assert (printed["organization_id"], printed["patient_id"], printed["is_active"]) == (stored_clinic.id, "1", True)
    assert printed["as_of"] == {
        "instant": "2026-06-15T09:30:00Z",
        "source": "argument",
        "window_from": "2026-04-16T09:30:00Z",
        "activity_window_days": 60,
        "count_no_shows": True,
    }
    assert printed["counts"] == {"recent": 30, "upcoming": 0, "total": 30, "last": "2026-06-01T09:00:00Z"}
    assert len(printed["attendances"]) == 30
    assert printed["attendances"][0]["left_out"] == []
    assert printed["active_patients"]["listing"] == "ambiguous"
    assert printed["state"]["rejected_records"] == 1
    assert printed["person"]["state"] == "current"
    assert [(each["method"], each["outcome"]) for each in printed["match"]["passes"]] == [
        ("cliniko_patient_id", "no_candidate"),
        ("email", "ambiguous"),
    ]
    assert printed["match"]["passes"][1]["other_patient_ids"] == ["2"]
    for secret in SECRETS:
        assert secret.casefold() not in (piped.stdout + as_json.stdout).casefold()


def test_command_fits_a_terminal_and_does_not_import_dagster(
    command: CommandLine, stored_clinic: StoredClinic, tmp_path: Path
) -> None:
    """The one real process: on a terminal of 80 columns, with a list of its imports."""
    ours, theirs = pty.openpty()
    changes = {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": "80", "LINES": "40"}
    imports = tmp_path / "imports"
    with (
        imports.open("wb") as errors,
        subprocess.Popen(
            [
                sys.executable,
                "-X",
                "importtime",
                SCRIPT,
                "explain",
                stored_clinic.id,
                "1",
                "--as-of",
                AS_OF.isoformat(),
            ],
            env=command.with_changes(changes),
            stdin=theirs,
            stdout=theirs,
            stderr=errors,
        ) as process,
    ):
        os.close(theirs)
        seen = _read_all(ours)
    os.close(ours)
    assert process.returncode == 0, seen
    imported = {line.rpartition("|")[2].strip() for line in imports.read_text().splitlines()}
    assert "cliniko_pipeline.cli.session" in imported
    assert "dagster" not in imported
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


def test_command_reports_what_cannot_be_explained(environ: dict[str, str], stored_clinic: StoredClinic) -> None:
    stored_clinic.store(patients=[patient("7", merged_into="6")])
    for patient_id, arguments, words in (
        ("404", [], ["Patient 404 of organization", "is not stored", "cliniko-pipeline sync clinic-"]),
        ("5", [], ["set aside (archived_at: not an instant)", "correct it in Cliniko"]),
        ("6", [], ["has no record in what was read", "1 record of others", "--full"]),
        ("1", ["--as-of", "yesterday"], ["'yesterday' is not an instant"]),
    ):
        done = run(environ, stored_clinic.id, patient_id, *arguments)
        assert done.output == ""
        assert isinstance(done.exception, ClinikoPipelineError)
        assert all(word in str(done.exception) for word in words), done.exception
        assert "\n" not in str(done.exception)


def test_command_reports_an_unknown_organization(environ: dict[str, str]) -> None:
    done = run(environ, "nobody", "1")
    assert str(done.exception) == (
        "There are no Cliniko credentials for organization 'nobody': add them with"
        " `cliniko-pipeline organizations add nobody --name NAME`."
    )


@pytest.mark.parametrize("patient_id", ["one", "1e3", "\u0661", "123456789012345678901"])
def test_command_refuses_a_patient_id_without_digits(patient_id: str) -> None:
    done = CliRunner().invoke(cli, ["explain", "nobody", patient_id])
    assert done.exit_code == 2
    assert "PATIENT_ID" in done.output
    assert "digits" in done.output
