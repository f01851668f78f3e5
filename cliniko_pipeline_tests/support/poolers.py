"""PgBouncer between the tests and a PostgreSQL server."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.waiting import wait_until


def _program() -> str:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("this needs PgBouncer: make debian-postgresql")
    return found


@contextmanager
def pooler(server_url: URL, mode: str = "session", **settings: str) -> Iterator[URL]:
    """Run a PgBouncer in this mode in front of the server. Yield the URL of the same database through PgBouncer.

    Skip the test if PgBouncer is not installed.
    """
    program = _program()
    account = _account(server_url)
    with TemporaryDirectory(prefix="cliniko-pooler-") as name:
        folder, port = Path(name), free_port()
        (folder / "users.txt").write_text(f'"{server_url.username}" "{server_url.password or ""}"\n')
        (folder / "pgbouncer.ini").write_text(_configuration(server_url, folder, port, mode, settings))
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, str(folder / "pgbouncer.ini")],
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        url = server_url.set(host="127.0.0.1", port=port, query={})
        try:
            wait_until(lambda: _is_listening(url) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield url
        finally:
            process.kill()
            process.wait()


def _account(server_url: URL) -> pwd.struct_passwd:
    """Return an account that may open the server's socket. It is not root, as which PgBouncer refuses to run."""
    folder = server_url.query.get("host")
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    if isinstance(folder, str) and (owner := Path(folder).stat().st_uid):
        return pwd.getpwuid(owner)
    return pwd.getpwnam("nobody")


def _configuration(server_url: URL, folder: Path, port: int, mode: str, settings: dict[str, str]) -> str:
    server = {"host": server_url.host or server_url.query.get("host"), "port": server_url.port or _port(server_url)}
    options = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256" if server_url.password else "trust",
        "auth_file": str(folder / "users.txt"),
        "pool_mode": mode,
        **settings,
    }
    return "\n".join(
        [
            "[databases]",
            "* = " + " ".join(f"{name}={value}" for name, value in server.items()),
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in options.items()),
            "",
        ]
    )


def _port(server_url: URL) -> object:
    return server_url.query.get("port", "5432")


def _is_listening(url: URL) -> bool:
    try:
        with psycopg.connect(host=url.host, port=url.port, user="nobody", dbname="pgbouncer", connect_timeout=5):
            return True
    except psycopg.OperationalError as error:
        return "refused" not in str(error)
