import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cliniko_pipeline.daemon_threads import DaemonThreads
from cliniko_pipeline_tests.support.raw_servers import RawServer, silent
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS, wait_until

PROGRAM = """
import sys
import httpx
from cliniko_pipeline.daemon_threads import DaemonThreads
from cliniko_pipeline.cliniko.exchange.transport import CurlTransport, Limits
transport = CurlTransport(Limits())
threads = DaemonThreads(4, "page")
for _ in range(4):
    threads.submit(lambda: transport.handle_request(httpx.Request("GET", sys.argv[1])))
sys.stdin.readline()
"""


def test_process_ends_without_waiting_for_requests():
    """The server never responds. The process ends properly after it has sent its four requests."""
    root = str(Path(__file__).parents[1])
    with (
        RawServer(silent) as server,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, server.url], cwd=root, env={"PYTHONPATH": root},
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            wait_until(lambda: len(server.requests) == 4, lambda: f"{len(server.requests)} of 4 requests arrived")
            _, error_output = process.communicate("\n", timeout=LIMIT_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, error_output) == (0, "")


def test_threads_work_after_an_exception_until_they_are_closed():
    threads = DaemonThreads(2, "test-threads")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(LIMIT_SECONDS)
    assert [threads.submit(lambda number=number: number).result(LIMIT_SECONDS) for number in range(5)] == [*range(5)]
    started = [thread for thread in threading.enumerate() if thread.name.startswith("test-threads")]
    assert len(started) == 2
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(lambda: None)
    wait_until(lambda: not any(thread.is_alive() for thread in started), "the threads did not end")


def test_waiting_work_is_cancelled_when_threads_close():
    threads, may_go_on, done = DaemonThreads(1, "test-threads"), threading.Event(), []
    running = threads.submit(lambda: may_go_on.wait(LIMIT_SECONDS))
    waiting = [threads.submit(lambda: done.append(1)) for _ in range(3)]
    threads.close()
    may_go_on.set()
    assert running.result(LIMIT_SECONDS)
    wait_until(lambda: all(future.done() for future in waiting), "the waiting work was neither done nor cancelled")
    assert all(future.cancelled() for future in waiting)
    assert done == []
