"""Tests that the embedded server trusts no other program, reveals nothing, and requires its password."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.orchestration.pooled_storage import storage_url
from cliniko_pipeline.postgres.server import programs
from cliniko_pipeline.postgres.server.cluster import Cluster
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline_tests.support.embedded_servers import UNUSUAL_NAME, answers, postmaster, statement
from cliniko_pipeline_tests.support.waiting import wait_until

VARIABLES = {
    "PGPORT": "6543",
    "PGHOST": "db.example",
    "PGDATA": "/nowhere",
    "PGUSER": "other",
    "PGPASSWORD": "other",
    "PGAPPNAME": "hidden-from-the-server",
    "CREDENTIALS_ENCRYPTION_KEY": "hidden-from-the-server",
}


@pytest.fixture(scope="module")
def running_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the folder of a running server.

    The folder has an unusual name, and the environment of the start is unusual.
    """
    root = tmp_path_factory.mktemp("running") / UNUSUAL_NAME
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in VARIABLES.items():
                monkeypatch.setenv(name, value)
            server = stack.enter_context(EmbeddedServer(root))
            assert answers(server.url)
        yield root
    assert not Path(str(server.url.query["host"])).exists()


@pytest.fixture
def url(running_root: Path) -> URL:
    return EmbeddedServer(running_root).url


def test_password_is_required_and_readable_by_its_owner_only(running_root: Path, tmp_path: Path, url: URL) -> None:
    (tmp_path / "link").symlink_to(running_root)
    with EmbeddedServer(tmp_path / "link") as same:
        assert same.url == url
    password = running_root / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    assert password.stat().st_uid == os.geteuid()
    assert len(url.password or "") >= 32
    assert stat.S_IMODE((running_root / "data").stat().st_mode) == 0o700
    # A process that can open the file could hold the lock.
    for lock in ("users.lock", "change.lock"):
        assert stat.S_IMODE((running_root / lock).stat().st_mode) == 0o600
    for wrong in (url._replace(password=None), url.set(password="wrong")):
        assert not answers(wrong)
        assert not answers(wrong.set(username="postgres", database="postgres"))
    assert statement(url, "select current_setting('listen_addresses')") == ""
    assert statement(url, "select current_setting('password_encryption')") == "scram-sha-256"


def test_password_and_environment_are_not_given_to_the_server(running_root: Path, url: URL) -> None:
    secret, process = (url.password or "").encode(), Path(f"/proc/{postmaster(running_root)}")
    assert secret not in (process / "cmdline").read_bytes()
    for path in (*(running_root / "data").glob("*.*"), running_root / "initdb.log"):
        assert not path.is_file() or secret not in path.read_bytes(), path
    known = (process / "environ").read_bytes()
    assert b"PATH=" in known
    assert b"hidden-from-the-server" not in known


def test_socket_folder_belongs_to_the_server(url: URL) -> None:
    folder = Path(str(url.query["host"]))
    assert len(str(folder)) < 80
    found = folder.lstat()
    account = programs.server_account()
    assert found.st_uid == (account[0] if account else os.geteuid())
    assert stat.S_ISDIR(found.st_mode)
    assert stat.S_IMODE(found.st_mode) & 0o022 == 0


def test_socket_folder_does_not_depend_on_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Processes of the same user can have different values of TMPDIR.
    layout = Cluster(tmp_path / UNUSUAL_NAME)
    first = layout.socket_directory
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert layout.socket_directory == first


@pytest.mark.parametrize("trap", ["link", "file", "writable", "owner"])
def test_socket_folder_of_somebody_else_is_refused(tmp_path: Path, trap: str) -> None:
    if trap == "owner" and os.geteuid() != 0:
        pytest.skip("only root makes folders of other accounts: run this test as root")
    root = tmp_path / UNUSUAL_NAME
    (root / "data").mkdir(parents=True)
    (root / "password").write_text("x")
    folder, elsewhere = Cluster(root).socket_directory, tmp_path / "elsewhere"
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
        with pytest.raises(DatabaseSetupError, match="another user") as raised, EmbeddedServer(root):
            pass
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert [(path.lstat().st_uid, path.lstat().st_mode) for path in (folder, elsewhere)] == before
    finally:
        folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()


@pytest.mark.parametrize("method", ["trust", "password"])
def test_password_is_sent_only_to_a_server_that_knows_it(running_root: Path, url: URL, method: str) -> None:
    # A server that accepts everybody, or that asks for the plain password, could be any program.
    access = running_root / "data" / "pg_hba.conf"
    before = access.read_text()
    storage = sa.create_engine(storage_url(url, "public"), poolclass=sa.NullPool)

    def refusal() -> str | None:
        try:
            storage.connect().close()
        except sa.exc.OperationalError as error:
            return str(error)
        return None

    def configure(text: str) -> None:
        access.write_text(text)
        programs.execute(running_root / "data", "pg_ctl", "reload", log=running_root / "data" / "server.log")

    configure(f"local all all {method}\n")
    try:
        # The server reads its configuration shortly after the signal.
        wait_until(lambda: "authentication method" in (refusal() or ""), f"{method} was not refused")
        with pytest.raises(DatabaseUnavailableError, match="PostgreSQL cannot be used"):
            statement(url, "select 1")
    finally:
        configure(before)
    wait_until(lambda: refusal() is None, "the right method is refused")
    assert answers(url)
