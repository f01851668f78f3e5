# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnusedImport=false
"""dlt's `rest_api` source into PostgreSQL, merged by id; whatever is not named here is its default."""

from typing import Any
from urllib.parse import urlsplit

import dlt
import psycopg2  # noqa: F401 (so that its import, which dlt leaves until late, is not measured)
from dlt.destinations import postgres
from dlt.sources.rest_api import rest_api_source

from benchmarks.others.measuring import EVERYTHING, HEADERS, PAGE_SIZE, Stopwatch, Task

DATASET = "by_dlt"


def run(task: Task, watch: Stopwatch) -> None:
    """Measures."""
    source = rest_api_source(
        {
            "client": {
                "base_url": f"{task.api_url}/",
                "headers": HEADERS,
                "auth": {"type": "http_basic", "username": task.api_key, "password": ""},
                "paginator": {"type": "page_number", "base_page": 1, "page_param": "page", "total_path": None},
            },
            "resource_defaults": {"primary_key": "id", "write_disposition": "merge"},
            "resources": [_resource(each) for each in ("patients", "individual_appointments")],
        }
    )
    pipeline = dlt.pipeline(
        "benchmark",
        pipelines_dir=task.folder,
        destination=postgres(_credentials(task.database_url)),
        dataset_name=DATASET,
    )
    watch.start()
    pipeline.run(source).raise_on_failed_jobs()
    watch.stop()


def _resource(name: str) -> dict[str, Any]:
    parameters = {"per_page": PAGE_SIZE, "sort": "created_at", "q[]": list(EVERYTHING[name])}
    return {"name": name, "endpoint": {"path": name, "params": parameters, "data_selector": name}}


def _credentials(url: str) -> str:
    """With a host, on which dlt insists: libpq takes the one that the query names, a socket's folder."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.netloc}localhost").geturl() if parts.netloc.endswith("@") else url
