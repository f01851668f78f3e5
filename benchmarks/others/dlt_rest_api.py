# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnusedImport=false
"""Contender with dlt's `rest_api` source, which merges records into PostgreSQL by id, with dlt's defaults."""

from typing import Any
from urllib.parse import urlsplit

import dlt
import psycopg2  # noqa: F401 (imported here so that dlt's late import is not measured)
from dlt.destinations import postgres
from dlt.sources.rest_api import rest_api_source

from benchmarks.measuring import Stopwatch, Taken
from benchmarks.others.tasks import EVERYTHING, HEADERS, PAGE_SIZE, Task

DATASET = "by_dlt"


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
            "resources": [_resource(name) for name in ("patients", "individual_appointments")],
        }
    )
    pipeline = dlt.pipeline(
        "benchmark",
        pipelines_dir=task.folder,
        destination=postgres(_credentials(task.database_url)),
        dataset_name=DATASET,
    )
    watch = Stopwatch()
    watch.start()
    pipeline.run(source).raise_on_failed_jobs()
    watch.stop()
    return watch.taken()


def _resource(name: str) -> dict[str, Any]:
    parameters = {"per_page": PAGE_SIZE, "sort": "created_at,id", "q[]": list(EVERYTHING[name])}
    return {"name": name, "endpoint": {"path": name, "params": parameters, "data_selector": name}}


def _credentials(url: str) -> str:
    """Return the URL with a host, which dlt requires. libpq still uses the socket in the URL's query."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc}localhost").geturl() if parts.netloc.endswith("@") else url
