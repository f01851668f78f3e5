"""The embedded server: shared by processes, gone with the last, back after whatever was killed."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres import embedded
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database

# A process that uses the server until its standard input ends.
USER = """
import sys
from pathlib import Path
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database
import sqlalchemy as sa
with EmbeddedServer(Path(sys.argv[1])) as server:
    database = Database(server.url)
    with database.operator() as connection:
        connection.execute(sa.text("select 1"))
    print("ready", flush=True)
    sys.stdin.read()
    database.close()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder that tests share, each leaving it stopped; initialized once."""
    root = tmp_path_factory.mktemp("shared") / "postgres"
    with EmbeddedServer(root):
        pass
    return root


@pytest.fixture
def start() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts processes that use a server; they are ended with the test."""
    with ExitStack() as stack:

        def started(root: Path, program: str = USER) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def answers(url: URL) -> bool:
    database = Database(url)
    try:
        with database.operator() as connection:
            return connection.execute(sa.text("select current_database()")).scalar_one() == embedded.DATABASE
    except DatabaseUnavailableError:
        return False
    finally:
        database.close()


def postmaster(root: Path) -> int:
    return int((root / "data" / "postmaster.pid").read_text().split("\n")[0])


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def used(root: Path) -> Iterator[EmbeddedServer]:
    """The server, which must run and answer inside and be gone, with all its processes, afterwards."""
    with EmbeddedServer(root) as server:
        assert answers(server.url)
        pid = postmaster(root)
        yield server
    assert eventually(lambda: not is_alive(pid))
    assert not (root / "data" / "postmaster.pid").exists()


def test_a_server_starts_answers_stops_and_keeps_what_was_stored(root: Path) -> None:
    for value in (None, 7):
        with used(root) as server:
            database = Database(server.url)
            with database.operator() as connection:
                connection.execute(sa.text("create table if not exists kept (value integer)"))
                assert connection.execute(sa.text("select max(value) from kept")).scalar_one() == value
                connection.execute(sa.text("insert into kept values (7)"))
            database.close()


def test_a_process_that_uses_it_twice_stops_it_once(root: Path) -> None:
    with used(root), EmbeddedServer(root) as inner:
        with EmbeddedServer(root):
            pass
        assert answers(inner.url)


def test_two_processes_share_it_and_the_last_one_out_stops_it(root: Path, start) -> None:
    first, second = start(root), start(root)
    ready(first)
    ready(second)
    url, pid = EmbeddedServer(root).url, postmaster(root)
    leave(first)
    assert answers(url)
    assert postmaster(root) == pid
    leave(second)
    assert not is_alive(pid)
    assert not answers(url)


def test_a_process_that_is_killed_leaves_it_to_the_others(root: Path, start) -> None:
    first, second = start(root), start(root)
    ready(first)
    ready(second)
    pid = postmaster(root)
    kill(first)
    assert answers(EmbeddedServer(root).url)
    leave(second)
    assert not is_alive(pid)


def test_after_the_last_process_was_killed_the_next_one_takes_it_over_and_stops_it(root: Path, start) -> None:
    only = start(root)
    ready(only)
    pid = postmaster(root)
    kill(only)
    with used(root):
        assert postmaster(root) == pid
    assert not is_alive(pid)


def test_after_the_server_itself_was_killed_the_next_start_works(root: Path) -> None:
    with EmbeddedServer(root):
        pid = postmaster(root)
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not is_alive(pid))
        assert (root / "data" / "postmaster.pid").exists()
    with used(root):
        assert postmaster(root) != pid


@pytest.mark.parametrize("other", ["another's process", "a process that ended and was not asked for"])
def test_a_stale_file_that_names_another_process_does_not_stop_the_next_start(root: Path, other: str) -> None:
    # Process ids come round again, in a restarted container at once; and a container's first process may be one that
    # does not ask for the ends of those left to it.
    with EmbeddedServer(root):
        pid = postmaster(root)
        lines = (root / "data" / "postmaster.pid").read_text().split("\n")
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not is_alive(pid))
    account = embedded._server_account()
    process = subprocess.Popen(["sleep", "60" if "another" in other else "0"], user=account[0] if account else None)
    try:
        assert "another" in other or eventually(lambda: not is_alive(process.pid))
        (root / "data" / "postmaster.pid").write_text("\n".join([str(process.pid), *lines[1:]]))
        with used(root):
            pass
        assert process.poll() == (None if "another" in other else 0)
    finally:
        process.kill()
        process.wait()


def test_processes_that_start_at_once_initialize_it_once(tmp_path: Path, start) -> None:
    root = tmp_path / "postgres"
    processes = [start(root) for _ in range(3)]
    for process in processes:
        ready(process)
    pid = postmaster(root)
    for process in processes:
        leave(process)
    assert not is_alive(pid)
    assert sorted(path.name for path in root.iterdir()) == [
        "change.lock",
        "data",
        "initdb.log",
        "password",
        "users.lock",
    ]


@pytest.mark.parametrize("moment", ["initdb", "password", "pg_ctl"])
def test_a_first_start_that_was_killed_is_made_good_by_the_next(tmp_path: Path, start, moment: str) -> None:
    root = tmp_path / "postgres"
    # Killed while the program runs (or just before the password is kept), which itself lives on.
    program = f"""
import os, signal, subprocess, sys
from cliniko_pipeline.postgres import embedded
real = subprocess.Popen
class Popen(real):
    def __init__(self, command, *arguments, **options):
        super().__init__(command, *arguments, **options)
        if command[0].endswith("/{moment}") and (command[1:] != ["status"]):
            os.kill(os.getpid(), signal.SIGKILL)
subprocess.Popen = Popen
if "{moment}" == "password":
    embedded._keep_password = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{USER}"""
    broken = start(root, program)
    assert broken.wait(60) == -signal.SIGKILL
    with used(root):
        pass
    assert sorted(path.name for path in root.iterdir() if "new" not in path.name) == [
        "change.lock",
        "data",
        "initdb.log",
        "password",
        "users.lock",
    ]


def test_the_password_is_for_its_owner_only_and_nobody_enters_without_it(root: Path) -> None:
    with used(root) as server:
        password = root / "password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
        assert password.stat().st_uid == os.geteuid()
        assert len(server.url.password or "") >= 32
        assert stat.S_IMODE((root / "data").stat().st_mode) == 0o700
        for wrong in (server.url._replace(password=None), server.url.set(password="wrong")):
            assert not answers(wrong)
            assert not answers(wrong.set(username="postgres"))
            assert not answers(wrong.set(database="postgres"))


def test_the_server_listens_on_no_port_and_its_password_stands_in_no_file_but_one(root: Path) -> None:
    with used(root) as server:
        database = Database(server.url)
        with database.operator() as connection:
            settings = connection.execute(
                sa.text("select current_setting('listen_addresses'), current_setting('password_encryption')")
            ).one()
        database.close()
        assert tuple(settings) == ("", "scram-sha-256")
        command = Path(f"/proc/{postmaster(root)}/cmdline").read_bytes()
        secret = (server.url.password or "").encode()
        assert secret not in command
        for path in (*(root / "data").glob("*.*"), root / "initdb.log"):
            assert not path.is_file() or secret not in path.read_bytes(), path
    assert secret not in b"".join(path.read_bytes() for path in (root / "data").glob("*.log"))


@pytest.mark.parametrize(
    "name",
    ['it\'s "so", $HOME `id` \\x %d;# = & ?', "gr\xf6\xdfe \u540d\u524d \U0001f600/" + "deep/" * 40],
    ids=["quotes", "letters and depth"],
)
def test_a_folder_of_any_name_will_do(tmp_path: Path, name: str) -> None:
    with used(tmp_path / name):
        pass


def test_a_server_far_down_has_its_socket_where_only_it_may_make_one(tmp_path: Path) -> None:
    root = tmp_path / ("deep/" * 40 + "end")
    with EmbeddedServer(root) as server:
        (host,) = [server.url.query["host"]]
        folder = Path(str(host))
        assert len(str(folder)) < 80
        status = folder.stat()
        account = embedded._server_account()
        assert status.st_uid == (account[0] if account else os.geteuid())
        assert stat.S_IMODE(status.st_mode) & 0o022 == 0
    assert not folder.exists()
    # Somebody else's folder of that name could hold a server that asks for the password.
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(DatabaseSetupError, match="somebody else"), EmbeddedServer(root):
            pass
    finally:
        folder.unlink()


def test_the_environment_of_the_operator_does_not_lead_astray(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "PGPORT": "6543",
        "PGHOST": "db.example",
        "PGDATA": "/nowhere",
        "PGDATABASE": "other",
        "PGUSER": "other",
        "PGPASSWORD": "other",
    }
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with used(root) as server:
        for variable in variables:
            monkeypatch.delenv(variable)
        assert answers(server.url)  # of a process without them, too


@pytest.mark.parametrize("obstacle", ["a file in the way", "no such file system", "not writable"])
def test_a_folder_that_cannot_be_used_gives_one_clear_error(tmp_path: Path, obstacle: str) -> None:
    if obstacle == "a file in the way":
        (tmp_path / "file").write_text("")
        root = tmp_path / "file" / "postgres"
    elif obstacle == "no such file system":
        root = Path("/proc/cliniko/postgres")
    else:
        if os.geteuid() == 0:
            pytest.skip("root writes everywhere")
        tmp_path.chmod(0o500)
        root = tmp_path / "postgres"
    with pytest.raises(DatabaseSetupError) as raised, EmbeddedServer(root):
        pass
    assert str(root) in str(raised.value)
    assert "DATABASE_URL" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_server_that_cannot_be_initialized_says_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = embedded._server_account()
    monkeypatch.setattr(embedded, "_server_account", lambda: account)
    monkeypatch.setattr(embedded, "USER", "pg_not_allowed")  # initdb refuses names that begin so
    with pytest.raises(DatabaseSetupError) as raised, EmbeddedServer(tmp_path / "postgres"):
        pass
    log = tmp_path / "postgres" / "initdb.log"
    assert str(log) in str(raised.value)
    assert "pg_not_allowed" in log.read_text()


def test_a_server_that_cannot_be_started_says_where_to_look_and_is_not_kept(root: Path) -> None:
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


def test_a_lost_password_is_no_reason_to_begin_anew(tmp_path: Path) -> None:
    root = tmp_path / "postgres"
    with used(root):
        pass
    password = (root / "password").read_text()
    (root / "password").unlink()
    with pytest.raises(DatabaseSetupError, match="password"), EmbeddedServer(root):
        pass
    (root / "password").write_text(password)
    with used(root):
        pass


def test_no_embedded_server_for_a_platform_without_one_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _name: None)
    with pytest.raises(DatabaseSetupError, match="DATABASE_URL"), EmbeddedServer(tmp_path / "postgres"):
        pass


def test_a_temporary_folder_elsewhere_is_the_same_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The place of the socket must not depend on TMPDIR: processes of one user can have different ones.
    root = tmp_path / ("deep/" * 40 + "end")
    first = embedded._Layout(root).socket_directory
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert embedded._Layout(root).socket_directory == first
