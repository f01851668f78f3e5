"""The rows that the steps of all statements process, on tables that nobody has analyzed.

They grow with an organization, not with its square. PostgreSQL's auto_explain reports them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.sandbox.accounts.generated import generated_account
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.databases import administer, created_database
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import contact
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine
from cliniko_pipeline_tests.support.servers import Server, chosen_programs, debian_programs, running_server
from cliniko_pipeline_tests.support.services import token
from cliniko_pipeline_tests.support.synced_organizations import START, synced_organization

FEW_ROWS = 20_000
"""Steps below this number may grow as they like: some tables grow from nothing to a page."""
GROWTH = 8
MAX_GROWTH = 12
"""Eight times log n grows a little more than eightfold; the square, 64-fold."""
SETTINGS = {
    "autovacuum": "off",
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
}
PLAN = re.compile(r"duration: [\d.]+ ms  plan:\n((?:\t.*\n)+)")
NUMBER = re.compile(r"\d+")

Rows = dict[str, float]
"""The most rows of any step, by the text of the statement."""


@pytest.fixture(scope="module")
def explaining() -> Iterator[Server]:
    """A server that logs the plan of each statement. The embedded PostgreSQL has no auto_explain."""
    programs = chosen_programs() or debian_programs()
    if programs is None:
        pytest.skip("auto_explain needs Debian's server (make debian-postgresql)")
    with running_server(programs) as server:
        administer(
            server.url,
            "load 'auto_explain'",
            *(f"alter system set {name} = '{value}'" for name, value in SETTINGS.items()),
        )
        server.restart("fast")
        yield server


@pytest.mark.parametrize("patients", [300, pytest.param(2_000, marks=pytest.mark.slow)])
def test_rows_of_every_statement_grow_with_the_account(explaining: Server, tmp_path: Path, patients: int) -> None:
    small = _rows_of_everything(explaining, tmp_path / "small", patients)
    large = _rows_of_everything(explaining, tmp_path / "large", GROWTH * patients)
    assert len(small) > 100
    grown = {text: (small.get(text), rows) for text, rows in large.items() if _has_grown(small.get(text, 1), rows)}
    assert not grown, json.dumps(grown, indent=1)


def test_nested_loop_is_noticed(explaining: Server) -> None:
    with created_database(explaining.url) as url:
        before = _size(explaining)
        for size in (300, GROWTH * 300):
            administer(
                url,
                f"create table numbers as select n from generate_series(1, {size}) as n",
                "set enable_hashjoin = off; set enable_mergejoin = off;"
                " select count(*) from numbers as a inner join numbers as b on a.n = b.n",
                "drop table numbers",
            )
        joined = [rows for text, rows in _read(explaining, before, merge=False) if "inner join" in text]
    assert _has_grown(*joined)


def _has_grown(small: float, large: float) -> bool:
    return large > FEW_ROWS and large > MAX_GROWTH * small


def _rows_of_everything(server: Server, folder: Path, patients: int) -> Rows:
    """Do everything that reads or writes the organization's tables."""
    folder.mkdir()
    with created_database(server.url) as url:
        database = Database(url)
        schema.migrate(database, create_application_tables=True)
        database.close()
        before = _size(server)
        with opened_pipeline(environment(url, folder)) as pipeline:
            _sync_and_read(pipeline, url, folder, patients)
        return dict(_read(server, before))


def _sync_and_read(pipeline: PipelineUnderTest, url: URL, folder: Path, patients: int) -> None:
    account = generated_account(patients, 5 * patients, 1, START, 0.05)
    ids = list(account.records["patients"])
    contacts = [
        contact(number, "clinic", cliniko_patient_id=patient_id if number % 3 else None, email=record["email"])
        for number, (patient_id, record) in enumerate(account.records["patients"].items())
        if number % 10
    ]
    with synced_organization(pipeline, account, contacts) as clinic:
        clinic.sync()
        for number, patient_id in enumerate(ids):
            if number % 20 == 0:
                clinic.put("patients", account.get("patients", patient_id) | {"first_name": "New"})
        clinic.clock.advance(hours=1)
        clinic.sync()
        for patient_id in ids[:: patients // 20]:
            account.delete("patients", patient_id)
        clinic.clock.advance(hours=1)
        clinic.sync(full=True)
        assert pipeline.compare_counts("clinic").success
        command = CommandLine(_variables(pipeline, url, folder), folder)
        for arguments in (["status"], ["explain", "clinic", ids[1]], ["doctor"]):
            done = command(*arguments)
            assert done.stdout, done.stderr
        _request_everything(pipeline)


def _variables(pipeline: PipelineUnderTest, url: URL, folder: Path) -> Mapping[str, str]:
    keys = pipeline.runtime.settings.ensure_encryption_keys()
    return environment(url, folder) | {
        "CREDENTIALS_ENCRYPTION_KEY": ",".join(key.get_secret_value() for key in keys),
        "CLINIKO_ALLOWED_HOSTS": ",".join(pipeline.runtime.settings.allowed_hosts),
    }


def _request_everything(pipeline: PipelineUnderTest) -> None:
    headers = {"Authorization": f"Bearer {token(pipeline.database, 'read')}"}
    with served(pipeline.runtime) as address, httpx.Client(base_url=address, headers=headers) as client:
        organization = "/v1/organizations/clinic"
        for path in (
            "/v1/organizations",
            organization,
            f"{organization}/people-without-contact?status=unmatched",
            f"{organization}/active-patients",
            f"{organization}/active-patients?limit=50&order=asc",
            f"{organization}/active-patients-trend",
            f"{organization}/syncs",
        ):
            assert client.get(path).status_code == 200, path


def _size(server: Server) -> int:
    return (server.folder / "server.log").stat().st_size


def _read(server: Server, begin: int, *, merge: bool = True) -> Iterator[tuple[str, float]]:
    """Yield the texts of the statements since `begin`, a size of the log, and the most rows of any step of each."""
    log = (server.folder / "server.log").read_bytes()[begin:].decode(errors="replace")
    found: Rows = {}
    for match in PLAN.finditer(log):
        logged = json.loads(match[1])
        # Values are parameters, except for the names of temporary objects.
        text = NUMBER.sub("0", logged["Query Text"]) if merge else logged["Query Text"]
        rows = max(_rows(logged["Plan"]))
        if merge:
            found[text] = max(rows, found.get(text, 0))
        else:
            yield text, rows
    yield from found.items()


def _rows(node: dict[str, Any]) -> Iterator[float]:
    for name in ("Actual Rows", "Rows Removed by Join Filter", "Rows Removed by Filter"):
        yield node.get(name, 0) * node.get("Actual Loops", 1)
    for child in node.get("Plans", []):
        yield from _rows(child)
