"""PostgreSQL servers for tests that need a special configuration, a restart or a standby."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.server.programs import binaries, server_account
from cliniko_pipeline_tests.support.environments import free_port

DEBIAN_VERSIONS = Path("/usr/lib/postgresql")
LOCAL = "local all all trust"


def chosen_programs() -> Path | None:
    """Return the folder in CLINIKO_TEST_POSTGRESQL, with the programs of another PostgreSQL, or None."""
    given = os.environ.get("CLINIKO_TEST_POSTGRESQL")
    return Path(given).absolute() if given else None


def debian_programs() -> Path | None:
    """Return the folder with the programs of Debian's newest PostgreSQL, or None if it is not installed."""
    found = [path.parent for path in DEBIAN_VERSIONS.glob("*/bin/initdb")]
    return max(found, key=lambda folder: float(folder.parent.name), default=None)


def embedded_programs() -> Path:
    """Return the folder with the programs of the embedded PostgreSQL, which has no ICU and no TLS."""
    return binaries()


class Server:
    """A server with the superuser `postgres`. It listens on a Unix socket and on a port of 127.0.0.1 and ::1."""

    def __init__(self, programs: Path, folder: Path, account: pwd.struct_passwd) -> None:
        self.programs = programs
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self._account = account

    @property
    def url(self) -> URL:
        """The URL of the socket. Connections through it are not encrypted."""
        query = {"host": str(self.folder), "port": str(self.port)}
        return URL.create("postgresql+psycopg", "postgres", database="postgres", query=query)

    @property
    def tcp_url(self) -> URL:
        """The URL of the port. The default pg_hba.conf refuses it."""
        return URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", port=self.port, database="postgres")

    def run(self, program: str, *arguments: str) -> None:
        """Run a program as the server's account."""
        log = self.folder / "programs.log"
        with log.open("ab") as output:
            done = subprocess.run(
                [self.programs / program, *arguments],
                user=self._account.pw_uid,
                group=self._account.pw_gid,
                extra_groups=[self._account.pw_gid],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                check=False,
            )
        assert done.returncode == 0, f"{program}: {log.read_text(errors='replace')[-2000:]}"

    def control(self, action: str, *arguments: str) -> None:
        """Run pg_ctl, and wait until the action is done."""
        self.run("pg_ctl", action, "--wait", f"--pgdata={self.data}", f"--log={self.folder}/server.log", *arguments)

    def initialize(self) -> None:
        arguments = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        self.run("initdb", f"--pgdata={self.data}", *arguments)
        self.write("pg_hba.conf", LOCAL)

    def start(self) -> None:
        """Start the server. fsync is off, which is safe as long as the machine runs."""
        settings = {
            "port": self.port,
            "unix_socket_directories": self.folder,
            "listen_addresses": "127.0.0.1,::1",
            "fsync": "off",
        }
        self.control("start", "-o", " ".join(f"-c {name}={value}" for name, value in settings.items()))

    def restart(self, mode: Literal["fast", "immediate"]) -> None:
        """Restart the server. `fast` ends all sessions before the shutdown. `immediate` is like a crash."""
        self.control("restart", f"--mode={mode}")

    def write(self, name: str, text: str) -> Path:
        """Write a file into the data folder, readable for the server's account only."""
        path = self.data / name
        path.write_text(text + "\n")
        path.chmod(0o600)
        os.chown(path, self._account.pw_uid, self._account.pw_gid)
        return path

    @contextmanager
    def standby(self) -> Iterator["Server"]:
        """Run a hot standby, created with pg_basebackup."""
        self.write("pg_hba.conf", f"{LOCAL}\nlocal replication all trust")
        self.control("reload")
        with _folder(self.programs) as (folder, account):
            other = Server(self.programs, folder, account)
            source = (f"--host={self.folder}", f"--port={self.port}", "--username=postgres")
            self.run("pg_basebackup", f"--pgdata={other.data}", "--write-recovery-conf", "--checkpoint=fast", *source)
            with other._running():
                yield other

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.control("stop", "--mode=immediate")


@contextmanager
def running_server(programs: Path) -> Iterator[Server]:
    """Run a new server with these programs."""
    with _folder(programs) as (folder, account):
        server = Server(programs, folder, account)
        server.initialize()
        with server._running():
            yield server


@contextmanager
def _folder(programs: Path) -> Iterator[tuple[Path, pwd.struct_passwd]]:
    """Create a folder owned by the server's account, and let that account enter `programs`."""
    account = server_account()
    # pytest's folders are not used, because other accounts cannot enter them.
    with TemporaryDirectory(prefix="cliniko-server-") as name:
        if account is not None:
            os.chown(name, *account)
            for folder in programs.parents:
                if not (mode := folder.stat().st_mode) & 0o001:
                    folder.chmod(mode | 0o001)
        yield Path(name), pwd.getpwuid(account[0] if account else os.geteuid())
