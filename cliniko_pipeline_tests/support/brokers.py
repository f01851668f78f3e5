"""A Redis with the shipped configuration, as the broker of Celery."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.waiting import wait_until

SHIPPED = Path(__file__).parents[2] / "deploy" / "celery"


class Broker:
    """A Redis on a port of this machine, whose data is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("this needs Redis: make debian-redis")
        command = [program, str(SHIPPED / "redis.conf"), "--port", str(self.port), "--dir", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._is_listening, "Redis does not listen")

    def stop(self) -> None:
        """End it as a restart of the service does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def _is_listening(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@contextmanager
def running_broker(folder: Path) -> Iterator[Broker]:
    """Run a Redis. Skip the test if it is not installed."""
    folder.mkdir()
    broker = Broker(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def send_runs_to_workers(dagster_home: Path) -> None:
    """Put the shipped configuration of Celery into a Dagster home."""
    dagster_home.mkdir(parents=True)
    shutil.copyfile(SHIPPED / "dagster.yaml", dagster_home / "dagster.yaml")
