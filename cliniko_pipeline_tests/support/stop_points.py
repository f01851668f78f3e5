"""Points inside PostgreSQL at which a session stops, so that a test can kill its process there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import URL

LOCK = 47_110_815
Event = Literal["writes", "commits"]

FUNCTIONS = """
create schema stop_points;
create table stop_points.chosen (event text, number bigint);
create sequence stop_points.writes;
create sequence stop_points.commits;
create function stop_points.stop() returns trigger language plpgsql security definer as $$
begin
    if exists (
        select from stop_points.chosen where event = tg_argv[0] and number = nextval('stop_points.' || tg_argv[0])
    ) then
        perform pg_advisory_xact_lock({lock});
    end if;
    return null;
end $$;
create function stop_points.stop_definition() returns event_trigger language plpgsql as $$
begin
    if exists (select from stop_points.chosen where event = 'definitions') then
        perform pg_advisory_xact_lock({lock});
    end if;
end $$;
"""


class StopPoints:
    """Triggers that stop the session of the nth write or commit until the end of a block.

    If the process is killed, a stopped write is rolled back, but a stopped commit is completed.
    """

    def __init__(self, url: URL, tables: tuple[str, ...]) -> None:
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self._execute(FUNCTIONS.format(lock=LOCK))
        for table in tables:
            self._execute(
                f"create trigger stop_at_write after insert or update or delete on {table}"
                " for each statement execute function stop_points.stop('writes')"
            )
            self._execute(
                f"create constraint trigger stop_at_commit after insert or update or delete on {table}"
                " deferrable initially deferred for each row execute function stop_points.stop('commits')"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()
        self._engine.dispose()

    def stop_at_definitions(self, tag: str) -> None:
        """Stop at the end of commands such as CREATE INDEX. This needs a superuser."""
        self._execute(
            f"create event trigger stop_at_definition on ddl_command_end when tag in ('{tag}')"
            " execute function stop_points.stop_definition()"
        )

    @contextmanager
    def at(self, event: Event | Literal["definitions"], number: int = 1) -> Iterator[Callable[[], bool]]:
        """Stop at the nth event from now. Yield a function that returns whether a session has stopped there."""
        self._execute(f"select pg_advisory_lock({LOCK})")
        self._execute("select setval('stop_points.writes', 1, false), setval('stop_points.commits', 1, false)")
        self._execute(f"insert into stop_points.chosen values ('{event}', {number})")
        try:
            yield self._is_reached
        finally:
            self._execute("delete from stop_points.chosen")
            self._execute(f"select pg_advisory_unlock({LOCK})")

    def _is_reached(self) -> bool:
        statement = (
            "select exists (select from pg_locks join pg_database on pg_database.oid = pg_locks.database"
            f" where datname = current_database() and locktype = 'advisory' and objid = {LOCK} and not granted)"
        )
        return self._connection.exec_driver_sql(statement).scalar_one()

    def _execute(self, statement: str) -> None:
        self._connection.exec_driver_sql(statement)
