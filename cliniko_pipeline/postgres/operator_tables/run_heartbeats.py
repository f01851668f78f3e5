"""`cliniko.run_heartbeats`: the last heartbeat of each run, by the database's clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql, statement

SILENCE = timedelta(seconds=45)
"""A run without a heartbeat for this time becomes doubtful. Its process sends one every 15 s."""

DOUBT = timedelta(seconds=30)
"""A run that is doubtful for this time is lost. After an outage of the database all heartbeats are old, and running
runs have this time to send the next heartbeat.

Together with the ticks of the sensor `lost_runs`, a run that was killed anywhere is ended within two minutes.
"""


@dataclass(frozen=True)
class Heartbeat:
    """The liveness of a run. `process` identifies its process, or is None before the first heartbeat."""

    run_id: str
    process: str | None
    is_lost: bool


def note_heartbeat(connection: Connection, run_id: str, process: str) -> None:
    """Store a heartbeat of the run, which `process` executes."""
    connection.execute(
        statement(
            "insert into cliniko.run_heartbeats (run_id, process) values (:run_id, :process)"
            " on conflict (run_id) do update"
            " set beat_at = clock_timestamp(), process = excluded.process, doubted_at = null"
        ),
        {"run_id": run_id, "process": process},
    )


def heartbeats(connection: Connection, run_ids: Sequence[str]) -> list[Heartbeat]:
    """Return the heartbeats of these unfinished runs. Runs without a heartbeat get an entry now."""
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


def delete_heartbeat(connection: Connection, run_id: str) -> None:
    """Delete the heartbeat of a run that has ended in Dagster."""
    connection.execute(statement("delete from cliniko.run_heartbeats where run_id = :run_id"), {"run_id": run_id})


def mark_lost(connection: Connection, run_id: str) -> None:
    """Mark the run as lost, even if its process still runs."""
    connection.execute(
        statement(
            "update cliniko.run_heartbeats set beat_at = '-infinity', doubted_at = '-infinity', process = null"
            " where run_id = :run_id"
        ),
        {"run_id": run_id},
    )


def silent_runs(connection: Connection) -> list[str]:
    """Return the runs without a recent heartbeat, including ended runs."""
    rows = connection.execute(
        sa.text(
            "select run_id from cliniko.run_heartbeats where beat_at < clock_timestamp() - cast(:silence as interval)"
        ),
        {"silence": SILENCE},
    )
    return list(rows.scalars())
