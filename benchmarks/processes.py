"""Processes beside the benchmark's own: how they start and end, and the CPU seconds and memory that they use (/proc).

CPU seconds are the kernel's. A peak is the most resident memory that a process ever had (VmHWM); 1 MB is 10^6 bytes.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

from benchmarks.reporting import BenchmarkError

TERMINATION_SECONDS = 30
# PYTHONDONTWRITEBYTECODE would make each process compile the modules again.
_OWN_SETTINGS = (
    "DATABASE_URL",
    "CREDENTIALS_ENCRYPTION_KEY",
    "DAGSTER_",
    "CLINIKO_",
    "PYTHONDONTWRITEBYTECODE",
    "DLT_",
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def remove_own_settings() -> None:
    """Remove the operator's settings and proxies from the environment, for this process and its children."""
    for name in list(os.environ):
        if name.startswith(_OWN_SETTINGS) or name.lower() in _PROXIES:
            del os.environ[name]


# Starting and ending.


@contextmanager
def spawned(target: Callable[..., None], *arguments: object) -> Generator[tuple[SpawnProcess, Connection]]:
    """Run `target(connection, *arguments)` in a fresh Python process; kill it at the end of the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = cast("tuple[Connection, Connection]", context.Pipe())
    process = context.Process(target=_ignore_interrupts, args=(target, theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _ignore_interrupts(target: Callable[..., None], *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles Ctrl-C and ends this process
    target(*arguments)


def run_fresh(function: str, *arguments: object, environ: Mapping[str, str], folder: Path, seconds: float) -> Any:
    """Return what `module:function` returns in a fresh Python process that imports nothing else.

    The process works in `folder`, and its environment has `environ` in addition. Raise `BenchmarkError` where the
    function fails or takes longer than `seconds`.
    """
    with spawned(_call, function, arguments, dict(environ), folder) as (_, connection):
        try:
            answer = connection.recv() if connection.poll(seconds) else f"no result after {seconds} s"
        except EOFError:
            answer = "its process ended early"
    if isinstance(answer, str):
        raise BenchmarkError(f"{function} failed: {answer}")
    return answer[0]


def _call(
    connection: Connection, function: str, arguments: Sequence[object], environ: Mapping[str, str], folder: Path
) -> None:
    """Send a tuple with the result, or the traceback as text."""
    os.environ.update(environ)
    os.chdir(folder)
    os.dup2(2, 1)  # standard output is the report's
    module, _, name = function.partition(":")
    try:
        answer: object = (getattr(import_module(module), name)(*arguments),)
    except Exception:  # noqa: BLE001 (raised again in the benchmark's process)
        answer = traceback.format_exc()
    connection.send(answer)


@contextmanager
def started(
    command: Sequence[str | Path], environ: Mapping[str, str], log: Path
) -> Generator["subprocess.Popen[bytes]"]:
    """Start a command in a process group that ends with the block; a `BenchmarkError` gets the end of its log."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 (the project's own commands, without a shell)
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    except BenchmarkError as error:
        raise BenchmarkError(f"{error}\n{log.name}: {log.read_text(errors='replace')[-3000:]}") from error
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATION_SECONDS)


def wait_until(condition: Callable[[], object], seconds: float, what: str, interval: float = 1.0) -> None:
    """Wait until the condition is true. Raise `BenchmarkError` naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"waited {seconds} s for {what}")
        time.sleep(interval)


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on the port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# CPU seconds and memory.


def cpu_seconds(process: int) -> tuple[float, float]:
    """Return the CPU seconds of a process, and those of its children that have ended; zeros if it has ended itself."""
    with suppress(OSError):
        _, _, fields = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")
        own_user, own_system, user, system = map(int, fields.split()[11:15])
        return (own_user + own_system) / _TICKS_PER_SECOND, (user + system) / _TICKS_PER_SECOND
    return 0.0, 0.0


def machine_cpu_seconds() -> float:
    """Return the CPU seconds of all programs since the machine started."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text("ascii").split()[1:8])
    return sum((user, nice, system, *interrupts)) / _TICKS_PER_SECOND


def children(process: int) -> list[int]:
    """Return the process's children."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):  # the thread has ended
                found += map(int, (thread / "children").read_text("ascii").split())
    return found


def descendants(process: int) -> list[int]:
    """Return the process's children, their children, and so on."""
    return [each for child in children(process) for each in (child, *descendants(child))]


def peak_memory(process: int) -> float:
    """Return the peak of a process in MB; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def server_process(home: Path) -> int:
    """Return the process of the embedded PostgreSQL below `home`."""
    return int((home / "postgres" / "data" / "postmaster.pid").read_text("utf-8").split("\n", 1)[0])


def server_cpu_seconds(home: Path) -> float:
    """Return the CPU seconds of the embedded PostgreSQL below `home`: of all its processes, ended ones included."""
    server = server_process(home)
    return sum(cpu_seconds(server)) + sum(sum(cpu_seconds(each)) for each in children(server))


def session_cpu_seconds(home: Path) -> float:
    """Return the CPU seconds of the embedded PostgreSQL's open sessions, without what the server does by itself."""
    seconds = 0.0
    for each in children(server_process(home)):
        with suppress(OSError):
            if b"[local]" in Path(f"/proc/{each}/cmdline").read_bytes():
                seconds += cpu_seconds(each)[0]
    return seconds
