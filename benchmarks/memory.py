"""The peak memory of syncs, for accounts of two sizes: it must not grow with the account.

`make benchmark-memory`, on Linux, takes ten minutes, 6 GB of memory (5 of them the simulated Cliniko's) and 3 GB of
disk under TMPDIR. It brings its own database and a simulated Cliniko in a process of its own, and runs
`cliniko-pipeline sync` as an operator does. `python -m benchmarks.memory 1000 10000` measures other sizes.

A peak is the most resident memory a process ever had, as the kernel keeps it: VmHWM of the command and of the worker
that it starts, looked at until they end, and the ru_maxrss of both together, which misses nothing. 1 MB is 10^6 bytes.
"""

import argparse
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import sqlalchemy as sa
from rich.table import Table

from benchmarks.telling import CONSOLE, machine, say
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.postgres import organizations, schema
from cliniko_pipeline.postgres.sync_runs import OrganizationStatus, organization_status
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.sandbox import wire
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline.sandbox.queries import read_query
from cliniko_pipeline.sandbox.records import Record
from cliniko_pipeline.sandbox.resources import RESOURCES
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline.settings import load_settings

SIZES = (100_000, 1_000_000)
APPOINTMENTS_OF_A_PATIENT = 10
GROUP_SHARE = 0.1
CHANGED_EVERY_PAGES = 10
"""Of so many pages of appointments one record changes, and one vanishes, before the account is synced again."""

MOST_GROWTH = 1.2
MOST_MEGABYTES = 300

SECONDS_BETWEEN_LOOKS = 0.05
END_SECONDS = 60

_NOT_OURS = ("DATABASE_URL", "CREDENTIALS_ENCRYPTION_KEY", "DAGSTER_HOME", "CLINIKO_")
_SCRIPT = str(Path(sysconfig.get_path("scripts")) / "cliniko-pipeline")


@dataclass(frozen=True)
class Measurement:
    """What one sync took. Peaks in MB."""

    sync: str
    size: int
    requests: int
    seconds: float
    command_peak: float
    worker_peak: float


@dataclass(frozen=True)
class Served:
    """What the simulated Cliniko's process tells of itself, once it serves."""

    host: str
    api_url: str
    api_key: str
    patient_ids: list[str]


def main() -> int:
    """Measures and prints; the exit code is 1 where memory grows with the account, or is too much."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    parser = argparse.ArgumentParser(description="Peak memory of syncs of accounts of two sizes.")
    parser.add_argument(
        "sizes", metavar="APPOINTMENTS", type=int, nargs="*", default=SIZES, help="default: %(default)s"
    )
    sizes = sorted(parser.parse_args().sizes)
    if not Path("/proc/self/status").exists():
        CONSOLE.print("Peaks are read from /proc, which this system does not have.")
        return 1
    with tempfile.TemporaryDirectory(prefix="cliniko-memory-") as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        environ |= {"CLINIKO_PIPELINE_HOME": folder, "CLINIKO_REQUESTS_PER_MINUTE": "100000"}
        with open_runtime(load_settings(environ)) as runtime:
            schema.migrate(runtime.database, create_application_tables=True)
            measured = [one for size in sizes for one in measure(runtime, environ, size)]
            versions = _versions(runtime)
    return report(measured, versions)


def measure(runtime: Runtime, environ: dict[str, str], size: int) -> Generator[Measurement]:
    """All syncs of an account of one size."""
    say(f"{size:,} appointments: making the account")
    with simulated_cliniko(size) as (served, change):
        organization_id = f"clinic-{size}"
        _add(runtime, organization_id, served)
        environ = {**environ, "CLINIKO_ALLOWED_HOSTS": served.host}
        yield _measured(runtime, environ, organization_id, "first", size)
        change()
        yield _measured(runtime, environ, organization_id, "what changed", size)
        yield _measured(runtime, environ, organization_id, "full", size, "--full")


def report(measured: Sequence[Measurement], versions: str) -> int:
    """Prints the table and what is wrong, if anything; the exit code."""
    CONSOLE.print(versions, highlight=False)
    table = Table()
    table.add_column("sync")
    for heading in ("appointments", "requests", "seconds", "command's peak", "worker's peak"):
        table.add_column(heading, justify="right")
    for one in measured:
        table.add_row(
            one.sync,
            f"{one.size:,}",
            f"{one.requests:,}",
            f"{one.seconds:.0f}",
            f"{one.command_peak:.0f} MB",
            f"{one.worker_peak:.0f} MB",
        )
    CONSOLE.print(table)
    first = [one for one in measured if one.sync == "first"]
    growth = first[-1].worker_peak / first[0].worker_peak
    most = max(max(one.command_peak, one.worker_peak) for one in measured)
    CONSOLE.print(
        f"First sync, {first[-1].size:,} : {first[0].size:,} appointments: {growth:.2f} (at most {MOST_GROWTH})"
    )
    CONSOLE.print(f"Highest peak: {most:.0f} MB (less than {MOST_MEGABYTES})")
    return 1 if growth > MOST_GROWTH or most >= MOST_MEGABYTES else 0


def _measured(
    runtime: Runtime, environ: dict[str, str], organization_id: str, sync: str, size: int, *options: str
) -> Measurement:
    say(f"{size:,} appointments: {sync}")
    started = time.monotonic()
    command_peak, worker_peak = peaks_of([_SCRIPT, "sync", organization_id, *options], environ)
    seconds = time.monotonic() - started
    state = _state(runtime, organization_id)
    if state.status != "succeeded" or not state.active_patients:
        raise SystemExit(f"The sync is not what was to be measured: {state.status}, {state.active_patients} active.")
    return Measurement(sync, size, state.requests or 0, seconds, command_peak, worker_peak)


def peaks_of(command: Sequence[str], environ: dict[str, str]) -> tuple[float, float]:
    """Runs a command and returns its peak, and the highest of the processes it started, in MB."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 (ours, no shell)
            command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            peaks: dict[int, int] = {}
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            while not ended:
                for number in _family(process.pid):
                    peaks[number] = max(peaks.get(number, 0), _peak(number))
                time.sleep(SECONDS_BETWEEN_LOOKS)
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.terminate()
                process.wait(END_SECONDS)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"The sync failed:\n{output.read().decode(errors='replace')}")
    command_peak = peaks.pop(process.pid)
    # The kernel's own highest of all of them, also of what came between the last look and the end.
    return command_peak / 1e6, max(usage.ru_maxrss * 1024, *peaks.values()) / 1e6


def _family(number: int) -> list[int]:
    """The process, its children and theirs."""
    children: list[int] = []
    with suppress(OSError):
        for each in Path(f"/proc/{number}/task").glob("*/children"):
            children += [int(child) for child in each.read_text(encoding="ascii").split()]
    return [number, *(member for child in children for member in _family(child))]


def _peak(number: int) -> int:
    """The process's highest resident memory so far, in bytes; 0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@contextmanager
def simulated_cliniko(size: int) -> Generator[tuple[Served, Callable[[], None]]]:
    """An account of that size, served by a process of its own, and what makes it change a little."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, size), name="simulated Cliniko", daemon=True)
    process.start()
    theirs.close()
    try:
        served: Served = ours.recv()

        def change() -> None:
            ours.send("change")
            ours.recv()

        yield served, change
    finally:
        process.kill()  # it has nothing to put in order
        process.join()
        ours.close()


def _serve(connection: Connection, size: int) -> None:
    """The simulated Cliniko's process; ends when nobody is there to tell it what to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends it
    account = generated_account(size // APPOINTMENTS_OF_A_PATIENT, size, 1, datetime.now(UTC), GROUP_SHARE)
    # Millions of records that stay: looking through them again and again would only slow the answers down.
    gc.freeze()
    with running_sandbox([account]) as sandbox, suppress(EOFError, BrokenPipeError):
        patients = _first_of_pages(account, "patients", every=1, records=100)
        ids = [str(patient["id"]) for patient in patients]
        connection.send(Served(sandbox.host, sandbox.base_url(account), account.api_key, ids))
        while connection.recv():
            _change(account)
            connection.send("changed")


def _change(account: Account) -> None:
    """Cancels a few appointments, and deletes as many, spread over the whole list."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    resource = "individual_appointments"
    found = _first_of_pages(account, resource, every=CHANGED_EVERY_PAGES, records=2)
    for cancelled, vanishing in zip(found[::2], found[1::2], strict=False):
        account.put(resource, cancelled | {"cancelled_at": now, "updated_at": now})
        account.delete(resource, vanishing["id"])


def _first_of_pages(account: Account, resource: str, *, every: int, records: int) -> list[Record]:
    found: list[Record] = []
    number, total = 1, 1
    while (number - 1) * 100 < total:
        page = account.page(resource, read_query(RESOURCES[resource], {"page": str(number), "per_page": "100"}.items()))
        found += [wire.parse(body) for body in page.bodies[:records]]
        number, total = number + every, page.total_entries
    return found


def _add(runtime: Runtime, organization_id: str, served: Served) -> None:
    """The organization with its key, and a contact for each of its patients."""
    encrypted = runtime.vault.encrypt(ClinikoCredentials(served.api_key, None, served.api_url))
    with runtime.database.operator() as connection:
        organizations.save(connection, organization_id, organization_id, encrypted, validated=False)
        connection.execute(
            sa.text(
                "insert into public.contacts (organization_id, cliniko_patient_id, name)"
                " select :organization_id, id, 'Contact ' || id from unnest(cast(:ids as text[])) as id"
            ),
            {"organization_id": organization_id, "ids": served.patient_ids},
        )


def _state(runtime: Runtime, organization_id: str) -> OrganizationStatus:
    with runtime.database.organization(organization_id) as connection:
        return organization_status(connection)


def _versions(runtime: Runtime) -> str:
    with runtime.database.operator() as connection:
        return machine(connection.execute(sa.text("show server_version")).scalar_one(), "dagster", "psycopg")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
