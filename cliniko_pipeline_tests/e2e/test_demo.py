"""Tests of `cliniko-pipeline demo` in an empty folder: its tables, its UI and page, and its end."""

import re
import signal
import socket
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline.sandbox.accounts.demo import demo_organizations
from cliniko_pipeline_tests.support.browsers import answers
from cliniko_pipeline_tests.support.independent import expected_active_patients
from cliniko_pipeline_tests.support.processes import (
    CommandLine,
    Running,
    processes_of,
    tracebacks,
    wait_until_processes_end,
)
from cliniko_pipeline_tests.support.synced_organizations import demo_contacts, wire_records

pytestmark = pytest.mark.slow

RUNS = "{ runsOrError { ... on Runs { results { status } } } }"
BOOKKEEPING = {"id", "created_at", "updated_at"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def command(folder: Path) -> CommandLine:
    # The home is the default home. It is set so that the processes can be found by it.
    environ = {
        "CLINIKO_PIPELINE_HOME": str(folder / ".cliniko"),
        "DATABASE_URL": "postgresql://nobody:hidden@127.0.0.1:1/elsewhere",
        "CLINIKO_SYNC_EVERY_MINUTES": "0",
        "CLINIKO_FULL_SYNC_AT": "off",
    }
    return CommandLine(environ, folder)


def test_repeated_demo_has_right_tables_and_keeps_its_rows(command: CommandLine, folder: Path) -> None:
    ids = []
    for _ in range(2):
        done = command("demo", "--no-ui", seconds=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ignores DATABASE_URL" in done.stdout
        assert done.stdout.count("succeeded") == 3
        assert "hidden" not in done.stdout + done.stderr
        wait_until_processes_end(folder)
        assert [path.name for path in folder.iterdir()] == [".cliniko"]
        # The made-up clinics are not in the database that real clinics would use.
        assert [path.name for path in (folder / ".cliniko").iterdir()] == ["demo"]
        ids.append(_assert_tables_are_right(folder / ".cliniko" / "demo"))
    assert ids[0] == ids[1]


def test_demo_serves_ui_and_page_and_ends_on_ctrl_c(command: CommandLine, folder: Path) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # another program may use the port already, which has the same effect
            stack.enter_context(socket.create_server(("127.0.0.1", 3000)))
        running = stack.enter_context(command.start("demo"))
        running.wait_for("Ctrl-C ends it", 240)
        assert "Port 3000 is in use, so the UI takes" in running.output
        (ui,) = re.findall(r"Dagster UI: (http://127\.0\.0\.1:\d+)", running.output)
        assert not ui.endswith(":3000")
        running.wait_until(lambda: answers(ui), "the UI never answered", 240)
        answer = httpx.post(f"{ui}/graphql", json={"query": RUNS}, trust_env=False, timeout=30).json()
        states = [run["status"] for run in answer["data"]["runsOrError"]["results"]]
        assert states[:3] == ["SUCCESS"] * 3
        _assert_page_opens_with_its_token(running, ui)
        password = (folder / ".cliniko" / "demo" / "postgres" / "password").read_text().strip()
        assert password not in "".join(processes_of(folder).values())
        running.interrupt()
        running.wait_for("Stopping ...")
        running.interrupt()  # a second Ctrl-C must not leave processes behind
        assert running.wait(120) in {0, 130}
    assert tracebacks(running.output) == []
    wait_until_processes_end(folder)


def test_demo_ends_on_sigterm_during_a_sync(command: CommandLine, folder: Path) -> None:
    with command.start("demo", "--no-ui") as running:
        running.wait_for("patients page", 120)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130
    assert "Traceback" not in running.output
    wait_until_processes_end(folder)


def _assert_page_opens_with_its_token(running: Running, ui: str) -> None:
    ((page, token),) = re.findall(r"Page: (http://127\.0\.0\.1:\d+) \(token: (\S+)\)", running.output)
    with httpx.Client(base_url=page, trust_env=False, timeout=30) as client:
        assert "<title>Cliniko pipeline</title>" in client.get("/").text
        assert client.get("/v1/organizations").status_code == 401
        client.headers["Authorization"] = f"Bearer {token}"
        found = client.get("/v1/organizations").json()["items"]
        assert [each["id"] for each in found] == ["harbour-pilates", "old-mill-physio", "surf-rehab"]
        assert client.get("/readyz").json() == {"database": "ok", "dagster": "ok"}
        syncs = client.get("/v1/organizations/old-mill-physio/syncs").json()["items"]
        assert {each["url"] for each in syncs} == {f"{ui}/runs/{each['id']}" for each in syncs}
        # The token may read, request and cancel syncs, and nothing else. An ended sync is not changed by its
        # cancellation.
        assert client.delete(f"/v1/syncs/{syncs[0]['id']}").status_code == 202
        assert client.get("/metrics").status_code == 403


def _assert_tables_are_right(home: Path) -> dict[tuple[str, UUID], int]:
    """Assert that the tables are right. Return the ids of their rows."""
    clinics = demo_organizations(datetime.fromisoformat((home / "demo-anchor").read_text().strip()))
    contacts = [contact for clinic in clinics for contact in demo_contacts(clinic)]
    ids: dict[tuple[str, UUID], int] = {}
    with EmbeddedServer(home / "postgres") as server:
        database = Database(server.url)
        for clinic in clinics:
            with database.organization(clinic.id) as connection:
                rows = connection.exec_driver_sql("select * from public.active_patients").mappings().all()
            (judged_at,) = {row["search_date_to"] for row in rows}
            stored = {row["contact_id"]: {key: row[key] for key in row if key not in BOOKKEEPING} for row in rows}
            expected = expected_active_patients(
                wire_records(clinic.account), contacts, clinic.id, judged_at.replace(tzinfo=UTC)
            )
            assert stored == expected
            ids |= {(clinic.id, row["contact_id"]): row["id"] for row in rows}
        database.close()
    return ids
