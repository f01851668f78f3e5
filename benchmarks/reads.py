"""Benchmark of pages of active patients, in the database and over HTTP while syncs replace the rows.

It needs 1 GB of disk under TMPDIR. The database has two organizations, with 100,000 and 20,000 active patients.

First, the planning and execution of single pages is measured with `explain analyze`. There are first and later pages
for each order, direction and filter. Then many readers read pages over HTTP from a separate service process. At the
same time, the statement of the asset `active_patients` repeatedly replaces all rows, each time for a later instant. The
benchmark counts failed responses, and pages that mix rows of different syncs.
"""

import argparse
import itertools
import os
import random
import sysconfig
import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy import event

from benchmarks.fixtures.clinic_data import AS_OF, Clinic, replace_active_patients, replace_mapping
from benchmarks.fixtures.databases import Server, execute, libpq_url, running_server, vacuum
from benchmarks.fixtures.processes import free_port, is_listening, started, wait_until
from benchmarks.reporting import Benchmark, Report, Target, progress, table
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import api_tokens
from cliniko_pipeline.postgres.reads import active_patients
from cliniko_pipeline.postgres.reads.active_patients import Filters, Order, Place

OTHER_PATIENTS = 20_000
PAGE = 100
MIN_SYNCS = 3
MAX_EXTRA_SECONDS = 240
START_SECONDS = 60

MAX_MILLISECONDS = 20.0

ORGANIZATION, OTHER = "clinic", "another"
CREDENTIALS = """
insert into public.api_credentials (organization_id, service_name, credentials_encrypted)
values ('{}', 'cliniko', '{{}}')
"""
POSITIONS = (0.0, 0.3, 0.7, 0.999)
"""Positions of the measured pages, as shares of the list that precede the page."""

BENCHMARK = Benchmark(
    measures="pages of 100,000 active patients, for fifty readers while syncs replace them",
    duration="two minutes",
    targets=(f"any page in the database: at most {MAX_MILLISECONDS:g} ms", "no errors, no page with rows of two syncs"),
    needs_linux=False,
    options={
        "--patients": (100_000, "active patients"),
        "--readers": (50, "readers at the same time"),
        "--seconds": (60.0, "duration of the reading"),
    },
)

FILTERS: Mapping[str, Filters] = {
    "none": Filters(),
    "with upcoming": Filters(has_upcoming=True),
    "without upcoming": Filters(has_upcoming=False),
    "last within a day": Filters(last_from=AS_OF - timedelta(days=1)),
    "last more than 50 days ago": Filters(last_before=AS_OF - timedelta(days=50)),
    "last within a week, with upcoming": Filters(has_upcoming=True, last_from=AS_OF - timedelta(days=7)),
    "last in one hour": Filters(
        last_from=AS_OF - timedelta(days=20), last_before=AS_OF - timedelta(days=20) + timedelta(hours=1)
    ),
    "nobody": Filters(last_from=AS_OF + timedelta(days=1)),
}


@dataclass(frozen=True)
class PageTime:
    """The time to plan and execute one page, which `page` describes."""

    order: Order
    page: str
    milliseconds: float


@dataclass
class Seen:
    """The results of one reader. `instants` has the instant of every sync whose rows the reader got."""

    milliseconds: list[float] = field(default_factory=list[float])
    errors: int = 0
    mixed: int = 0
    instants: set[str] = field(default_factory=set[str])


def run(options: argparse.Namespace, report: Report) -> None:
    """Measure pages in the database and over HTTP, and report."""
    with running_server() as server, server.database() as database:
        for organization_id, count in (
            (ORGANIZATION, options.patients),
            (OTHER, min(OTHER_PATIENTS, options.patients)),
        ):
            progress(f"Making {count:,} active patients")
            # A few more patients are made, because some have no appointment that counts.
            patients = round(count * 1.03)
            clinic = Clinic(patients, 4 * patients, organization_id=organization_id, days_ago=59, days=62)
            execute(database, *clinic.statements(), CREDENTIALS.format(organization_id))
            replace_mapping(database, organization_id)
            replace_active_patients(database, organization_id, AS_OF)
        vacuum(database)
        pages = _measure_pages(database)
        seen, syncs = _measure_readers(server, database, options.readers, options.seconds)
        report.show_machine(server.version, "psycopg", "fastapi")
    rows: list[tuple[object, ...]] = []
    for order in Order:
        of_order = [page for page in pages if page.order is order]
        slowest = max(of_order, key=lambda page: page.milliseconds)
        middle = median(page.milliseconds for page in of_order)
        rows.append((order.value, len(of_order), middle, slowest.milliseconds, slowest.page))
    columns = [
        ("sorted by", "{}"),
        ("pages", "{}"),
        ("median", "{:.2f}"),
        ("slowest", "{:.2f}"),
        ("slowest page", "{}"),
    ]
    report.show(table(columns, rows, "Pages in the database, milliseconds"))
    milliseconds = [duration for reader in seen for duration in reader.milliseconds]
    instants = set[str]().union(*(reader.instants for reader in seen))
    cuts = quantiles(milliseconds, n=100)
    report.show(
        f"{options.readers} readers: {len(milliseconds):,} pages over HTTP, median {cuts[49]:.0f} ms, 95th percentile"
        f" {cuts[94]:.0f} ms, 99th {cuts[98]:.0f} ms; {syncs} syncs."
    )
    report.show_verdicts(
        [
            Target("Slowest page in the database, ms", max(page.milliseconds for page in pages), MAX_MILLISECONDS),
            Target("Errors", sum(reader.errors for reader in seen), 0),
            Target("Pages with rows of two syncs", sum(reader.mixed for reader in seen), 0),
            Target("Syncs whose rows were read", len(instants), 2, at_least=True),
        ]
    )


# Pages in the database.


def _measure_pages(database: Database) -> list[PageTime]:
    """Measure a page for each order, direction, filter and position."""
    progress("Measuring pages one by one")
    found: list[PageTime] = []
    with database.organization(ORGANIZATION) as connection:
        columns = sa.select(*map(sa.column, Order)).select_from(sa.table("active_patients", schema="public"))
        rows = connection.execute(columns).all()
    for order, descending, name in itertools.product(Order, (False, True), FILTERS):
        matching = [row for row in rows if _matches(row, FILTERS[name])]
        matching.sort(key=lambda row: (getattr(row, order), row.contact_id.bytes), reverse=descending)
        for share in POSITIONS:
            after = _place(matching[int(len(matching) * share)], order) if matching and share else None
            with database.organization(ORGANIZATION) as connection:
                milliseconds, count = _explain(connection, order, FILTERS[name], after, descending=descending)
            page = f"{name}, {'desc' if descending else 'asc'}, after {share:.1%}, {count} rows"
            found.append(PageTime(order, page, milliseconds))
    return found


def _matches(row: Any, filters: Filters) -> bool:
    last = row.last_appointment_date.replace(tzinfo=UTC)
    return (
        (filters.has_upcoming is None or filters.has_upcoming == (row.upcoming_appointment_count > 0))
        and (filters.last_from is None or last >= filters.last_from)
        and (filters.last_before is None or last < filters.last_before)
    )


def _place(row: Any, order: Order) -> Place:
    value = getattr(row, order)
    if order is Order.CONTACT:
        return Place(None, row.contact_id)
    return Place(value.replace(tzinfo=UTC) if isinstance(value, datetime) else value, row.contact_id)


def _explain(
    connection: sa.Connection, order: Order, filters: Filters, after: Place | None, *, descending: bool
) -> tuple[float, int]:
    """Return the milliseconds of planning and execution, and the number of rows."""

    def explain(_connection: object, _cursor: object, text: str, given: object, *_rest: object) -> tuple[str, object]:
        return f"explain (analyze, format json) {text}", given

    event.listen(connection, "before_cursor_execute", explain, retval=True)
    try:
        (row,) = active_patients.page(
            connection, order, descending=descending, filters=filters, after=after, limit=PAGE + 1
        )
    finally:
        event.remove(connection, "before_cursor_execute", explain)
    (plan,) = next(iter(row.values()))
    return plan["Planning Time"] + plan["Execution Time"], plan["Plan"]["Actual Rows"]


# Pages over HTTP.


def _measure_readers(server: Server, database: Database, readers: int, seconds: float) -> tuple[list[Seen], int]:
    """Return the results of each reader, and the number of finished syncs."""
    with _service(server, database) as (url, token):
        progress(f"{readers} readers for {seconds:.0f} s")
        ended = threading.Event()
        with ThreadPoolExecutor(readers + 1) as executor:
            try:
                reading = [executor.submit(_read, url, token, number, ended) for number in range(readers)]
                syncs = _sync_repeatedly(database, seconds)
            finally:
                ended.set()
            return [future.result() for future in reading], syncs


def _sync_repeatedly(database: Database, seconds: float) -> int:
    """Replace all rows until the time is over and MIN_SYNCS syncs have ended. Return the number of syncs."""
    begin, count = time.monotonic(), 0
    while (passed := time.monotonic() - begin) < seconds or (
        count < MIN_SYNCS and passed < seconds + MAX_EXTRA_SECONDS
    ):
        count += 1
        replace_active_patients(database, ORGANIZATION, AS_OF + timedelta(minutes=count))
    return count


def _read(url: str, token: str, number: int, ended: threading.Event) -> Seen:
    """Read pages in randomly chosen orders until the event is set."""
    chosen = random.Random(number)  # noqa: S311 (no secret)
    seen = Seen()
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60
    ) as client:
        while not ended.is_set():
            query = {
                "sort": chosen.choice(list(Order)).value,
                "order": chosen.choice(["asc", "desc"]),
                "limit": str(PAGE),
            }
            for _ in range(chosen.randint(1, 20)):
                begin = time.perf_counter()
                response = client.get(f"/v1/organizations/{ORGANIZATION}/active-patients", params=query)
                seen.milliseconds.append((time.perf_counter() - begin) * 1000)
                if not response.is_success:
                    seen.errors += 1
                    break
                page = response.json()
                instants = {row["search_date_to"] for row in page["items"]}
                seen.mixed += len(instants) > 1
                seen.instants |= instants
                if page["next_cursor"] is None or ended.is_set():
                    break
                query["cursor"] = page["next_cursor"]
    return seen


@contextmanager
def _service(server: Server, database: Database) -> Generator[tuple[str, str]]:
    """Run the HTTP service in a separate process. Yield its URL and a token."""
    with database.operator() as connection:
        token = api_tokens.create(
            connection,
            "readers",
            scopes=["read"],
            organizations=[ORGANIZATION],
            expires_at=None,
            requests_per_minute=100_000,
        )
    port = free_port()
    environ = os.environ | {
        "DATABASE_URL": libpq_url(database.url),
        "CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "CLINIKO_PIPELINE_HOME": str(server.home / "pipeline"),
    }
    script = Path(sysconfig.get_path("scripts")) / "cliniko-pipeline"
    with started([script, "api", "--port", str(port)], environ, server.home / "api.log"):
        wait_until(lambda: is_listening(port), START_SECONDS, "the HTTP service", 0.1)
        yield f"http://127.0.0.1:{port}", token.text
