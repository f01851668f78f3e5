"""Embedded servers under test, with checks of their processes and their end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.server import embedded, programs
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline_tests.support.waiting import wait_until

# The path is too long for a socket, so the socket is in the temporary folder.
UNUSUAL_NAME = 'it\'s "so", $HOME `id` \\x %d;# = & ?/gr\xf6\xdfe \u540d\u524d \U0001f600/' + "deep/" * 30 + "end"


def statement(url: URL, text: str) -> object:
    """Execute a statement. Return the first value of its result, if there is a result."""
    database = Database(url)
    try:
        with database.operator() as connection:
            result = connection.execute(sa.text(text))
            return result.scalar() if result.returns_rows else None
    finally:
        database.close()


def answers(url: URL) -> bool:
    try:
        return statement(url, "select current_database()") == embedded.DATABASE
    except DatabaseUnavailableError:
        return False


def process_file(root: Path) -> Path:
    return root / "data" / "postmaster.pid"


def postmaster(root: Path) -> int:
    return int(process_file(root).read_text().split("\n")[0])


def is_alive(pid: int) -> bool:
    """Return whether the process runs."""
    return bool(programs.command_of(pid))


@contextmanager
def used(root: Path) -> Iterator[EmbeddedServer]:
    """Run a server while the block runs. Assert that it answers, and that its processes end after the block."""
    with EmbeddedServer(root) as server:
        assert answers(server.url)
        pid = postmaster(root)
        yield server
    wait_until(lambda: not is_alive(pid), "the server still runs")
    assert not process_file(root).exists()
