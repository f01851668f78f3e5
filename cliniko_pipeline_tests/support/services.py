"""The HTTP service, either without Dagster or with a real Dagster and a sandbox."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import api_tokens, organizations
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.browsers import answers
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.processes import CommandLine, processes_of
from cliniko_pipeline_tests.support.waiting import wait_until

NO_DAGSTER = {"API_DAGSTER_URL": "http://127.0.0.1:1"}
"""Setting with an address at which no server listens."""

BY_HAND = {
    "CLINIKO_SYNC_EVERY_MINUTES": "0",
    "CLINIKO_FULL_SYNC_AT": "off",
    "CLINIKO_COMPARE_COUNTS_EVERY_HOURS": "0",
}
"""Settings that turn all schedules off."""

ENDED = {"succeeded", "failed", "cancelled"}


def token(database: Database, *scopes: str, organizations: list[str] | None = None, **options: Any) -> str:
    """Create a token, by default for all organizations. Return its text."""
    with database.operator() as connection:
        return api_tokens.create(
            connection,
            "test",
            scopes=scopes or ("read",),
            organizations=organizations,
            **{"expires_at": datetime.now(UTC) + timedelta(hours=1), **options},
        ).text


def client(url: str, token: str | None = None) -> httpx.Client:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60)


def add_organization(database: Database, organization_id: str, name: str | None = None) -> None:
    """Store an organization with credentials that are not valid and must not be used."""
    with database.operator() as connection:
        organizations.save(
            connection, organization_id, name or organization_id, {"encrypted_data": "x"}, validated=False
        )


class Service:
    """A service at `url` on `database`."""

    def __init__(self, url: str, database: Database) -> None:
        self.url = url
        self.database = database

    def client(self, *scopes: str, organizations: list[str] | None = None, **options: Any) -> httpx.Client:
        """Return a client with a new token, by default without a request limit."""
        options.setdefault("requests_per_minute", 100_000)
        return client(self.url, token(self.database, *scopes, organizations=organizations, **options))


class ServiceAlone(Service):
    """The service in this process, without Dagster."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        super().__init__(url, runtime.database)
        self.runtime = runtime


@contextmanager
def opened_service(database: Database, home: Path, **variables: str) -> Iterator[ServiceAlone]:
    """Serve the organizations alpha and beta, without Dagster."""
    for name in ("alpha", "beta"):
        add_organization(database, name)
    settings = load_settings(environment(database.url, home) | NO_DAGSTER | variables)
    with open_runtime(settings) as runtime, served(runtime) as url:
        yield ServiceAlone(url, runtime)


class ServiceWithDagster(Service):
    """A service with a real Dagster. `dagster_url` is the address of Dagster's webserver."""

    def __init__(self, url: str, clinics: Clinics, home: Path, dagster_url: str) -> None:
        super().__init__(url, clinics.database)
        self.clinics = clinics
        self.home = home
        self.dagster_url = dagster_url


@contextmanager
def opened_service_with_dagster(
    database_url: URL, folder: Path, organization_ids: list[str]
) -> Iterator[ServiceWithDagster]:
    """Serve these organizations with a real Dagster that syncs on request only."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environ = environment(database_url, folder / "home") | BY_HAND | {"CLINIKO_UI_URL": address}
    with opened_clinics(environ) as clinics:
        clinics.open(organization_ids)
        with CommandLine(environ, folder).start("ui", "--port", str(port)) as running:
            try:
                running.wait_until(lambda: answers(address), "the webserver does not answer", 90)
                with open_runtime(load_settings(environ)) as runtime, served(runtime) as url:
                    running.wait_until(lambda: _is_loaded(address), "the code location has not loaded")
                    yield ServiceWithDagster(url, clinics, folder / "home", address)
            finally:
                # The processes are killed, because the database is dropped and no orderly end is needed.
                for process in processes_of(folder / "home"):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)


def _is_loaded(address: str) -> bool:
    query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
    with httpx.Client(trust_env=False, verify=False, timeout=30) as client:
        answer = client.post(f"{address}/graphql", json={"query": query}).json()
    return bool(answer["data"]["repositoriesOrError"].get("nodes"))


def request_sync(api: httpx.Client, organization_id: str, *, full: bool = False, key: str | None = None) -> Any:
    """Request a sync. Return the body of the response."""
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = api.post(f"/v1/organizations/{organization_id}/syncs", json={"full": full}, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def wait_for_status(api: httpx.Client, sync_id: str, *statuses: str) -> Any:
    """Wait until the sync has one of the statuses, by default until it has ended. Return the sync."""
    sync: dict[str, Any] = {}

    def has_status() -> bool:
        sync.update(api.get(f"/v1/syncs/{sync_id}").json())
        return sync["status"] in (statuses or ENDED)

    wait_until(has_status, lambda: f"the sync is {sync}")
    return sync


def events(api: httpx.Client, sync_id: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and data of each server-sent event of a sync."""
    with api.stream("GET", f"/v1/syncs/{sync_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)


def every_page(api: httpx.Client, path: str, query: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield the items of a list, page by page."""
    cursor: str | None = None
    while True:
        answer = api.get(path, params={**query, **({} if cursor is None else {"cursor": cursor})})
        assert answer.status_code == 200, answer.text
        yield answer.json()["items"]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return
