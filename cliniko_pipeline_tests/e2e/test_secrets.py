"""No secret and no patient's data outside of its tables, however a run ends."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.engine import URL

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import appointment_type, contact, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline, sync_in_a_process

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
NAMES = ("Xanthippe", "Quirinius", "Zebedaeus", "Wolkenstein")
EMAILS = ("xanthippe.q@example.org", "zebedaeus.w@example.org")
OTHER_ENCRYPTION_KEY = Fernet.generate_key().decode()
WRONG_KEY = "d3JvbmcgYnV0IHNlY3JldCBuZXZlcnRoZWxlc3M"

ENDINGS = {
    "well": "",
    "unknown-key": "Cliniko does not know the API key",
    "no-right": "lacks the right to read this",
    "undecryptable": "cannot be decrypted with any configured key",
    "broken-server": "given up after 6 attempts",
    "cut-short": "given up after 6 attempts",
    "refusing-database": "PostgreSQL refused a statement",
}
"""The error of each organization's run."""


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    keys = {ending: api_key(ending) for ending in ENDINGS} | {"wrong": f"{WRONG_KEY}-au4"}
    return {
        **{f"the API key ({name})": key for name, key in keys.items()},
        **{f"the API key without its shard ({name})": key.removesuffix("-au4") for name, key in keys.items()},
        **{f"Basic credentials ({name})": basic(key) for name, key in keys.items()},
        **{f"short Basic credentials ({name})": basic(key.removesuffix("-au4")) for name, key in keys.items()},
        "another encryption key": OTHER_ENCRYPTION_KEY,
        **{f"the name {name}": name for name in NAMES},
        **{f"the address {email}": email for email in EMAILS},
    }


def api_key(ending: str) -> str:
    return base64.b64encode(f"{ending} is not to be seen".encode()).decode().strip("=") + "-au4"


def basic(key: str) -> str:
    # Up to where the padding may differ.
    return base64.b64encode(f"{key}:".encode()).decode().rstrip("=")[:-2]


def account(ending: str) -> Account:
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
    return Account.from_records(ending, "au4", api_key(ending), records)


def set_up(pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
    for ending, served in sandbox.accounts.items():
        pipeline.add_organization(ending, sandbox, served)
        pipeline.add_contacts(
            [
                contact(number, ending, cliniko_patient_id="1", name=f"{NAMES[0]} {NAMES[1]}", email=EMAILS[0])
                for number in (list(ENDINGS).index(ending) + 1,)
            ]
        )
    sandbox.accounts["no-right"].forbidden_resources.add("individual_appointments")
    sandbox.faults = Faults(
        broken_pages=(
            BrokenPage("patients", 2, account="broken-server"),
            BrokenPage("patients", 2, truncated=True, account="cut-short"),
        )
    )
    wrong = ClinikoCredentials(f"{WRONG_KEY}-au4", None, sandbox.base_url("unknown-key"))
    lost = Vault([OTHER_ENCRYPTION_KEY]).encrypt(
        ClinikoCredentials(api_key("undecryptable"), None, sandbox.base_url("undecryptable"))
    )
    with pipeline.database.operator() as connection:
        organizations.replace_encrypted(connection, "unknown-key", pipeline.runtime.vault.encrypt(wrong))
        organizations.replace_encrypted(connection, "undecryptable", lost)
        # The driver's error for this quotes the name.
        connection.execute(
            sa.text(
                "create domain cliniko.refused as text check"
                " (current_setting('app.organization_id', true) <> 'refusing-database' or length(value) < 3)"
            )
        )
        connection.execute(sa.text("alter table cliniko.patients alter column first_name type cliniko.refused"))


@pytest.fixture
def left_behind(database_url: URL, tmp_path: Path, secrets: dict[str, str]) -> Iterator[dict[str, str]]:
    """What runs of all endings, in a process of their own, wrote, showed and stored."""
    dagster_home = tmp_path / "dagster"
    dagster_home.mkdir()
    (dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environ = environment(database_url, tmp_path / "pipeline") | {"DAGSTER_HOME": str(dagster_home)}
    secrets["the encryption key"] = environ["CREDENTIALS_ENCRYPTION_KEY"]
    if database_url.password:
        secrets["the database's password"] = str(database_url.password)
    with (
        opened_pipeline(environ) as pipeline,
        pipeline.sandbox([account(ending) for ending in ENDINGS]) as sandbox,
    ):
        set_up(pipeline, sandbox)
        with watched_process_list() as command_lines:
            process = sync_in_a_process(environ, AS_OF, *ENDINGS)
            output, errors = process.communicate(timeout=240)
        assert process.returncode == len(ENDINGS) - 1, errors.decode()
        yield {
            "standard output": output.decode(),
            "standard error": errors.decode(),
            "the process list": "\n".join(command_lines),
            "Dagster's storage": "\n".join(files_in(dagster_home)),
            "the pipeline's home": "\n".join(files_in(tmp_path / "pipeline")),
            **stored(pipeline, ENDINGS),
        }


class watched_process_list:  # noqa: N801 -- used as a function
    """All command lines seen while the block runs."""

    def __enter__(self) -> set[str]:
        self._seen: set[str] = set()
        self._over = Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self._seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue


def files_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield f"{path.name}\n{path.read_bytes().decode(errors='replace')}"


def stored(pipeline: PipelineUnderTest, organization_ids: Iterable[str]) -> dict[str, str]:
    tables = ("cliniko.sync_runs", "cliniko.rejected_records", "cliniko.crawls", "cliniko.contact_mapping")
    return {table: "\n".join(repr(pipeline.rows(each, table)) for each in organization_ids) for table in tables}


def test_no_run_leaves_secrets_or_patients_outside_the_tables(
    left_behind: Mapping[str, str], secrets: Mapping[str, str]
) -> None:
    # What was searched is what it should be.
    for ending, said in ENDINGS.items():
        for place in ("standard error", "Dagster's storage", "cliniko.sync_runs"):
            assert said in left_behind[place], (ending, place)
    assert "cliniko_pipeline_tests.support.pipelines" in left_behind["the process list"]
    assert "not an instant in ISO 8601" in left_behind["cliniko.rejected_records"]
    assert "first_name: " in left_behind["cliniko.rejected_records"]
    assert "not an instant in ISO 8601" in left_behind["Dagster's storage"]

    found = {
        place: [name for name, secret in secrets.items() if secret.casefold() in text.casefold()]
        for place, text in left_behind.items()
    }

    assert {place: names for place, names in found.items() if names} == {}
