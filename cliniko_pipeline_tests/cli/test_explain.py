"""Tests of `cliniko-pipeline explain`: its output as text and as JSON, and its errors."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from cliniko_pipeline.cli.main import cli
from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline_tests.support.hostile_accounts import contact, patient
from cliniko_pipeline_tests.support.processes import SCRIPT, CommandLine
from cliniko_pipeline_tests.support.stored_clinics import AS_OF, StoredClinic, came

SECRETS = ["Annabel-Secret", "Lee-Secret", "secret.mail@clinic.example", "Contact-Secret", "+61-400-secret", "clinical"]


@pytest.fixture
def stored_clinic(environ: dict[str, str]) -> Iterator[StoredClinic]:
    database = Database(environ["DATABASE_URL"])
    clinic = StoredClinic(database)
    first_name, last_name, email, contact_name, phone, notes = SECRETS
    credentials = ClinikoCredentials("MS0tbm90LWEtc2VjcmV0-au2", None, None)
    encrypted = Vault([environ["CREDENTIALS_ENCRYPTION_KEY"]]).encrypt(credentials)
    with database.operator() as connection:
        organizations.save(connection, clinic.id, "Clinic", encrypted, validated=False)
    texts = {"cancellation_reason_description": notes, "patient_name": first_name}
    clinic.store(
        patients=[patient(n, first_name, last_name, email, notes=notes) for n in ("1", "2")],
        individual_appointments=[came(str(100 + n), **texts) for n in range(30)],
    )
    clinic.add_contacts(contact(1, name=contact_name, email=email), contact(2, name=f"{first_name} {last_name}"))
    statement = sa.text("update public.contacts set phone = :phone, cliniko_patient_id = :typed")
    with database.operator() as connection:
        connection.execute(statement, {"phone": phone, "typed": contact_name})
    clinic.compute()
    clinic.add_rejection("patients", "5", "archived_at: not an instant")
    yield clinic
    database.close()


def run(environ: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["explain", *arguments], env=environ, standalone_mode=False)


def test_command_prints_text_or_json_without_names(environ: dict[str, str], stored_clinic: StoredClinic) -> None:
    piped = run(environ, stored_clinic.id, "0001", "--as-of", "2026-06-15T19:30:00+10:00")
    as_json = run(environ, stored_clinic.id, "1", "--as-of", "2026-06-15T09:30:00Z", "--json")
    assert [(each.exit_code, each.stderr) for each in (piped, as_json)] == [(0, "")] * 2
    verdict = "Patient 1 is active: 30 appointments from 2026-04-16 09:30 to 2026-06-15 09:30 UTC."
    assert piped.stdout.startswith(f"{verdict}\n")
    rows = [line.rstrip() for line in piped.stdout.splitlines() if line.startswith("2026-06-01 09:00  recent")]
    assert [line.endswith(" yes") for line in rows] == [True] * 20
    assert "\x1b" not in piped.stdout

    printed = json.loads(as_json.stdout)
    assert printed["verdict"] == verdict
    assert (printed["organization_id"], printed["patient_id"], printed["is_active"]) == (stored_clinic.id, "1", True)
    assert printed["as_of"] == {
        "instant": "2026-06-15T09:30:00Z",
        "source": "argument",
        "window_from": "2026-04-16T09:30:00Z",
        "activity_window_days": 60,
        "count_no_shows": True,
    }
    assert printed["counts"] == {"recent": 30, "upcoming": 0, "total": 30, "last": "2026-06-01T09:00:00Z"}
    assert [each["left_out"] for each in printed["attendances"]] == [[]] * 30
    assert printed["active_patients"]["listing"] == "ambiguous"
    assert printed["state"]["rejected_records"] == 1
    assert printed["person"]["state"] == "current"
    passes = printed["match"]["passes"]
    assert [(each["method"], each["outcome"], each["other_patient_ids"]) for each in passes] == [
        ("cliniko_patient_id", "no_candidate", []),
        ("email", "ambiguous", ["2"]),
    ]
    for secret in SECRETS:
        assert secret.casefold() not in (piped.stdout + as_json.stdout).casefold()


def test_command_does_not_import_dagster(command: CommandLine, stored_clinic: StoredClinic) -> None:
    """This test uses a real process. The other tests call the command in their own process."""
    arguments = ["-X", "importtime", SCRIPT, "explain", stored_clinic.id, "1", "--as-of", AS_OF.isoformat()]
    done = subprocess.run(
        [sys.executable, *arguments], env=command.environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("Patient 1 is active: 30 appointments"), done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "cliniko_pipeline.cli.session" in imported
    assert "dagster" not in imported


def test_command_reports_what_cannot_be_explained(environ: dict[str, str], stored_clinic: StoredClinic) -> None:
    stored_clinic.store(patients=[patient("7", merged_into="6")])
    for arguments, words in (
        ([stored_clinic.id, "404"], ["Patient 404 of organization", "is not stored", "cliniko-pipeline sync clinic-"]),
        ([stored_clinic.id, "5"], ["rejected (archived_at: not an instant)", "Correct it in Cliniko"]),
        ([stored_clinic.id, "6"], ["has no record", "1 other record", "--full"]),
        ([stored_clinic.id, "1", "--as-of", "yesterday"], ["'yesterday' is not an instant"]),
        (["nobody", "1"], ["no Cliniko credentials for organization 'nobody'", "organizations add nobody --name NAME"]),
    ):
        done = run(environ, *arguments)
        assert done.output == ""
        assert isinstance(done.exception, ClinikoPipelineError)
        assert all(word in str(done.exception) for word in words), done.exception
        assert "\n" not in str(done.exception)


@pytest.mark.parametrize("patient_id", ["1e3", "\u0661", "123456789012345678901"])
def test_command_refuses_a_patient_id_without_digits(patient_id: str) -> None:
    done = CliRunner().invoke(cli, ["explain", "nobody", patient_id])
    assert done.exit_code == 2
    assert all(word in done.output for word in ("PATIENT_ID", "digits"))
