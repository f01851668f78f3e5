"""Tests of the guard of the Dagster UI, with requests of web pages and programs to the real webserver."""

import sys
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.instance.home import instance_environment, open_instance
from cliniko_pipeline.orchestration.webserver import MODULE
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.browsers import answers
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.processes import CommandLine, Running

DELETE = 'mutation { deletePipelineRun(runId: "none") { __typename } }'
HTML = "text/html"
JSON = {"query": "{ version }"}
EVIL = "http://evil.example"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "graphql-ws",
}


@pytest.fixture(scope="module")
def ui(server_url: URL, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Yield the webserver without a code location. It can also be reached through a proxy at dagster.example.org."""
    folder = tmp_path_factory.mktemp("webserver")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with created_database(server_url, template) as url:
        variables = {"CLINIKO_UI_URL": "https://dagster.example.org", "CLINIKO_UI_HOSTS": "dagster.internal:3000"}
        environ = environment(url, folder / "home") | variables
        with open_runtime(load_settings(environ)) as runtime, pytest.MonkeyPatch.context() as patch:
            dagster = instance_environment(runtime)
            for name, value in dagster.items():
                patch.setenv(name, value)
            open_instance(runtime).dispose()
        environ = CommandLine(environ | dagster, folder).environ
        command = [sys.executable, "-m", MODULE, "--empty-workspace", "--host", "127.0.0.1", "--port", str(port)]
        with Running(command, environ, folder) as running:
            running.wait_until(lambda: answers(address), "the webserver does not answer", 90)
            with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
                yield client
            running.interrupt()
            running.wait(30)


def test_dagster_ui_refuses_graphql_by_get(ui: httpx.Client) -> None:
    """The address of an image on any web page can send such a request. Only the page for queries is shown."""
    for accept in ("*/*", "image/avif,image/webp,*/*", "application/json"):
        answer = ui.get("/graphql", params={"query": DELETE}, headers={"Accept": accept})
        assert (answer.status_code, "RunNotFound" in answer.text) == (405, False)
    shown = ui.get("/graphql", params={"query": DELETE}, headers={"Accept": HTML})
    assert (shown.status_code, "RunNotFound" in shown.text) == (200, False)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_dagster_ui_refuses_graphql_of_forms(ui: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = ui.post("/graphql", params={"query": DELETE}, headers=headers)
    assert (answer.status_code, "RunNotFound" in answer.text) == (415, False)


@pytest.mark.parametrize(
    "host", ["rebind.evil.example:3000", "localhost.evil.example", "127.0.0.1.evil.example", "[", ""]
)
@pytest.mark.parametrize("path", ["/", "/server_info", "/graphql"])
def test_dagster_ui_refuses_foreign_hosts(ui: httpx.Client, path: str, host: str) -> None:
    """This includes reading, because a page whose host name points to this machine could read the responses."""
    answer = ui.request("POST" if path == "/graphql" else "GET", path, headers={"Host": host}, json=JSON)
    assert answer.status_code in {400, 421}
    assert "version" not in answer.text


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"Origin": EVIL}, "/graphql"),
        ({"Origin": "null"}, "/graphql"),
        ({"Origin": "http://127.0.0.1:1"}, "/graphql"),
        ({"Origin": "http://dagster.example.org.evil.example"}, "/graphql"),
        ({"Sec-Fetch-Site": "cross-site"}, "/graphql"),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, "/graphql"),
        ({"Origin": EVIL}, "/report_asset_materialization/active_patients"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, "/graphql"),
    ],
)
def test_dagster_ui_refuses_foreign_pages(ui: httpx.Client, headers: dict[str, str], path: str) -> None:
    assert ui.post(path, json=JSON, headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("destination", "status"), [("document", 200), ("iframe", 403), ("image", 403), ("script", 403)]
)
def test_dagster_ui_opens_by_links_only(ui: httpx.Client, destination: str, status: int) -> None:
    mode = "no-cors" if destination in {"image", "script"} else "navigate"
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
    assert ui.get("/runs", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 101),
        ({"Origin": "SELF"}, 101),
        ({"Origin": EVIL}, 403),
        ({"Host": "rebind.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "websocket"}, 403),
    ],
)
def test_dagster_ui_guards_websockets(ui: httpx.Client, headers: dict[str, str], status: int) -> None:
    own = {name: str(ui.base_url).rstrip("/") if value == "SELF" else value for name, value in headers.items()}
    with ui.stream("GET", "/graphql", headers=UPGRADE | own) as answer:
        assert answer.status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:3000", "Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-origin"},
        {"Host": "[::1]:3000"},
        {"Host": "dagster.example.org", "Origin": "https://dagster.example.org"},
        {"Origin": "https://dagster.example.org"},
        {"Host": "dagster.internal:3000"},
    ],
)
def test_dagster_ui_answers_its_own_pages_and_programs(ui: httpx.Client, headers: dict[str, str]) -> None:
    """The requests come from the UI, through proxies that keep or change the host name, and from the HTTP API."""
    answer = ui.post("/graphql", json=JSON, headers=headers)
    assert answer.json()["data"]["version"]
