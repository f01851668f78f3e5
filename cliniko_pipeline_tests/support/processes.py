"""The command line, with a separate process for each command."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.fork_server import SCRIPT, fork_server
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS, T, wait_until

MAIN = "cliniko_pipeline.cli.main:main"
OURS = ("DATABASE_URL", "CREDENTIALS_ENCRYPTION_KEY", "DAGSTER_HOME", "CLINIKO_")


class CommandLine:
    """A runner of commands with the given variables, without the pipeline's variables of the tests."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        # The output must not depend on the terminal in which the tests run.
        self.environ |= {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **environ}
        self.folder = folder

    def __call__(
        self, *arguments: str, stdin: str = "", seconds: float = 120, **changes: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in a fork of the fork server. Return its exit code and output."""
        argv = [SCRIPT, *arguments]
        with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            streams = (given.fileno(), out.fileno(), err.fileno())
            environ = self.with_changes(changes)
            with fork_server().run(MAIN, environ=environ, folder=self.folder, argv=argv, streams=streams) as fork:
                code = fork.wait(seconds)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(argv, code, out.read().decode(), err.read().decode())

    def start(self, *arguments: str) -> "Running":
        """Start the installed console script in the background."""
        return Running([SCRIPT, *arguments], self.environ, self.folder)

    @contextmanager
    def started_ui(self) -> Iterator["Running"]:
        """Run the daemon, webserver and code server. Send Ctrl-C at the end."""
        with self.start("ui", "--port", str(free_port())) as running:
            try:
                yield running
            finally:
                if running.process.poll() is None:
                    running.interrupt()
                    running.wait(240)

    def with_changes(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        merged = {**self.environ, **changes}
        return {name: value for name, value in merged.items() if value is not None}


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, stdout: str = "") -> None:
    """Assert that the command failed with one line on standard error, which contains all the words."""
    assert (done.returncode, done.stdout) == (1, stdout)
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line
    assert "defect" not in line


class Running:
    """A background command in its own process group, and its output so far."""

    def __init__(self, command: list[str], environ: dict[str, str], folder: Path) -> None:
        self.process = subprocess.Popen(
            command,
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(30)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for(self, text: str, seconds: float = LIMIT_SECONDS) -> None:
        """Wait until the command has printed the text."""
        self.wait_until(lambda: text in self.output, f"no {text!r}", seconds)

    def wait_until(
        self, condition: Callable[[], T], failure: str = "the state never came", seconds: float = LIMIT_SECONDS
    ) -> T:
        """Return the first true result of the condition. Raise TimeoutError with the output if there is none."""
        found = wait_until(
            lambda: [result] if (result := condition()) or self.process.poll() is not None else [],
            lambda: f"{failure}; output so far:\n{self.output}",
            seconds,
        )
        # The condition is checked again, because the last action of an ended command may be visible only now.
        return found[0] or wait_until(
            condition, lambda: f"{failure}; it ended with {self.process.returncode}:\n{self.output}", 1
        )

    def interrupt(self, sign: signal.Signals = signal.SIGINT) -> None:
        """Send the signal to the process group, as Ctrl-C in a terminal does."""
        os.killpg(self.process.pid, sign)

    def wait(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
        self.process.stdout.close()


def processes_of(home: Path) -> dict[int, str]:
    """Return the command lines, by process id, of all processes with this home in their arguments or environment."""
    needle = os.fsencode(home)
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
            if arguments and needle in arguments + (folder / "environ").read_bytes():
                found[int(folder.name)] = arguments.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    found.pop(os.getpid(), None)
    return found


def wait_until_processes_end(home: Path) -> None:
    """Wait for the end of all processes, because multiprocessing's resource tracker outlives its command."""
    wait_until(lambda: not processes_of(home), lambda: f"still there: {processes_of(home)}")


def workers_of(home: Path) -> list[int]:
    """Return the processes of runs that Dagster launched."""
    return [number for number, command in processes_of(home).items() if "spawn_main" in command]


def children_of(process: int) -> list[int]:
    """Return the child processes, such as the workers of `sync`."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


CODE_SERVER_IS_GONE = ("DagsterCodeLocationNotFoundError", "DagsterUserCodeUnreachableError", "_InactiveRpcError")


def tracebacks(output: str) -> list[str]:
    """Return all tracebacks, except those of a daemon whose code server ended first, which is allowed."""
    return [
        text
        for text in output.split("Traceback (most recent call last):\n")[1:]
        if not any(part in text.partition("\n")[0] for part in ("/dagster/_daemon/", "/dagster/_grpc/"))
        or not any(error in text for error in CODE_SERVER_IS_GONE)
    ]
