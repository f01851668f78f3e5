"""Pages of active patients, read by many while syncs replace them: what each takes in the database, what readers see.

`make benchmark-reads` takes two minutes and 1 GB of disk under TMPDIR. It brings its own database, with an
organization of 100,000 active patients beside one of 20,000, and the HTTP service in a process of its own.

Measured are, of every order, direction and filter, the first page and pages further on: planning and execution, as
PostgreSQL itself tells them (`explain analyze`), which is more than without being asked. Then fifty readers walk
through pages over HTTP, while the statement of the asset `active_patients` replaces all rows again and again, judged by
an instant that moves on. Counted are answers that are no 200, and pages with rows of more than one sync.
"""

import argparse
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import sqlalchemy as sa
from cryptography.fernet import Fernet
from rich.table import Table
from sqlalchemy import event

from benchmarks.telling import CONSOLE, load, machine, say
from cliniko_pipeline.postgres import active_patients, api_tokens, derivations, schema
from cliniko_pipeline.postgres.active_patients import Filters, Order, Place
from cliniko_pipeline.postgres.derivations import Derivation
from cliniko_pipeline.postgres.embedded import EmbeddedServer
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.tables import (
    ACTIVE_PATIENTS,
    APPOINTMENTS,
    ATTENDEES,
    CONTACT_MAPPING,
    CURRENT_ATTENDANCES,
)
from cliniko_pipeline.postgres.tables import PATIENTS as PATIENTS_TABLE

PATIENTS = 100_000
OTHERS = 20_000
READERS = 50
SECONDS = 60
PAGE = 100
FEWEST_SYNCS = 3
MOST_MORE_SECONDS = 240

MOST_MILLISECONDS = 20.0

ORGANIZATION, OTHER = "clinic", "another"
AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)

# Everybody came three to seven times within the last 59 days, a third comes again; before that, up to five times.
SEED = """
select setseed(0.5);

insert into cliniko.patients (organization_id, id, first_name, last_name, created_at, updated_at)
select :organization_id, n::text, 'First' || n, 'Last', timestamptz '2023-06-01', timestamptz '2026-01-01'
from generate_series(1, :patients) as n;

insert into cliniko.contact_mapping (organization_id, patient_id, contact_id, status, method)
select :organization_id, n::text, md5(:organization_id || n)::uuid, 'matched', 'cliniko_patient_id'
from generate_series(1, :patients) as n;

insert into cliniko.appointment_types (organization_id, id, name, created_at, updated_at)
values (:organization_id, '1', 'Consultation', timestamptz '2023-06-01', timestamptz '2023-06-01');

insert into cliniko.practitioners (organization_id, id, name, created_at, updated_at)
values (:organization_id, '1', 'Practitioner 1', timestamptz '2023-06-01', timestamptz '2023-06-01');

insert into cliniko.appointments
    (organization_id, kind, id, patient_id, appointment_type_id, practitioner_id, starts_at, ends_at, did_not_arrive,
    created_at, updated_at)
select :organization_id, 'individual', (n * 20 + visit)::text, n::text, '1', '1', starts_at,
    starts_at + interval '30 minutes', false, timestamptz '2026-01-01', timestamptz '2026-01-01'
from (
    select n, visit,
        cast(:as_of as timestamptz) + case
            when visit <= 3 + n % 5 then - interval '1 minute' * floor(random() * 84000)
            when visit = 9 then interval '1 minute' * floor(random() * 40000)
            else - interval '70 days' - interval '1 minute' * floor(random() * 400000)
        end as starts_at
    from generate_series(1, :patients) as n
    cross join generate_series(1, 14) as visit
    where visit <= 3 + n % 5 or (visit = 9 and n % 3 = 0) or (visit > 9 and n % 7 > visit - 9)
) as visits
"""

CONTACTS = """
insert into public.contacts (id, organization_id, cliniko_patient_id, name)
select md5(:organization_id || n)::uuid, :organization_id, n::text, 'First' || n || ' Last'
from generate_series(1, :patients) as n
"""

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
PLACES = (0.0, 0.3, 0.7, 0.999)


@dataclass(frozen=True)
class PageTime:
    """What a page took in the database, in milliseconds, and what it was of."""

    order: Order
    descending: bool
    filters: str
    place: float
    rows: int
    milliseconds: float


@dataclass(frozen=True)
class Seen:
    """What readers met."""

    milliseconds: Sequence[float]
    errors: int
    mixed: int
    syncs: int
    instants: int


def main() -> int:
    """Measures and prints; the exit code is 1 where a target is not met."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    parser = argparse.ArgumentParser(description="Pages of active patients, read while syncs replace them.")
    parser.add_argument("--patients", type=int, default=PATIENTS, help="default: %(default)s")
    parser.add_argument("--readers", type=int, default=READERS, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="default: %(default)s")
    options = parser.parse_args()
    with prepared(options.patients) as (database, folder):
        CONSOLE.print(_versions(database), highlight=False)
        CONSOLE.print(f"Load of the machine (1, 5 and 15 minutes): {load()} at the beginning", highlight=False)
        pages = measured_pages(database)
        seen = measured_readers(database, folder, options.readers, options.seconds)
        CONSOLE.print(f"{load()} at the end", highlight=False)
    return report(pages, seen, options.readers)


@contextmanager
def prepared(patients: int) -> Generator[tuple[Database, Path]]:
    """A database with both organizations, as first syncs have left them."""
    with tempfile.TemporaryDirectory(prefix="cliniko-reads-") as name:
        folder = Path(name)
        with EmbeddedServer(folder / "postgres") as server:
            database = Database(server.url)
            schema.migrate(database, create_application_tables=True)
            for organization_id, count in ((ORGANIZATION, patients), (OTHER, min(OTHERS, patients))):
                say(f"{count:,} active patients")
                values: dict[str, Any] = {"organization_id": organization_id, "patients": count, "as_of": AS_OF}
                with database.operator() as connection:
                    _run(connection, CONTACTS, values)
                    connection.execute(
                        sa.text(
                            "insert into public.api_credentials (organization_id, service_name, credentials_encrypted)"
                            " values (:id, 'cliniko', '{}')"
                        ),
                        {"id": organization_id},
                    )
                with database.organization(organization_id) as connection:
                    for text in SEED.split(";"):
                        _run(connection, text, values)
                synced(database, organization_id, AS_OF)
            with database.operator_statement() as connection:
                # As the server does by itself, some time later.
                connection.execute(sa.text("vacuum analyze"))
            yield database, folder
            database.close()


def _run(connection: sa.Connection, text: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.text(text), {key: values[key] for key in values if f":{key}" in text})


def synced(database: Database, organization_id: str, as_of: datetime) -> int:
    """Replaces the organization's active patients as the asset does; returns how many rows changed."""
    parameters = {"as_of": as_of, "activity_window": timedelta(days=60), "count_no_shows": True}
    inputs = (PATIENTS_TABLE, APPOINTMENTS, ATTENDEES, CONTACT_MAPPING)
    derivation = Derivation(ACTIVE_PATIENTS, sql("active_patients"), inputs, parameters, CURRENT_ATTENDANCES)
    with database.organization(organization_id) as connection:
        written, _ = derivations.write(connection, derivation, anew=True)
    return written.inserted + written.updated + written.deleted


def measured_pages(database: Database) -> list[PageTime]:
    """The first page and pages further on, of every order, direction and filter."""
    say("Pages, one by one")
    found: list[PageTime] = []
    with database.organization(ORGANIZATION) as connection:
        columns = sa.select(*map(sa.column, Order)).select_from(sa.table("active_patients", schema="public"))
        rows = connection.execute(columns).all()
    for order, descending, name in itertools.product(Order, (False, True), FILTERS):
        wanted = [row for row in rows if _is_wanted(row, FILTERS[name])]
        wanted.sort(key=lambda row: (getattr(row, order), row.contact_id.bytes), reverse=descending)
        for share in PLACES:
            after = _place(wanted[int(len(wanted) * share)], order) if wanted and share else None
            with database.organization(ORGANIZATION) as connection:
                milliseconds, count = _explained(connection, order, FILTERS[name], after, descending=descending)
            found.append(PageTime(order, descending, name, share, count, milliseconds))
    return found


def _is_wanted(row: Any, filters: Filters) -> bool:
    last = row.last_appointment_date.replace(tzinfo=UTC)
    return (
        (filters.has_upcoming is None or filters.has_upcoming == (row.upcoming_appointment_count > 0))
        and (filters.last_from is None or last >= filters.last_from)
        and (filters.last_before is None or last < filters.last_before)
    )


def _place(row: Any, order: Order) -> Place:
    """Where a page ends with this row."""
    value = getattr(row, order)
    if order is Order.CONTACT:
        return Place(None, row.contact_id)
    return Place(value.replace(tzinfo=UTC) if isinstance(value, datetime) else value, row.contact_id)


def _explained(
    connection: sa.Connection, order: Order, filters: Filters, after: Place | None, *, descending: bool
) -> tuple[float, int]:
    """Milliseconds of planning and execution, and how many rows the page has."""

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


def measured_readers(database: Database, folder: Path, readers: int, seconds: float) -> Seen:
    """What so many readers meet over HTTP while syncs go on."""
    with _service(database, folder) as (url, token):
        say(f"{readers} readers for {seconds:.0f} s")
        syncs = _Syncs(database, time.monotonic() + seconds)
        thread = threading.Thread(target=syncs.go_on)
        thread.start()
        try:
            with ThreadPoolExecutor(readers) as executor:
                reading = [executor.submit(_read, url, token, number, syncs) for number in range(readers)]
                seen = [each.result() for each in reading]
        finally:
            syncs.is_over.set()
            thread.join()
        if syncs.error is not None:
            raise syncs.error
    return Seen(
        milliseconds=[each for one in seen for each in one.milliseconds],
        errors=sum(one.errors for one in seen),
        mixed=sum(one.mixed for one in seen),
        syncs=syncs.count,
        instants=len(set[str]().union(*(one.instants for one in seen))),
    )


class _Syncs:
    """Replaces all rows, again and again."""

    def __init__(self, database: Database, until: float) -> None:
        self._database = database
        self._until = until
        self.is_over = threading.Event()
        self.count = 0
        self.error: Exception | None = None

    @property
    def are_enough(self) -> bool:
        """Whether the time is over and enough of them have ended, or will not end at all."""
        late = time.monotonic() - self._until
        return self.error is not None or late > MOST_MORE_SECONDS or (late > 0 and self.count > FEWEST_SYNCS)

    def go_on(self) -> None:
        try:
            while not self.is_over.is_set():
                self.count += 1
                synced(self._database, ORGANIZATION, AS_OF + timedelta(minutes=self.count))
        except Exception as error:  # noqa: BLE001 (told by whoever waits for it)
            self.error = error


@dataclass
class _Reader:
    milliseconds: list[float]
    errors: int
    mixed: int
    instants: set[str]


def _read(url: str, token: str, number: int, syncs: _Syncs) -> _Reader:
    """Walks through pages of one order after the other."""
    chosen = random.Random(number)  # noqa: S311 (no secret)
    found = _Reader([], 0, 0, set())
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60
    ) as client:
        while not syncs.are_enough:
            query: dict[str, str] = {
                "sort": chosen.choice(list(Order)).value,
                "order": chosen.choice(["asc", "desc"]),
                "limit": str(PAGE),
            }
            for _ in range(chosen.randint(1, 20)):
                begun = time.perf_counter()
                answer = client.get(f"/v1/organizations/{ORGANIZATION}/active-patients", params=query)
                found.milliseconds.append((time.perf_counter() - begun) * 1000)
                if not answer.is_success:
                    found.errors += 1
                    break
                page = answer.json()
                instants = {row["search_date_to"] for row in page["items"]}
                found.mixed += len(instants) > 1
                found.instants |= instants
                if page["next_cursor"] is None or syncs.are_enough:
                    break
                query["cursor"] = page["next_cursor"]
    return found


@contextmanager
def _service(database: Database, folder: Path) -> Generator[tuple[str, str]]:
    """The service in a process of its own, and a token for it."""
    with database.operator() as connection:
        token = api_tokens.create(
            connection,
            "readers",
            scopes=["read"],
            organizations=[ORGANIZATION],
            expires_at=None,
            requests_per_minute=100_000,
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = os.environ | {
        "DATABASE_URL": database.url.set(drivername="postgresql").render_as_string(hide_password=False),
        "CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "CLINIKO_PIPELINE_HOME": str(folder / "home"),
    }
    script = Path(sysconfig.get_path("scripts")) / "cliniko-pipeline"
    with subprocess.Popen(  # noqa: S603 (ours, no shell)
        [script, "api", "--port", str(port)], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url)
            yield url, token.text
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(f"{url}/healthz", trust_env=False).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("The service does not answer.")


def report(pages: Sequence[PageTime], seen: Seen, readers: int) -> int:
    """Prints the tables and whether the targets are met; the exit code."""
    table = Table(title="Pages in the database, milliseconds", title_justify="left")
    for heading in ("sorted by", "pages", "median", "slowest", "which"):
        table.add_column(heading, justify="left" if heading in {"sorted by", "which"} else "right")
    for order in Order:
        of_order = [each for each in pages if each.order is order]
        slowest = max(of_order, key=lambda each: each.milliseconds)
        direction = "desc" if slowest.descending else "asc"
        table.add_row(
            order.value,
            str(len(of_order)),
            f"{median(each.milliseconds for each in of_order):.2f}",
            f"{slowest.milliseconds:.2f}",
            f"{slowest.filters}, {direction}, after {slowest.place:.1%}, {slowest.rows} rows",
        )
    CONSOLE.print(table)
    cuts = quantiles(seen.milliseconds, n=100)
    CONSOLE.print(
        f"{readers} readers: {len(seen.milliseconds):,} pages over HTTP, median {cuts[49]:.0f} ms, 95th percentile"
        f" {cuts[94]:.0f} ms, 99th {cuts[98]:.0f} ms; meanwhile {seen.syncs} syncs, {seen.instants} of them seen.",
        highlight=False,
    )
    targets = [
        ("Slowest page in the database, ms", max(each.milliseconds for each in pages), MOST_MILLISECONDS),
        ("Errors", seen.errors, 0),
        ("Pages with rows of two syncs", seen.mixed, 0),
    ]
    for name, found, most in targets:
        CONSOLE.print(f"{name}: {found:.4g} (at most {most:g}): {'met' if found <= most else 'NOT MET'}")
    if seen.instants < 2:
        CONSOLE.print("No sync ended while they read: NOT MEASURED; give it more --seconds.")
    return 1 if seen.instants < 2 or any(found > most for _, found, most in targets) else 0


def _versions(database: Database) -> str:
    with database.operator() as connection:
        return machine(connection.execute(sa.text("show server_version")).scalar_one(), "psycopg", "fastapi")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
