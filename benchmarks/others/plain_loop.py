"""What people write first: one page after the other, one statement a row."""

from collections.abc import Callable
from typing import Any

import psycopg
import requests

from benchmarks.others.floor_tables import ORGANIZATION, TABLES, make_tables, upsert
from benchmarks.others.measuring import EVERYTHING, HEADERS, PAGE_SIZE, Stopwatch, Task


def run(task: Task, watch: Stopwatch) -> None:
    """Measures."""
    make_tables(task)
    with psycopg.connect(task.database_url) as connection, requests.Session() as session:
        session.auth = (task.api_key, "")
        session.headers.update(HEADERS)
        watch.start()
        for resource, row in (("patients", _patient), ("individual_appointments", _appointment)):
            _sync(task, session, connection, resource, row)
        watch.stop()


def _sync(
    task: Task,
    session: requests.Session,
    connection: psycopg.Connection,
    resource: str,
    row: Callable[[Any], tuple[Any, ...]],
) -> None:
    statement = upsert(resource, f"values ({', '.join(['%s'] * (1 + len(TABLES[resource].written)))})")
    page = 1
    while True:
        answer = session.get(
            f"{task.api_url}/{resource}",
            params={"page": page, "per_page": PAGE_SIZE, "sort": "created_at", "q[]": EVERYTHING[resource]},
        )
        answer.raise_for_status()
        found = answer.json()
        for record in found[resource]:
            connection.execute(statement, (ORGANIZATION, *row(record)))
        connection.commit()
        if "next" not in found["links"]:
            return
        page += 1


def _patient(record: Any) -> tuple[Any, ...]:
    return (
        record["id"],
        record["first_name"],
        record["last_name"],
        record["email"] or None,
        record["archived_at"] or None,
        record["deleted_at"] or None,
        record["merged_at"] or None,
        _id(record.get("merged_with_patient")),
        record["created_at"],
        record["updated_at"],
    )


def _appointment(record: Any) -> tuple[Any, ...]:
    return (
        "individual",
        record["id"],
        _id(record["patient"]),
        _id(record["appointment_type"]),
        _id(record["practitioner"]),
        record["starts_at"],
        record["ends_at"] or None,
        record["cancelled_at"] or None,
        record["archived_at"] or None,
        record["deleted_at"] or None,
        record["did_not_arrive"],
        record["created_at"],
        record["updated_at"],
    )


def _id(link: Any) -> str | None:
    return link["links"]["self"].rpartition("/")[2] if link else None
