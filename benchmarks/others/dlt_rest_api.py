# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnusedImport=false
"""Contender with dlt's `rest_api` source and defaults, which merges by id, and with SQL on dlt's tables."""

from typing import Any
from urllib.parse import urlsplit

import dlt
import psycopg
import psycopg2  # noqa: F401 (imported here so that dlt's late import is not measured)
from dlt.destinations import postgres
from dlt.sources.rest_api import rest_api_source

from benchmarks.measuring import Stopwatch, Taken
from benchmarks.others.floor_tables import RESULTS, SCHEMA, make_tables
from benchmarks.others.tasks import EVERYTHING, HEADERS, LARGEST, PAGE_SIZE, Task
from benchmarks.others.transforming import transform

DATASET = "by_dlt"
# Without these hints, dlt makes no column if all its values are null.
DATES = ("archived_at", "deleted_at", "cancelled_at", "ends_at")
COLUMNS = {name: {"data_type": "timestamp", "nullable": True} for name in DATES}

VIEWS = (
    "create view {schema}.appointment_types as select id, name from {dataset}.appointment_types",
    "create view {schema}.practitioners as select id, display_name as name from {dataset}.practitioners",
    """
    create view {schema}.patients as
    select id, first_name, last_name, email, archived_at, deleted_at from {dataset}.patients
    """,
    """
    create view {schema}.appointments as
    select
        id, starts_at, ends_at, cancelled_at, archived_at, deleted_at, did_not_arrive,
        substring(patient__links__self from '[0-9]+$') as patient_id,
        substring(practitioner__links__self from '[0-9]+$') as practitioner_id,
        substring(appointment_type__links__self from '[0-9]+$') as appointment_type_id
    from {dataset}.individual_appointments
    """,
)


def run(task: Task) -> Taken:
    """Measure dlt."""
    source = rest_api_source(
        {
            "client": {
                "base_url": f"{task.api_url}/",
                "headers": HEADERS,
                "auth": {"type": "http_basic", "username": task.api_key, "password": ""},
                "paginator": {"type": "page_number", "base_page": 1, "page_param": "page", "total_path": None},
            },
            "resource_defaults": {"primary_key": "id", "write_disposition": "merge"},
            "resources": [_resource(name) for name in EVERYTHING],
        }
    )
    pipeline = dlt.pipeline(
        "benchmark",
        pipelines_dir=task.folder,
        destination=postgres(_credentials(task.database_url)),
        dataset_name=DATASET,
    )
    make_tables(task, *RESULTS)
    watch = Stopwatch()
    watch.start()
    pipeline.run(source).raise_on_failed_jobs()
    with psycopg.connect(task.database_url) as connection:
        for view in VIEWS:
            connection.execute(view.format(schema=SCHEMA, dataset=DATASET).encode())
    transform(task)
    watch.stop()
    return watch.taken()


def _resource(name: str) -> dict[str, Any]:
    parameters = {"per_page": PAGE_SIZE, "sort": "created_at,id", "q[]": list(EVERYTHING[name])}
    endpoint = {"path": name, "params": parameters, "data_selector": name}
    return {"name": name, "endpoint": endpoint, "columns": COLUMNS if name in ("patients", LARGEST) else {}}


def _credentials(url: str) -> str:
    """Return the URL with a host, which dlt requires. libpq still uses the socket in the URL's query."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc}localhost").geturl() if parts.netloc.endswith("@") else url
