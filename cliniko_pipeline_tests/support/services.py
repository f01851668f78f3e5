"""The HTTP service beside a real Dagster: webserver, daemon and sandbox, for tests that request syncs."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres import api_tokens
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.browsers import answers
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.processes import CommandLine, processes_of
from cliniko_pipeline_tests.support.waiting import wait_until


def token(database: Database, *scopes: str, organizations: list[str] | None = None, **options: Any) -> str:
    """A new token; of all organizations unless some are named."""
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


class Service:
    """The service at `url`, the clinics that Dagster syncs, and where Dagster has its things."""

    def __init__(self, url: str, clinics: Clinics, home: Path) -> None:
        self.url = url
        self.clinics = clinics
        self.home = home

    @property
    def database(self) -> Database:
        return self.clinics.database

    def client(self, *scopes: str, organizations: list[str] | None = None, **options: Any) -> httpx.Client:
        options.setdefault("requests_per_minute", 100_000)
        return client(self.url, token(self.database, *scopes, organizations=organizations, **options))


@contextmanager
def opened_service(database_url: URL, folder: Path, organizations: list[str]) -> Iterator[Service]:
    """With these organizations, none of which is ever synced but on request."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    by_hand = {
        "CLINIKO_SYNC_EVERY_MINUTES": "0",
        "CLINIKO_FULL_SYNC_AT": "off",
        "CLINIKO_COMPARE_COUNTS_EVERY_HOURS": "0",
    }
    environ = environment(database_url, folder / "home") | by_hand | {"CLINIKO_UI_URL": address}
    with opened_clinics(environ) as clinics:
        clinics.open(organizations)
        with CommandLine(environ, folder).start("ui", "--port", str(port)) as running:
            try:
                running.wait_until(lambda: answers(address), "the webserver does not answer", 90)
                with open_runtime(load_settings(environ)) as runtime, served(runtime) as url:
                    wait_until(lambda: _is_loaded(address), "the code location has not loaded")
                    yield Service(url, clinics, folder / "home")
            finally:
                # Their database goes with them: nothing need end in order.
                for process in processes_of(folder / "home"):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)


def _is_loaded(address: str) -> bool:
    query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
    answer = httpx.post(f"{address}/graphql", json={"query": query}, trust_env=False, timeout=30).json()
    return bool(answer["data"]["repositoriesOrError"].get("nodes"))
