"""Tests of the embedded server, which processes share, the last user stops, and any start recovers after kills."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.server import cluster, programs
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline_tests.support.embedded_servers import (
    answers,
    is_alive,
    postmaster,
    process_file,
    statement,
    used,
)
from cliniko_pipeline_tests.support.waiting import wait_until

# The program of a process that uses the server until its standard input ends.
USER = """
import sys
from pathlib import Path
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
with EmbeddedServer(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""
# The same program, but it kills itself when it starts `program`, which lives on, or just before it stores the password.
KILLED_USER = """
import os, signal, subprocess, sys
from cliniko_pipeline.postgres.server import cluster
program = sys.argv[2]
real = subprocess.Popen
class Popen(real):
    def __init__(self, command, *arguments, **options):
        super().__init__(command, *arguments, **options)
        if command[0].endswith(f"/{program}"):
            os.kill(os.getpid(), signal.SIGKILL)
subprocess.Popen = Popen
if program == "password":
    cluster._save_password = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
FILES = ["change.lock", "data", "initdb.log", "password", "users.lock"]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a server that every test leaves stopped."""
    root = tmp_path_factory.mktemp("stopped") / "postgres"
    with EmbeddedServer(root) as server:
        statement(server.url, "create table kept as select 7 as value")
    return root


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts processes that use a server. The processes are ended with the test."""
    with ExitStack() as stack:

        def started(root: Path, program: str = USER, *arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(root), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield started


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)
    assert process.returncode == 0


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)


def test_server_is_shared_by_processes_and_stopped_by_the_last(tmp_path: Path, start: Start) -> None:
    root = tmp_path / "postgres"
    processes = [start(root) for _ in range(3)]
    for process in processes:
        ready(process)
    assert sorted(path.name for path in root.iterdir()) == FILES
    url, pid = EmbeddedServer(root).url, postmaster(root)
    leave(processes[0])
    kill(processes[1])
    assert answers(url)
    assert postmaster(root) == pid
    leave(processes[2])
    assert not is_alive(pid)
    assert not answers(url)


def test_server_of_a_killed_process_is_taken_over(root: Path, start: Start) -> None:
    process = start(root)
    ready(process)
    pid = postmaster(root)
    kill(process)
    with used(root):
        assert postmaster(root) == pid


@pytest.fixture(params=["stranger", "ended child", "another server"])
def namesake(request: pytest.FixtureRequest, fresh_server_url: URL) -> Iterator[int]:
    """Yield a process that has the id of a killed server. Nobody must take it for the server or end it."""
    if request.param == "another server":
        pid = statement(fresh_server_url, "select split_part(pg_read_file('postmaster.pid'), e'\\n', 1)::int")
        yield int(str(pid))
        assert answers(fresh_server_url)
        return
    seconds = "600" if request.param == "stranger" else "0"
    account = programs.server_account()
    # The process has the name and account of the server.
    command, program = ["postgres", seconds], shutil.which("sleep")
    with subprocess.Popen(command, executable=program, user=account[0] if account else None, cwd="/") as process:
        if request.param == "ended child":
            wait_until(lambda: not is_alive(process.pid), "sleep has not ended")
        yield process.pid
        assert process.poll() == (None if request.param == "stranger" else 0)
        process.kill()


def test_killed_server_whose_pid_is_reused_starts_again(root: Path, namesake: int) -> None:
    with EmbeddedServer(root):
        pid = postmaster(root)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the killed server has not ended")
        _, *others = process_file(root).read_text().split("\n")
        process_file(root).write_text("\n".join([str(namesake), *others]))
    # The end of the block has not ended the other process, which `namesake` checks.
    assert process_file(root).exists()
    with used(root):
        assert postmaster(root) not in {pid, namesake}


@pytest.mark.slow
def test_interrupted_first_start_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "postgres"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_save_password", interrupt)
        with pytest.raises(KeyboardInterrupt), EmbeddedServer(root):
            pass
    assert not (root / "data").exists()
    with used(root):
        pass
    assert sorted(path.name for path in root.iterdir()) == FILES


@pytest.mark.slow
@pytest.mark.parametrize("program", ["initdb", "password", "pg_ctl"])
def test_killed_first_start_is_repeated(tmp_path: Path, start: Start, program: str) -> None:
    root = tmp_path / "postgres"
    assert start(root, KILLED_USER + USER, program).wait(60) == -signal.SIGKILL
    with used(root):
        pass
    assert sorted(path.name for path in root.iterdir() if "new" not in path.name) == FILES


def test_unusable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "postgres"
    with pytest.raises(DatabaseSetupError) as raised, EmbeddedServer(root):
        pass
    assert str(root) in str(raised.value)
    assert "DATABASE_URL" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_initdb_failure_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "USER", "pg_not_allowed")  # initdb refuses names that start like this
    with pytest.raises(DatabaseSetupError) as raised, EmbeddedServer(tmp_path / "postgres"):
        pass
    log = tmp_path / "postgres" / "initdb.log"
    assert str(log) in str(raised.value)
    assert "pg_not_allowed" in log.read_text()


def test_start_failure_names_its_log_and_can_be_mended(root: Path) -> None:
    configuration = root / "data" / "postgresql.conf"
    before = configuration.read_text()
    configuration.write_text(before + "\nno_such_setting = 1\n")
    try:
        with pytest.raises(DatabaseSetupError) as raised, EmbeddedServer(root):
            pass
        assert str(root / "data" / "server.log") in str(raised.value)
    finally:
        configuration.write_text(before)
    with used(root):
        pass


def test_lost_password_is_reported_and_can_be_put_back(root: Path) -> None:
    lost = root / "lost"
    (root / "password").rename(lost)
    try:
        with pytest.raises(DatabaseSetupError, match="password"), EmbeddedServer(root):
            pass
    finally:
        lost.rename(root / "password")
    with used(root) as server:
        with EmbeddedServer(root):
            pass
        # The inner block has not stopped the server, and the server has kept its data.
        assert statement(server.url, "select value from kept") == 7


def test_platform_without_binaries_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda _name: None)
    with pytest.raises(DatabaseSetupError, match="DATABASE_URL"), EmbeddedServer(tmp_path / "postgres"):
        pass


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> dict[str, pwd.struct_passwd]:
    """Return the machine's accounts, which are empty at first. The process is root, and `useradd` fails."""
    accounts: dict[str, pwd.struct_passwd] = {}
    failed = subprocess.CompletedProcess([], 9)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", accounts.__getitem__)
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_options: failed)
    return accounts


def test_account_made_by_another_process_is_used(accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    def useradd(*_arguments: object, **_options: object) -> subprocess.CompletedProcess[bytes]:
        accounts[programs.ACCOUNT] = pwd.struct_passwd((programs.ACCOUNT, "x", 950, 951, "", "/", ""))
        return subprocess.CompletedProcess([], 9)

    monkeypatch.setattr(subprocess, "run", useradd)
    assert programs.server_account() == (950, 951)


def test_account_that_cannot_be_made_is_reported(accounts) -> None:
    with pytest.raises(DatabaseSetupError, match="its account cliniko_pipeline could not be created"):
        programs.server_account()
