"""Contender that is an obvious program, which reads page after page and stores row after row."""

from typing import Any

import psycopg
import requests

from benchmarks.measuring import Stopwatch, Taken
from benchmarks.others.floor_tables import ORGANIZATION, TABLES, make_tables, upsert
from benchmarks.others.tasks import EVERYTHING, HEADERS, PAGE_SIZE, Task
from benchmarks.others.transforming import transform

LINKS = {
    "merged_into_id": "merged_with_patient",
    "patient_id": "patient",
    "appointment_type_id": "appointment_type",
    "practitioner_id": "practitioner",
}
"""The fields that link a record to another record, by column."""


def run(task: Task) -> Taken:
    """Measure the plain loop."""
    make_tables(task)
    watch = Stopwatch()
    with psycopg.connect(task.database_url) as connection, requests.Session() as session:
        session.auth = (task.api_key, "")
        session.headers.update(HEADERS)
        watch.start()
        for resource in TABLES:
            _sync(task, session, connection, resource)
        transform(task)
        watch.stop()
    return watch.taken()


def _sync(task: Task, session: requests.Session, connection: psycopg.Connection, resource: str) -> None:
    columns = TABLES[resource].written
    statement = upsert(resource, f"values ({', '.join(['%s'] * (1 + len(columns)))})")
    page = 1
    while True:
        response = session.get(
            f"{task.api_url}/{resource}",
            params={"page": page, "per_page": PAGE_SIZE, "sort": "created_at,id", "q[]": EVERYTHING[resource]},
        )
        response.raise_for_status()
        found = response.json()
        for record in found[resource]:
            connection.execute(statement, (ORGANIZATION, *(_value(record, column) for column in columns)))
        connection.commit()
        if "next" not in found["links"]:
            return
        page += 1


def _value(record: Any, column: str) -> Any:
    if column == "kind":
        return "individual"
    if column in LINKS:
        link = record.get(LINKS[column])
        return link["links"]["self"].rpartition("/")[2] if link else None
    value = record["display_name"] if column == "name" and "display_name" in record else record[column]
    return None if value == "" else value
