"""`cliniko-pipeline demo`, from an empty folder: its tables, its UI and page, and its end."""

import re
import signal
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.sandbox.demo import demo_organizations
from cliniko_pipeline_tests.support.independent import expected_active_patients
from cliniko_pipeline_tests.support.processes import CommandLine, Running, processes_of, tracebacks
from cliniko_pipeline_tests.support.waiting import wait_until

RESOURCES = (
    "patients",
    "individual_appointments",
    "group_appointments",
    "attendees",
    "appointment_types",
    "practitioners",
)
ELSEWHERE = "postgresql://nobody:hidden@127.0.0.1:1/elsewhere"
LAUNCH = """
mutation Launch($organization: String!) {
  launchPipelineExecution(executionParams: {
    selector: {repositoryLocationName: "cliniko_pipeline", repositoryName: "__repository__", jobName: "cliniko_sync"}
    runConfigData: {}
    executionMetadata: {tags: [{key: "dagster/partition", value: $organization}]}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
RUNS = "{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def command(folder: Path) -> CommandLine:
    # The home is the default one, beside which nothing may appear; it is named to find the processes by.
    environ = {
        "CLINIKO_PIPELINE_HOME": str(folder / ".cliniko"),
        "DATABASE_URL": ELSEWHERE,
        # What runs here, the test has launched.
        "CLINIKO_SYNC_EVERY_MINUTES": "0",
        "CLINIKO_FULL_SYNC_AT": "off",
    }
    return CommandLine(environ, folder)


def test_demo_tables_are_right(command: CommandLine, folder: Path) -> None:
    _run(command, folder)


@pytest.mark.slow
def test_demo_repeated_keeps_its_rows(command: CommandLine, folder: Path) -> None:
    assert _run(command, folder) == _run(command, folder)


@pytest.mark.slow
def test_demo_ui_runs_a_sync_and_ends_on_ctrl_c(command: CommandLine, folder: Path) -> None:
    with _port_3000_taken(), command.start("demo") as running:
        running.wait_for("Ctrl-C ends it", 240)
        assert "Port 3000 is in use, so the UI takes" in running.output
        (port,) = re.findall(r"Dagster UI: http://127\.0\.0\.1:(\d+)", running.output)
        assert port != "3000"
        _assert_the_ui_works(f"http://127.0.0.1:{port}/graphql", running)
        _assert_the_page_opens_with_its_token(running, f"http://127.0.0.1:{port}")
        password = (folder / ".cliniko" / "demo" / "postgres" / "password").read_text().strip()
        assert password not in "".join(processes_of(folder).values())
        running.interrupt()
        running.wait_for("Stopping ...")
        running.interrupt()  # impatience must leave nothing behind
        assert running.wait(120) in {0, 130}
    assert tracebacks(running.output) == []
    wait_until(lambda: not processes_of(folder), lambda: f"they never ended: {processes_of(folder)}")


@pytest.mark.slow
def test_demo_ends_on_sigterm_during_a_sync(command: CommandLine, folder: Path) -> None:
    with command.start("demo", "--no-ui") as running:
        running.wait_for("patients page", 120)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130
    assert "Traceback" not in running.output
    assert not processes_of(folder)


def _run(command: CommandLine, folder: Path) -> dict[tuple[str, UUID], int]:
    """Run the demo without its UI; return the ids of its active patients, which are as they should be."""
    done = command("demo", "--no-ui", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaves DATABASE_URL alone" in done.stdout
    assert done.stdout.count("succeeded") == 3
    assert "hidden" not in done.stdout + done.stderr
    assert not processes_of(folder)
    assert [path.name for path in folder.iterdir()] == [".cliniko"]
    # Nothing beside it: the made-up clinics are in no database that real ones could be in.
    assert [path.name for path in (folder / ".cliniko").iterdir()] == ["demo"]
    return _assert_tables_are_right(folder / ".cliniko" / "demo")


def _assert_the_ui_works(graphql: str, running: Running) -> None:
    running.wait_until(lambda: _answers(graphql), "the UI never answered")
    with httpx.Client(trust_env=False, timeout=30) as client:

        def ask(query: str, **variables: Any) -> dict[str, Any]:
            answer = client.post(graphql, json={"query": query, "variables": variables}).json()
            assert "errors" not in answer, answer
            return answer["data"]

        before = ask(RUNS)["runsOrError"]["results"]
        # The runs of this demo, perhaps of earlier ones too.
        assert len(before) >= 3
        assert {run["status"] for run in before} == {"SUCCESS"}
        launched: dict[str, Any] = {}

        def launches() -> bool:
            launched.update(ask(LAUNCH, organization="old-mill-physio")["launchPipelineExecution"])
            return launched["__typename"] == "LaunchRunSuccess"

        running.wait_until(launches, "the run could not be launched")
        run_id = launched["run"]["runId"]

        def status() -> str:
            return next(run["status"] for run in ask(RUNS)["runsOrError"]["results"] if run["runId"] == run_id)

        running.wait_until(lambda: status() in {"SUCCESS", "FAILURE"}, "the run never ended", 90)
        assert status() == "SUCCESS"


def _assert_the_page_opens_with_its_token(running: Running, ui: str) -> None:
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
        # It may read, request and cancel syncs (one that has ended is left as it is), and nothing else.
        assert client.delete(f"/v1/syncs/{syncs[0]['id']}").status_code == 202
        assert client.get("/metrics").status_code == 403


def _answers(graphql: str) -> bool:
    try:
        answer = httpx.post(graphql, json={"query": "{ version }"}, trust_env=False, timeout=10)
    except httpx.HTTPError:
        return False
    return answer.is_success


def _assert_tables_are_right(home: Path) -> dict[tuple[str, UUID], int]:
    """Return the rows' ids, which another sync must keep."""
    anchor = datetime.fromisoformat((home / "demo-anchor").read_text().strip())
    clinics = demo_organizations(anchor)
    contacts = [contact | {"id": UUID(contact["id"])} for clinic in clinics for contact in clinic.contacts]
    ids: dict[tuple[str, UUID], int] = {}
    with EmbeddedServer(home / "postgres") as server:
        database = Database(server.url)
        for clinic in clinics:
            with database.organization(clinic.id) as connection:
                found = connection.exec_driver_sql("select * from public.active_patients")
                rows = [dict(row) for row in found.mappings()]
            judged_at = {row["search_date_to"] for row in rows}
            assert len(judged_at) == 1
            wire = {name: clinic.account.wire_records(name, "http://sandbox/v1") for name in RESOURCES}
            expected = expected_active_patients(wire, contacts, clinic.id, judged_at.pop().replace(tzinfo=UTC))
            ids |= {(clinic.id, row["contact_id"]): row["id"] for row in rows}
            for row in rows:
                for bookkeeping in ("id", "created_at", "updated_at"):
                    del row[bookkeeping]
            assert {row["contact_id"]: row for row in rows} == expected
        database.close()
    return ids


def _port_3000_taken() -> Any:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(("127.0.0.1", 3000))
        taken.listen()
    except OSError:
        pass  # another program has it, which is as good
    return taken
