"""The decoding of pages, in one step, or record by record if something is malformed."""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

from cliniko_pipeline.cliniko.decoding.values import identifier
from cliniko_pipeline.cliniko.decoding.wire import WIRE_TYPES
from cliniko_pipeline.cliniko.records import Record, RecordT, RejectedRecord, Resource
from cliniko_pipeline.errors import ClinikoUnavailableError, UnexpectedResponseError

MAX_ENTRIES = 100
"""Cliniko's largest page."""

EntryT_co = TypeVar("EntryT_co", covariant=True)
RecordT_co = TypeVar("RecordT_co", bound=Record, covariant=True)


@dataclass(frozen=True, slots=True)
class FetchedPage(Generic[RecordT]):
    """One response to a list request. `total_entries` is the size of the whole list."""

    records: list[RecordT]
    rejected: list[RejectedRecord]
    total_entries: int
    next_url: str | None
    server_date: datetime | None = None

    @property
    def entry_count(self) -> int:
        """The number of records on the page, including rejected records."""
        return len(self.records) + len(self.rejected)

    def is_consistent(self, number: int, size: int) -> bool:
        """Return whether this page, number `number` of pages of `size` entries, fits `total_entries`."""
        due = min(size, max(0, self.total_entries - size * (number - 1)))
        return self.entry_count == due and (self.next_url is not None) == (self.total_entries > size * number)


def decode_page(resource: Resource[RecordT], body: bytes, server_date: datetime | None = None) -> FetchedPage[RecordT]:
    """Return the page in a body, with a rejected record for each malformed record.

    Raises ClinikoUnavailableError for a body that is not a complete JSON document, such as a proxy's web page or a
    broken transfer. Raises UnexpectedResponseError for a document that is not a list of this resource, or has more than
    MAX_ENTRIES records.
    """
    try:
        page = _page_decoder(resource).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # One malformed record is enough to fail here, and so is one invalid character, even in a skipped field.
        return _decode_record_by_record(resource, _with_valid_text(body), server_date)
    except RecursionError:
        raise _unreadable() from None
    return _collect(resource, page, (_convert(resource, entry) for entry in page.entries), server_date)


def _decode_record_by_record(
    resource: Resource[RecordT], body: bytes, server_date: datetime | None
) -> FetchedPage[RecordT]:
    try:
        page = _raw_page_decoder(resource.name).decode(body)
    except msgspec.ValidationError as error:
        # msgspec stops at the first error, so check whether the rest of the document is JSON.
        raise (_not_a_list_of(resource.name, _reason(error)) if _is_json(body) else _unreadable()) from None
    except (msgspec.DecodeError, RecursionError):
        raise _unreadable() from None
    return _collect(resource, page, (_decode_record(resource, entry) for entry in page.entries), server_date)


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _decode_record(resource: Resource[RecordT], raw: msgspec.Raw) -> RecordT | RejectedRecord:
    try:
        return _convert(resource, _record_decoder(resource).decode(raw))
    except msgspec.ValidationError as error:
        return RejectedRecord(resource.name, _id_in(raw), _reason(error))


def _convert(resource: Resource[RecordT], entry: "_Wire[RecordT]") -> RecordT | RejectedRecord:
    try:
        return entry.record()
    except UnexpectedResponseError as error:
        return RejectedRecord(resource.name, _id_or_none(entry.id), str(error))


def _collect(
    resource: Resource[RecordT],
    page: "_Page[object]",
    entries: Iterable[RecordT | RejectedRecord],
    date: datetime | None,
) -> FetchedPage[RecordT]:
    if len(page.entries) > MAX_ENTRIES:
        raise _too_many(resource.name)
    if page.total_entries < 0:
        raise _not_a_list_of(resource.name, "total_entries: negative")
    records: list[RecordT] = []
    rejected: list[RejectedRecord] = []
    for entry in entries:
        if isinstance(entry, RejectedRecord):
            rejected.append(entry)
        else:
            records.append(entry)
    return FetchedPage(records, rejected, page.total_entries, (page.links and page.links.next) or None, date)


class _OnlyId(msgspec.Struct):
    id: str | int


_ONLY_ID = msgspec.json.Decoder(_OnlyId)


def _id_in(raw: msgspec.Raw) -> str | None:
    try:
        return _id_or_none(_ONLY_ID.decode(raw).id)
    except msgspec.ValidationError:
        return None


def _id_or_none(value: str | int) -> str | None:
    try:
        return identifier("id", value)
    except UnexpectedResponseError:
        return None


class _PageLinks(msgspec.Struct):
    next: str | None = None


class _Page(Protocol[EntryT_co]):
    @property
    def entries(self) -> Sequence[EntryT_co]: ...
    @property
    def total_entries(self) -> int: ...
    @property
    def links(self) -> _PageLinks | None: ...


class _Wire(Protocol[RecordT_co]):
    @property
    def id(self) -> str | int: ...
    def record(self) -> RecordT_co: ...


class _PageDecoder(Protocol[EntryT_co]):
    def decode(self, body: bytes, /) -> _Page[EntryT_co]: ...


@functools.cache
def _record_decoder(resource: Resource[RecordT]) -> "msgspec.json.Decoder[_Wire[RecordT]]":
    return cast("msgspec.json.Decoder[_Wire[RecordT]]", msgspec.json.Decoder(WIRE_TYPES[resource.record]))


@functools.cache
def _page_decoder(resource: Resource[RecordT]) -> "_PageDecoder[_Wire[RecordT]]":
    return _make_page_decoder(resource.name, list[WIRE_TYPES[resource.record]])


@functools.cache
def _raw_page_decoder(name: str) -> "_PageDecoder[msgspec.Raw]":
    return _make_page_decoder(name, list[msgspec.Raw])


def _make_page_decoder(name: str, entries: Any) -> Any:
    """Return a decoder of pages that have their entries under the resource's name."""
    fields: list[Any] = [
        ("entries", entries, msgspec.field(name=name)),
        ("total_entries", int),
        ("links", _PageLinks | None, None),
    ]
    return msgspec.json.Decoder(msgspec.defstruct(f"PageOf_{name}", fields))


_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a surrogate pair, which is valid
    rb"|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|.)",  # any other escape, so that the second backslash of '\\' does not start an escape
    re.DOTALL,
)


def _with_valid_text(body: bytes) -> bytes:
    """Return the document with U+FFFD in place of lone surrogates and invalid UTF-8."""
    utf8 = body.decode("utf-8-sig", errors="replace").encode()
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape["lone"] else escape[0], utf8)


_MISSING = re.compile(r"missing required field `(\w+)`")
_MISMATCH = re.compile(r"Expected `([\w |]+)`, got `([\w |]+)`(?: - at `\$\.?(\w*))?")


def _reason(error: msgspec.ValidationError) -> str:
    """Return the field and the rule that its value breaks, without the value."""
    message = str(error)
    if missing := _MISSING.search(message):
        return f"{missing[1]}: missing"
    if mismatch := _MISMATCH.search(message):
        return f"{mismatch[3] or 'record'}: {mismatch[2]} where {mismatch[1]} belongs"
    return "record: not of the documented shape"


def _not_a_list_of(name: str, reason: str) -> UnexpectedResponseError:
    return UnexpectedResponseError(
        f"Cliniko's answer is not the list of {name} that its API promises ({reason}): check the API URL; if "
        "the URL is right, this version of the pipeline is too old for the API"
    )


def _too_many(name: str) -> UnexpectedResponseError:
    return UnexpectedResponseError(
        f"Cliniko's answer holds more {name} than the {MAX_ENTRIES} of a page: check the API URL; if the URL is"
        " right, report this to Cliniko"
    )


def _unreadable() -> ClinikoUnavailableError:
    return ClinikoUnavailableError("Cliniko's answer is not a complete JSON document: try again later")
