"""Tests that secrets and patients' data appear only in their tables, however a run ends."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.engine import URL

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import appointment_type, contact, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline, sync_in_a_process

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
NAMES = ("Xanthippe", "Quirinius", "Zebedaeus", "Wolkenstein")
EMAILS = ("xanthippe.q@example.org", "zebedaeus.w@example.org")
OTHER_ENCRYPTION_KEY = Fernet.generate_key().decode()
WRONG_KEY = "d3JvbmcgYnV0IHNlY3JldCBuZXZlcnRoZWxlc3M"
TABLES = ("cliniko.sync_runs", "cliniko.rejected_records", "cliniko.crawls", "cliniko.contact_mapping")
ENDINGS = {
    "well": "",
    "unknown-key": "Cliniko does not know the API key",
    "undecryptable": "cannot be decrypted with any configured key",
    "broken-server": "given up after 6 attempts",
    "refusing-database": "PostgreSQL refused a statement",
}
"""The error of each organization's run."""


def _bare_key(ending: str) -> str:
    return base64.b64encode(f"{ending} is not to be seen".encode()).decode().strip("=")


def _basic(key: str) -> str:
    """Return the start of the Basic credentials, which is the same with and without a shard."""
    return base64.b64encode(key.encode()).decode()[:-4]


def _account(ending: str) -> Account:
    first, second, third, fourth = NAMES
    records = {
        "patients": [
            patient("1", first, second, EMAILS[0]),
            patient("2", third, fourth, EMAILS[1], archived_at=f"not an instant but {third}"),
            patient("3", third, fourth, EMAILS[1], created_at=None),
            patient("4", [third], fourth, EMAILS[1]),
            *(patient(str(number), first, second, EMAILS[0]) for number in range(10, 130)),
        ],
        "individual_appointments": [individual_appointment("5", "1", "2026-06-01T10:00:00Z", patient_name=first)],
        "appointment_types": [appointment_type("1", f"Visit of {fourth}")],
    }
    return Account.from_records(ending, "au4", f"{_bare_key(ending)}-au4", records)


def _set_up(pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
    for number, (ending, account) in enumerate(sandbox.accounts.items()):
        pipeline.add_organization(ending, sandbox, account)
        name = f"{NAMES[0]} {NAMES[1]}"
        pipeline.add_contacts([contact(number, ending, cliniko_patient_id="1", name=name, email=EMAILS[0])])
    sandbox.faults = Faults(server_error_rate=1.0, accounts=("broken-server",))
    wrong = ClinikoCredentials(f"{WRONG_KEY}-au4", None, sandbox.base_url("unknown-key"))
    undecryptable = ClinikoCredentials(f"{_bare_key('undecryptable')}-au4", None, sandbox.base_url("undecryptable"))
    lost = Vault([OTHER_ENCRYPTION_KEY]).encrypt(undecryptable)
    with pipeline.database.operator() as connection:
        organizations.replace_encrypted(connection, "unknown-key", pipeline.runtime.vault.encrypt(wrong))
        organizations.replace_encrypted(connection, "undecryptable", lost)
        # The driver's error for this statement contains the name.
        connection.execute(
            sa.text(
                "create domain cliniko.refused as text check"
                " (current_setting('app.organization_id', true) <> 'refusing-database' or length(value) < 3);"
                "alter table cliniko.patients alter column first_name type cliniko.refused"
            )
        )


def _files_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield f"{path.name}\n{path.read_bytes().decode(errors='replace')}"


def test_no_run_leaves_secrets_or_patients_outside_the_tables(database_url: URL, tmp_path: Path) -> None:
    dagster_home = tmp_path / "dagster"
    dagster_home.mkdir()
    (dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environ = environment(database_url, tmp_path / "pipeline") | {"DAGSTER_HOME": str(dagster_home)}
    with (
        opened_pipeline(environ) as pipeline,
        pipeline.sandbox([_account(ending) for ending in ENDINGS]) as sandbox,
    ):
        _set_up(pipeline, sandbox)
        output, errors = sync_in_a_process(environ, AS_OF, *ENDINGS).communicate(timeout=240)
        left_behind = {
            "standard output": output.decode(),
            "standard error": errors.decode(),
            "Dagster's storage": "\n".join(_files_in(dagster_home)),
            "the pipeline's home": "\n".join(_files_in(tmp_path / "pipeline")),
            **{table: "\n".join(repr(pipeline.rows(each, table)) for each in ENDINGS) for table in TABLES},
        }
    # The searched texts are the expected ones.
    for ending, said in ENDINGS.items():
        for place in ("standard error", "Dagster's storage", "cliniko.sync_runs"):
            assert said in left_behind[place], (ending, place)
    assert "not an instant in ISO 8601" in left_behind["cliniko.rejected_records"]
    assert "first_name: " in left_behind["cliniko.rejected_records"]
    assert "not an instant in ISO 8601" in left_behind["Dagster's storage"]

    keys = [*map(_bare_key, ENDINGS), WRONG_KEY]
    secrets = [*keys, *map(_basic, keys), environ["CREDENTIALS_ENCRYPTION_KEY"], OTHER_ENCRYPTION_KEY]
    secrets += [each for each in (*NAMES, *EMAILS, database_url.password) if each]
    for place, text in left_behind.items():
        found = [secret for secret in secrets if secret.casefold() in text.casefold()]
        assert not found, place
