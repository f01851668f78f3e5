"""Syncs in separate processes, which tests may kill.

The processes are forks of the fork server, so they start fast. They run the worker of `cliniko-pipeline sync`.
"""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from importlib import resources
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

import yaml

from cliniko_pipeline.cli.runs import ended, worker_process
from cliniko_pipeline.cliniko import client
from cliniko_pipeline.cliniko.events import PageRead
from cliniko_pipeline.orchestration.assets.extraction import COMMIT_INTERVAL_SECONDS
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.sync_options import SyncOptions
from cliniko_pipeline_tests.support.fork_server import fork_server
from cliniko_pipeline_tests.support.page_by_page import crawl_page_by_page
from cliniko_pipeline_tests.support.waiting import wait_until

MAX_SECONDS = 120.0
DEFAULTS = SyncOptions()


@dataclass(frozen=True)
class Ended:
    """The end of a sync's process, with the signal that killed the process or the reported error."""

    signal: signal.Signals | None
    error: str | None

    @property
    def succeeded(self) -> bool:
        return self.signal is None and self.error is None


def home_with_files(folder: Path) -> Path:
    """Make a home whose Dagster instance stores runs in files, which is seconds faster than PostgreSQL."""
    dagster_home = folder / "dagster"
    dagster_home.mkdir(parents=True)
    shipped = resources.files("cliniko_pipeline") / "orchestration" / "dagster.yaml"
    configuration = yaml.safe_load(shipped.read_text())
    del configuration["storage"]
    (dagster_home / "dagster.yaml").write_text(yaml.safe_dump(configuration))
    return folder


class SyncProcesses:
    """A context manager that runs one sync at a time. The first sync takes some seconds longer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave the fork server running for other tests."""

    def run(
        self,
        environ: Mapping[str, str],
        organization_id: str,
        options: SyncOptions,
        *,
        kill_when: Callable[[], bool] | None = None,
        kill_at_page: int | None = None,
        seconds_a_page: float | None = None,
        page_by_page: bool = False,
    ) -> Ended:
        """Sync the organization. Kill the process when `kill_when` is true or `kill_at_page` pages are read.

        With `seconds_a_page`, the clock that decides when to commit a batch advances with the pages read. With
        `page_by_page`, one page is in flight and each page is a batch.
        """
        as_of = options.as_of and options.as_of.isoformat()
        pace = (seconds_a_page, page_by_page)
        arguments = (organization_id, kill_at_page, pace, {**asdict(options), "as_of": as_of})
        with TemporaryFile() as answer, Path(os.devnull).open() as nothing:
            # The process writes its result to standard output, so other output goes to pytest's standard error.
            streams = (nothing.fileno(), answer.fileno(), 2)
            with fork_server().run(
                f"{__name__}:sync", arguments, environ=os.environ | environ, streams=streams
            ) as fork:
                if kill_when is not None:
                    wait_until(kill_when, "the point of the kill was never reached", MAX_SECONDS)
                    fork.kill()
                code = fork.wait(MAX_SECONDS)
            answer.seek(0)
            error = json.loads(answer.read() or "null")
        assert code in {0, -signal.SIGKILL}, f"the process ended with {code}: {error}"
        return Ended(signal.Signals(-code) if code < 0 else None, error)


def sync_in_a_fork(environ: Mapping[str, str], organization_id: str, options: SyncOptions = DEFAULTS) -> Ended:
    """Sync as `cliniko-pipeline sync` does, but faster."""
    return SyncProcesses().run(environ, organization_id, options)


class _Command:
    """The worker's connection to the command. It gives the worker one organization, and takes its messages."""

    def __init__(self, organization_id: str, kill_at_page: int | None) -> None:
        self.error: str | None = "it reported no end"
        self._waiting = [organization_id]
        self._kill_at_page = kill_at_page
        self.pages_read = 0

    def recv(self) -> str:
        if not self._waiting:
            raise EOFError
        return self._waiting.pop()

    def close(self) -> None:
        """Do nothing, because the worker has not inherited the parent's end here."""

    def send(self, message: object) -> None:
        if isinstance(message, ended.Ended):
            self.error = message.error
        elif isinstance(message, PageRead):
            self.pages_read += 1
            if self.pages_read == self._kill_at_page:
                os.kill(os.getpid(), signal.SIGKILL)


def sync(
    organization_id: str, kill_at_page: int | None, pace: tuple[float | None, bool], options: dict[str, Any]
) -> None:
    """Sync the organization in the fork, and write the error to standard output."""
    answer = os.dup(1)
    os.dup2(2, 1)
    as_of = options.pop("as_of")
    command: Any = _Command(organization_id, kill_at_page)
    seconds_a_page, page_by_page = pace
    if page_by_page:
        seconds_a_page = COMMIT_INTERVAL_SECONDS
        client.crawl_pages = crawl_page_by_page
    if seconds_a_page is not None:
        worker_process.open_runtime = partial(open_runtime, elapsed=lambda: command.pages_read * seconds_a_page)
    worker_process.serve(command, command, SyncOptions(as_of and datetime.fromisoformat(as_of), **options))
    os.write(answer, json.dumps(command.error).encode())
    os._exit(0)
