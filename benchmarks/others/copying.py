"""The floor's way from pages to tables.

Only the needed fields are decoded. Their text goes by COPY into a temporary table, and one statement a resource stores
it. Nothing is checked.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import msgspec
import psycopg

from benchmarks.others.floor_tables import ORGANIZATION, SCHEMA, TABLES, upsert
from benchmarks.others.tasks import Task


class _Target(msgspec.Struct, gc=False):
    self: str


class _Link(msgspec.Struct, gc=False):
    links: _Target


class _Record(msgspec.Struct, gc=False):
    id: str
    created_at: str
    updated_at: str


class _Patient(_Record, gc=False):
    first_name: str | None = None
    last_name: str | None = None
    email: str | None = None
    archived_at: str | None = None
    deleted_at: str | None = None
    merged_at: str | None = None
    merged_with_patient: _Link | None = None


class _Appointment(_Record, gc=False):
    starts_at: str
    patient: _Link
    appointment_type: _Link
    practitioner: _Link
    did_not_arrive: bool
    ends_at: str | None = None
    cancelled_at: str | None = None
    archived_at: str | None = None
    deleted_at: str | None = None


class _Patients(msgspec.Struct, gc=False):
    patients: list[_Patient]


class _Appointments(msgspec.Struct, gc=False):
    individual_appointments: list[_Appointment]


_NULL = "\\N"
_decode_patients = msgspec.json.Decoder(_Patients).decode
_decode_appointments = msgspec.json.Decoder(_Appointments).decode


def _text(value: str | None) -> str:
    if not value:
        return _NULL
    if "\\" in value or not value.isprintable():
        value = value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return value


def _id(link: _Link | None) -> str:
    return _NULL if link is None else link.links.self.rpartition("/")[2]


def _patient_lines(body: bytes) -> str:
    return "".join(
        [
            f"{one.id}\t{_text(one.first_name)}\t{_text(one.last_name)}\t{_text(one.email)}"
            f"\t{one.archived_at or _NULL}\t{one.deleted_at or _NULL}\t{one.merged_at or _NULL}"
            f"\t{_id(one.merged_with_patient)}\t{one.created_at}\t{one.updated_at}\n"
            for one in _decode_patients(body).patients
        ]
    )


def _appointment_lines(body: bytes) -> str:
    return "".join(
        [
            f"individual\t{one.id}\t{_id(one.patient)}\t{_id(one.appointment_type)}\t{_id(one.practitioner)}"
            f"\t{one.starts_at}\t{one.ends_at or _NULL}\t{one.cancelled_at or _NULL}\t{one.archived_at or _NULL}"
            f"\t{one.deleted_at or _NULL}\t{one.did_not_arrive}\t{one.created_at}\t{one.updated_at}\n"
            for one in _decode_appointments(body).individual_appointments
        ]
    )


_LINES: dict[str, Callable[[bytes], str]] = {
    "patients": _patient_lines,
    "individual_appointments": _appointment_lines,
}


class _Staging:
    """A resource's temporary table, on a connection of its own."""

    def __init__(self, resource: str, pages: int, connection: psycopg.Connection) -> None:
        self._table = TABLES[resource]
        self._columns = ", ".join(self._table.written)
        self._resource = resource
        self._connection = connection
        self._left = pages
        self._open = ExitStack()
        self._copy: psycopg.Copy | None = None

    def take(self, body: bytes) -> bool:
        """Copy a page; return whether it was the last."""
        if self._copy is None:
            staging = f"select {self._columns} from {SCHEMA}.{self._table.name} with no data"  # noqa: S608 (our names)
            self._connection.execute(f"create temporary table staging on commit drop as {staging}".encode())
            self._copy = self._open.enter_context(self._connection.cursor().copy("copy staging from stdin"))
        self._copy.write(_LINES[self._resource](body).encode())
        self._left -= 1
        return not self._left

    def store(self) -> None:
        """Store all rows in one statement."""
        self._open.close()
        source = f"select '{ORGANIZATION}', {self._columns} from staging"  # noqa: S608 (our names)
        self._connection.execute(upsert(self._resource, f"{source} order by {', '.join(self._table.key)}"))
        self._connection.commit()


class Copying:
    """Copies pages in any order, from one thread; a resource's last page begins the statement that stores it."""

    def __init__(self, stagings: Mapping[str, _Staging], storing: ThreadPoolExecutor) -> None:
        self._stagings = stagings
        self._storing = storing
        self._stored: list[Future[None]] = []

    def take(self, resource: str, body: bytes) -> None:
        """Copy a page."""
        staging = self._stagings[resource]
        if staging.take(body):
            # In a thread, since the pages of the other resource still come in.
            self._stored.append(self._storing.submit(staging.store))

    def finish(self) -> None:
        """Wait until all is stored."""
        for each in self._stored:
            each.result()


@contextmanager
def opened_copying(task: Task) -> Generator[Copying]:
    """Open a connection for each resource."""
    with ExitStack() as stack:
        stagings = {
            resource: _Staging(resource, pages, stack.enter_context(psycopg.connect(task.database_url)))
            for resource, pages in Counter(resource for resource, _ in task.pages()).items()
        }
        yield Copying(stagings, stack.enter_context(ThreadPoolExecutor(len(stagings))))
