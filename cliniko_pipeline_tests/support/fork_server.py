"""A server process that has imported the pipeline, and forks for every command or sync of the tests.

Starting Python and importing Dagster takes two seconds of CPU time, but a fork takes milliseconds. pytest cannot be
forked itself, because it has threads. The server ends with pytest, even if pytest is killed.
"""

import atexit
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, Self

SCRIPT = str(Path(sysconfig.get_path("scripts")) / "cliniko-pipeline")
REPOSITORY = Path(__file__).parents[2]
IMPORTED = (
    "dagster_postgres",
    "cliniko_pipeline.definitions",
    "cliniko_pipeline.orchestration.runs.backfills",
    "cliniko_pipeline.orchestration.instance.home",
    "cliniko_pipeline.orchestration.runs.in_process",
    *(
        f"cliniko_pipeline.cli.{path.stem}"
        for path in sorted((REPOSITORY / "cliniko_pipeline" / "cli").glob("[a-z]*.py"))
    ),
)
MAX_ORDER_BYTES = 160_000
START_SECONDS = 120.0


class Fork:
    """A forked process. The process id is not reused before the block ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._code: int | None = None
        connection.settimeout(START_SECONDS)
        self.pid = int(self._received())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._code is None:
            self.kill()
        self._connection.close()

    def wait(self, seconds: float) -> int:
        """Return the exit code, negative for a signal. Raise TimeoutError."""
        if self._code is None:
            self._connection.settimeout(seconds)
            self._code = int(self._received())
        return self._code

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, sign)

    def _received(self) -> bytes:
        answer = self._connection.recv(64)
        assert answer, "the fork server has ended"
        return answer


class ForkServer:
    """The tests' connection to the server."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=theirs,
                cwd=REPOSITORY,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C is for pytest
            )

    def run(
        self,
        target: str,
        arguments: Sequence[Any] = (),
        *,
        environ: Mapping[str, str],
        folder: Path = REPOSITORY,
        argv: Sequence[str] = (SCRIPT,),
        streams: tuple[int, int, int],
    ) -> Fork:
        """Run `module:function` in a fork with JSON arguments and only the given variables and streams."""
        order = {"target": target, "arguments": arguments, "environ": dict(environ), "folder": str(folder)}
        message = json.dumps({**order, "argv": list(argv)}).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._channel, [message], [*streams, theirs.fileno()])
        return Fork(ours)

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


@functools.cache
def fork_server() -> ForkServer:
    """Return the server of this pytest process."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def _next_order(channel: socket.socket) -> dict[str, Any]:
    """Wait for orders. Return each order in its own fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MAX_ORDER_BYTES, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            *streams, reply = descriptors
            if (process_id := os.fork()) != 0:
                _report(process_id, streams, socket.socket(fileno=reply))
            os.close(reply)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return json.loads(message)
        for descriptor in descriptors:
            os.close(descriptor)


def _report(process_id: int, streams: list[int], reply: socket.socket) -> NoReturn:
    """Send the process's id, then its exit code. Release the id when the test has read both."""
    try:
        for descriptor in (0, 1, 2, *streams):
            os.close(descriptor)
        reply.send(str(process_id).encode())
        ended = os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        reply.send(str(code).encode())
        reply.recv(1)
    finally:
        os._exit(0)


def _execute(order: Mapping[str, Any]) -> None:
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environ"])
    time.tzset()
    sys.argv = order["argv"]
    # click and multiprocessing use this module as the program, so spawned workers import it as in reality.
    program = ModuleType("__main__")
    program.__file__ = SCRIPT
    sys.modules["__main__"] = program
    module, _, function = order["target"].partition(":")
    getattr(import_module(module), function)(*order["arguments"])


def main() -> None:
    """Import all modules, then fork for every order."""
    for name in IMPORTED:
        import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a process with {threads} threads cannot be forked"
    gc.freeze()
    channel = socket.socket(fileno=os.dup(0))
    _execute(_next_order(channel))


if __name__ == "__main__":
    main()
