"""The embedded server beside other programs of this machine: it tells them nothing, trusts none and ends none."""

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.orchestration.instance import storage_url
from cliniko_pipeline.postgres import embedded
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database

DEEP = "deep/" * 30 + "end"


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture(scope="module")
def root(shallow: Path) -> Path:
    """A server's folder that tests share, each leaving it stopped; its socket stands in the temporary folder."""
    with EmbeddedServer(shallow / DEEP):
        pass
    return shallow / DEEP


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the server's account that has nothing to do with the server, but by its name."""
    account = embedded._server_account()
    program = shutil.which("sleep")
    command = ["postgres", "60"]
    with subprocess.Popen(command, executable=program, user=account[0] if account else None, cwd="/") as process:
        yield process
        process.kill()


def process_file(root: Path) -> Path:
    return root / "data" / "postmaster.pid"


def process_of(root: Path) -> int:
    return int(process_file(root).read_text().split("\n")[0])


def killed(root: Path) -> None:
    """Leaves a process file without its process."""
    with EmbeddedServer(root):
        os.kill(process_of(root), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while embedded._command_of(process_of(root)):
            assert time.monotonic() < deadline
    assert process_file(root).exists()


def claim(root: Path, process: int) -> None:
    """Has the process file name another process, as when ids come round again."""
    _, *others = process_file(root).read_text().split("\n")
    process_file(root).write_text("\n".join([str(process), *others]))


def selected(url: URL) -> int:
    database = Database(url)
    try:
        with database.operator() as connection:
            return connection.execute(sa.text("select 1")).scalar_one()
    finally:
        database.close()


def test_the_server_and_its_processes_know_nothing_of_our_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CREDENTIALS_ENCRYPTION_KEY", "CLINIKO_CONTACT_EMAIL", "PGAPPNAME"):
        monkeypatch.setenv(name, "hidden-from-the-server")
    with EmbeddedServer(root):
        known = Path(f"/proc/{process_of(root)}/environ").read_bytes()
    assert b"PATH=" in known
    assert b"hidden-from-the-server" not in known
    assert b"CREDENTIALS_ENCRYPTION_KEY" not in known


def test_a_process_that_took_the_number_of_a_killed_server_neither_keeps_it_down_nor_is_ended(
    root: Path, sleeping: subprocess.Popen[bytes]
) -> None:
    killed(root)
    claim(root, sleeping.pid)
    with EmbeddedServer(root) as server:
        assert selected(server.url) == 1
        # Once more from inside: a stop must not end it either.
        with EmbeddedServer(root):
            pass
    assert sleeping.poll() is None
    assert not process_file(root).exists()


def test_a_stop_does_not_end_a_process_that_is_not_the_server(root: Path, sleeping: subprocess.Popen[bytes]) -> None:
    with EmbeddedServer(root):
        os.kill(process_of(root), signal.SIGKILL)
        claim(root, sleeping.pid)
    assert sleeping.poll() is None
    with EmbeddedServer(root) as server:
        assert selected(server.url) == 1


def test_another_servers_process_is_not_taken_for_this_one(root: Path, shallow: Path) -> None:
    with EmbeddedServer(shallow / "other") as other:
        killed(root)
        claim(root, process_of(shallow / "other"))
        with EmbeddedServer(root) as server:
            assert selected(server.url) == 1
        assert selected(other.url) == 1


def test_a_folder_reached_by_another_name_has_the_same_server(root: Path, shallow: Path) -> None:
    (shallow / "link").symlink_to(root)
    with EmbeddedServer(root) as server, EmbeddedServer(shallow / "link") as same:
        assert same.url == server.url


def test_the_socket_stands_in_a_folder_of_the_servers_own(root: Path) -> None:
    with EmbeddedServer(root) as server:
        found = Path(str(server.url.query["host"])).lstat()
    account = embedded._server_account()
    assert found.st_uid == (account[0] if account else os.geteuid())
    assert stat.S_ISDIR(found.st_mode)
    assert stat.S_IMODE(found.st_mode) & 0o022 == 0


@pytest.mark.parametrize("trap", ["link", "file", "writable", "owner"])
def test_a_socket_folder_that_somebody_else_prepared_is_refused_and_left_as_it_is(
    root: Path, tmp_path: Path, trap: str
) -> None:
    if trap == "owner" and os.geteuid() != 0:
        pytest.skip("only root makes folders of others")
    folder = embedded._Layout(root).socket_directory
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    try:
        if trap == "link":
            folder.symlink_to(elsewhere)
        elif trap == "file":
            folder.touch()
        else:
            folder.mkdir()
            folder.chmod(0o733 if trap == "writable" else 0o711)
            if trap == "owner":
                os.chown(folder, 65_432, 65_432)
        before = [(path.lstat().st_uid, path.lstat().st_mode) for path in (folder, elsewhere)]
        with pytest.raises(DatabaseSetupError) as raised, EmbeddedServer(root):
            pass
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert [(path.lstat().st_uid, path.lstat().st_mode) for path in (folder, elsewhere)] == before
    finally:
        folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()


def test_a_password_goes_to_a_server_only_that_proves_to_know_it(root: Path) -> None:
    # One that lets everybody in, or asks for the password as it is, could be anybody's.
    access = root / "data" / "pg_hba.conf"
    before = access.read_text()
    with EmbeddedServer(root) as server:
        url = server.url
        for method in ("trust", "password"):
            access.write_text(f"local all all {method}\n")
            embedded._execute(root / "data", "pg_ctl", "reload", log=root / "data" / "server.log")
            _assert_refused(url, method)
        access.write_text(before)
        embedded._execute(root / "data", "pg_ctl", "reload", log=root / "data" / "server.log")
        storage = storage_url(url).set(drivername="postgresql")
        with psycopg2.connect(storage.render_as_string(hide_password=False)) as connection:
            connection.cursor().execute("select 1")
        connection.close()
        assert selected(url) == 1


def _assert_refused(url: URL, method: str) -> None:
    storage = storage_url(url).set(drivername="postgresql")
    deadline = time.monotonic() + 10
    while True:  # the server reads its configuration anew when it gets to it
        try:
            psycopg2.connect(storage.render_as_string(hide_password=False)).close()
        except psycopg2.OperationalError as error:
            if "authentication method" in str(error):
                break
        assert time.monotonic() < deadline, method
        time.sleep(0.02)
    with pytest.raises(Exception, match="PostgreSQL cannot be used"):
        selected(url)
