"""Machines made of namespaces: each has its own network, processes, checkout, Python environment and Dagster home.

A machine reaches the servers of the tests at the same ports of its own 127.0.0.1.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cliniko_pipeline_tests.support import forwarding
from cliniko_pipeline_tests.support.brokers import send_runs_to_workers
from cliniko_pipeline_tests.support.processes import OURS, Running, children_of

ROOT = Path(__file__).parents[2]


class Machine:
    """A machine with this number. Use `made_machine`."""

    def __init__(self, number: int, folder: Path, environ: Mapping[str, str]) -> None:
        self.name = f"cliniko-{os.getpid()}-{number}"
        self._link = f"ck{number}-{os.getpid()}"[:12]
        self.outside, self.inside = f"10.231.{number}.1", f"10.231.{number}.2"
        self._folder = folder
        home = {"CLINIKO_PIPELINE_HOME": str(folder / "home"), "DAGSTER_HOME": str(folder / "home" / "dagster")}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self._environ = {**inherited, "PYTHONUNBUFFERED": "1", **environ, **home}

    def start(self, *arguments: str) -> Running:
        """Start a command of the pipeline in the machine's namespaces."""
        namespaces = ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        program = self._folder / "venv" / "bin" / "cliniko-pipeline"
        return Running([*namespaces, str(program), *arguments], self._environ, self._folder)

    def install(self) -> None:
        """Copy the checkout, and install the pipeline into an environment of its own."""
        checkout = self._folder / "checkout"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, tracked.stdout.split("\0")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, checkout / name)
        subprocess.run([sys.executable, "-m", "venv", self._folder / "venv"], check=True)
        constraints = ("--constraint", checkout / "constraints.txt")
        pip = [self._folder / "venv" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *constraints, f"{checkout}[celery]"], check=True)
        send_runs_to_workers(self._folder / "home" / "dagster")

    def connect(self, ports: Sequence[int], stack: ExitStack) -> None:
        """Make the network, and forward the ports of 127.0.0.1 to those of the tests' 127.0.0.1."""
        _ip("netns", "add", self.name)
        stack.callback(_ip, "netns", "delete", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("address", "add", f"{self.outside}/30", "dev", self._link)
        _ip("link", "set", self._link, "up")
        _ip("-n", self.name, "address", "add", f"{self.inside}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.name, "link", "set", device, "up")
        forward = [sys.executable, forwarding.__file__]
        for prefix, listening_host, target_host in (
            ([], self.outside, "127.0.0.1"),
            (["ip", "netns", "exec", self.name], "127.0.0.1", self.outside),
        ):
            command = [*prefix, *forward, listening_host, target_host, *map(str, ports)]
            process = subprocess.Popen(command)
            stack.callback(process.wait)
            stack.callback(process.kill)


@contextmanager
def made_machine(number: int, folder: Path, environ: Mapping[str, str], ports: Sequence[int]) -> Iterator[Machine]:
    """Make a machine. Skip the test if this user may not make one."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("this needs root, and Debian's iproute2 and util-linux")
    folder.mkdir()
    machine = Machine(number, folder, environ)
    with ExitStack() as stack:
        machine.install()
        machine.connect(ports, stack)
        yield machine


def kill_tree(process: int) -> None:
    """Kill a process with its children, and their children."""
    for child in children_of(process):
        kill_tree(child)
    os.kill(process, signal.SIGKILL)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
