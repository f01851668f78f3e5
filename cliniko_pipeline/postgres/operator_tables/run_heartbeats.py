"""`cliniko.run_heartbeats`: when the process of each run was last heard of, by the database's clock.

The operator's own table: everything here runs in an operator's transaction (`Database.operator`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement

SILENCE = timedelta(minutes=2)
"""A run not heard of for longer is doubted: beats come every 15 seconds, and a process takes some to start."""

DOUBT = timedelta(seconds=45)
"""A doubted run that is not heard of for longer is lost. When a database comes back that was gone for long, all
beats are old, and the runs that are alive have this time for the next one."""


@dataclass(frozen=True)
class Heartbeat:
    """What is known of a run. `process` is as it was given; None: the run has not been heard of."""

    run_id: str
    process: str | None
    is_lost: bool


def beat(connection: Connection, run_id: str, process: str) -> None:
    """Note that the run is alive, in this process."""
    connection.execute(
        statement(
            "insert into cliniko.run_heartbeats (run_id, process) values (:run_id, :process)"
            " on conflict (run_id) do update"
            " set beat_at = clock_timestamp(), process = excluded.process, doubted_at = null"
        ),
        {"run_id": run_id, "process": process},
    )


def heartbeats(connection: Connection, run_ids: Sequence[str]) -> list[Heartbeat]:
    """Return what is known of these runs, which have not ended; from now on those never heard of are watched, too."""
    connection.execute(statement(sql("runs/doubt_runs")), {"run_ids": list(run_ids), "silence": SILENCE})
    rows = connection.execute(
        statement(
            "select run_id, process,"
            " coalesce(doubted_at < clock_timestamp() - cast(:doubt as interval), false) as is_lost"
            " from cliniko.run_heartbeats where run_id = any(:run_ids)"
        ),
        {"run_ids": list(run_ids), "doubt": DOUBT},
    )
    return [Heartbeat(**row) for row in rows.mappings()]


def end(connection: Connection, run_id: str) -> None:
    """Forget the run: it has ended, and Dagster knows."""
    connection.execute(statement("delete from cliniko.run_heartbeats where run_id = :run_id"), {"run_id": run_id})


def lose(connection: Connection, run_id: str) -> None:
    """Note that the run will not be heard of again, though its process goes on."""
    connection.execute(
        statement(
            "update cliniko.run_heartbeats set beat_at = '-infinity', doubted_at = '-infinity', process = null"
            " where run_id = :run_id"
        ),
        {"run_id": run_id},
    )


def silent_runs(connection: Connection) -> list[str]:
    """Return the runs that have not been heard of for a while; they may have ended."""
    rows = connection.execute(
        sa.text(
            "select run_id from cliniko.run_heartbeats where beat_at < clock_timestamp() - cast(:silence as interval)"
        ),
        {"silence": SILENCE},
    )
    return list(rows.scalars())
