"""Syncs in processes of their own that may be killed, each started within a fifth of a second.

`SyncProcesses` has one clean process, this module, import everything and fork itself for each sync: pytest's own
process, which has threads, is never forked. What a fork runs is the worker of `cliniko-pipeline sync`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Self

import yaml

from cliniko_pipeline.cli import workers
from cliniko_pipeline.cliniko.events import PageRead
from cliniko_pipeline.sync_options import SyncOptions

LONGEST_SECONDS = 60.0
IMPORTED = (
    "dagster_postgres",
    "cliniko_pipeline.definitions",
    "cliniko_pipeline.orchestration.instance",
    "cliniko_pipeline.orchestration.runs",
)


@dataclass(frozen=True)
class Ended:
    """How a sync's process ended: `signal` is what killed it, None where nothing did, and `error` what it told then."""

    signal: signal.Signals | None
    error: str | None
    seconds: float

    @property
    def succeeded(self) -> bool:
        return self.signal is None and self.error is None


def home_with_files(folder: Path) -> Path:
    """A home whose Dagster instance keeps its runs in files, where the shipped one keeps them in PostgreSQL: that opens
    a hundred and thirty connections for a run, which costs two seconds more.
    """
    dagster_home = folder / "dagster"
    dagster_home.mkdir(parents=True)
    shipped = resources.files("cliniko_pipeline") / "orchestration" / "dagster.yaml"
    configuration = yaml.safe_load(shipped.read_text())
    del configuration["storage"]
    (dagster_home / "dagster.yaml").write_text(yaml.safe_dump(configuration))
    return folder


class SyncProcesses:
    """Starts one sync at a time. The first takes some seconds more; a context manager."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(10)
        assert self._parent.stdout is not None
        self._parent.stdout.close()

    def run(
        self,
        environ: Mapping[str, str],
        organization_id: str,
        options: SyncOptions,
        *,
        kill_after: float | None = None,
        kill_when: Callable[[], bool] | None = None,
        kill_at_page: int | None = None,
    ) -> Ended:
        """Syncs the organization, and returns when the process has ended.

        `kill_after` so many seconds, or as soon as `kill_when` is true, it gets SIGKILL; with `kill_at_page` it sends
        that to itself when it has read so many pages and done nothing yet with the last.
        """
        as_of = options.as_of and options.as_of.isoformat()
        order = {"environ": dict(environ), "organization": organization_id, "kill_at_page": kill_at_page}
        began = time.monotonic()
        process_id = self._ask({**order, "options": {**asdict(options), "as_of": as_of}})
        if kill_after is not None or kill_when is not None:
            while time.monotonic() < began + (kill_after or LONGEST_SECONDS) and not (kill_when and kill_when()):
                time.sleep(0.001)
            # Nobody has waited for it yet, so this is still its number, whether it goes on or not.
            os.kill(process_id, signal.SIGKILL)
        too_long = threading.Timer(LONGEST_SECONDS, os.kill, (process_id, signal.SIGKILL))
        too_long.start()
        code, error = self._ask({"wait": process_id})
        too_long.cancel()
        ended = Ended(signal.Signals(-code) if code < 0 else None, error, time.monotonic() - began)
        assert ended.seconds < LONGEST_SECONDS, "it did not end"
        assert code in {0, -signal.SIGKILL}, f"the process ended with {code}: {error}"
        return ended

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        assert answer, "the process that starts syncs has ended"
        return json.loads(answer)


class _Command:
    """What the worker takes for its connection to the command: tells it one organization, and takes its messages."""

    def __init__(self, organization_id: str, kill_at_page: int | None) -> None:
        self.error: str | None = "it told no end"
        self._waiting = [organization_id]
        self._pages_left = kill_at_page

    def recv(self) -> str:
        if not self._waiting:
            raise EOFError
        return self._waiting.pop()

    def send(self, message: object) -> None:
        if isinstance(message, workers._Ended):
            self.error = message.error
        elif isinstance(message, PageRead) and self._pages_left is not None:
            self._pages_left -= 1
            if self._pages_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _sync(order: Mapping[str, Any], told: int) -> None:
    os.environ.update(order["environ"])
    as_of = order["options"].pop("as_of")
    options = SyncOptions(as_of and datetime.fromisoformat(as_of), **order["options"])
    command: Any = _Command(order["organization"], order["kill_at_page"])
    workers._serve(command, options)
    os.write(told, json.dumps(command.error).encode())


def _start(order: Mapping[str, Any]) -> tuple[int, int]:
    """The number of the process that syncs, and where it tells how that went."""
    telling, told = os.pipe()
    process_id = os.fork()
    if process_id:
        os.close(told)
        return process_id, telling
    code = 1
    try:
        # Standard output is for the answers.
        os.dup2(2, 1)
        _sync(order, told)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    # What syncs import, so that they need not.
    for each in IMPORTED:
        import_module(each)
    assert threading.active_count() == 1
    telling: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        process_id = order.get("wait")
        if process_id is None:
            answer: Any
            answer, reading = _start(order)
            telling[answer] = reading
        else:
            with os.fdopen(telling.pop(process_id)) as told:
                error = told.read()
            _, status = os.waitpid(process_id, 0)
            answer = os.waitstatus_to_exitcode(status), json.loads(error) if error else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
