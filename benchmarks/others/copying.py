"""Fastest way to store pages, for the floors.

Only the needed fields are decoded. COPY writes them into a temporary table per resource, from which one statement
stores the rows. Nothing is checked.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

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


class _Type(_Record, gc=False):
    name: str


class _Practitioner(_Record, gc=False):
    display_name: str


class _Types(msgspec.Struct, gc=False):
    appointment_types: list[_Type]


class _Practitioners(msgspec.Struct, gc=False):
    practitioners: list[_Practitioner]


class _Patients(msgspec.Struct, gc=False):
    patients: list[_Patient]


class _Appointments(msgspec.Struct, gc=False):
    individual_appointments: list[_Appointment]


_NULL = "\\N"
_decode_types = msgspec.json.Decoder(_Types).decode
_decode_practitioners = msgspec.json.Decoder(_Practitioners).decode
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


def _name_line(record: _Record, name: str) -> str:
    return f"{record.id}\t{_text(name)}\t{record.created_at}\t{record.updated_at}\n"


def _type_lines(body: bytes) -> str:
    return "".join([_name_line(record, record.name) for record in _decode_types(body).appointment_types])


def _practitioner_lines(body: bytes) -> str:
    return "".join([_name_line(record, record.display_name) for record in _decode_practitioners(body).practitioners])


def _patient_lines(body: bytes) -> str:
    return "".join(
        [
            f"{record.id}\t{_text(record.first_name)}\t{_text(record.last_name)}\t{_text(record.email)}"
            f"\t{record.archived_at or _NULL}\t{record.deleted_at or _NULL}\t{record.merged_at or _NULL}"
            f"\t{_id(record.merged_with_patient)}\t{record.created_at}\t{record.updated_at}\n"
            for record in _decode_patients(body).patients
        ]
    )


def _appointment_lines(body: bytes) -> str:
    return "".join(
        [
            f"individual\t{record.id}\t{_id(record.patient)}\t{_id(record.appointment_type)}\t{_id(record.practitioner)}"
            f"\t{record.starts_at}\t{record.ends_at or _NULL}\t{record.cancelled_at or _NULL}"
            f"\t{record.archived_at or _NULL}"
            f"\t{record.deleted_at or _NULL}\t{record.did_not_arrive}\t{record.created_at}\t{record.updated_at}\n"
            for record in _decode_appointments(body).individual_appointments
        ]
    )


_LINES: dict[str, Callable[[bytes], str]] = {
    "appointment_types": _type_lines,
    "practitioners": _practitioner_lines,
    "patients": _patient_lines,
    "individual_appointments": _appointment_lines,
}


class Copying:
    """Copier of pages into temporary tables. The pages may come in any order, but from one thread.

    After the last page of a resource, a thread stores its rows while pages of the other resources still arrive.
    """

    def __init__(self, task: Task, stack: ExitStack) -> None:
        self._left = Counter(resource for resource, _ in task.pages())
        self._storing = stack.enter_context(ThreadPoolExecutor(len(self._left)))
        self._stored: list[Future[None]] = []
        self._connections = {
            resource: stack.enter_context(psycopg.connect(task.database_url)) for resource in self._left
        }
        self._open = {resource: ExitStack() for resource in self._left}
        self._copies = {resource: self._begin(resource) for resource in self._left}

    def _begin(self, resource: str) -> psycopg.Copy:
        table = TABLES[resource]
        columns = f"select {', '.join(table.written)} from {SCHEMA}.{table.name} with no data"  # noqa: S608 (our names)
        self._connections[resource].execute(f"create temporary table staging on commit drop as {columns}".encode())
        return self._open[resource].enter_context(self._connections[resource].cursor().copy("copy staging from stdin"))

    def take(self, resource: str, body: bytes) -> None:
        """Copy a page."""
        self._copies[resource].write(_LINES[resource](body).encode())
        self._left[resource] -= 1
        if not self._left[resource]:
            self._stored.append(self._storing.submit(self._store, resource))

    def _store(self, resource: str) -> None:
        self._open[resource].close()
        table = TABLES[resource]
        source = f"select '{ORGANIZATION}', {', '.join(table.written)} from staging"  # noqa: S608 (our names)
        self._connections[resource].execute(upsert(resource, f"{source} order by {', '.join(table.key)}"))
        self._connections[resource].commit()

    def finish(self) -> None:
        """Wait until all rows are stored."""
        for stored in self._stored:
            stored.result()
