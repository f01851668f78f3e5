"""The URLs of a list's pages, with sort order, filters, and the bounds of a crawl."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Generic
from urllib.parse import urlencode

from cliniko_pipeline.cliniko.crawling.refusals import Refusals
from cliniko_pipeline.cliniko.records import RecordT, Resource

MAX_CLOCK_SKEW = timedelta(minutes=2)
"""The allowed difference between two of Cliniko's clocks, each wrong by up to a minute."""


@dataclass(frozen=True)
class Listing(Generic[RecordT]):
    """A resource's list, or only its records changed at or after `changed_since`.

    `changed_since` is an instant of the server's clock. `bounds` are additional filters. Filters and sort fields that
    Cliniko refuses are left out.
    """

    page_size: ClassVar[int] = 100
    """Cliniko's maximum."""

    api_url: str
    resource: Resource[RecordT]
    changed_since: datetime | None = None
    bounds: tuple[str, ...] = ()
    refusals: Refusals = field(default_factory=Refusals, compare=False, repr=False)

    def url(self, page: int, per_page: int | None = None) -> str:
        """Return the URL of a page that includes archived, cancelled and deleted records.

        Pages are sorted by creation time, so that an update never moves a record to another page. Records created in
        the same clock second are sorted by id, because their order may change otherwise.
        """
        return f"{self._unpaged_url}&page={page}&per_page={per_page or self.page_size}"

    def urls(self, pages: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield each page's number and URL, as `url` returns it, but faster."""
        unpaged = self._unpaged_url
        for page in pages:
            yield page, f"{unpaged}&page={page}&per_page={self.page_size}"

    @property
    def _unpaged_url(self) -> str:
        since = [] if self.changed_since is None else [f"updated_at:>={format_second(self.changed_since)}"]
        conditions = [
            ("q[]", condition)
            for condition in (*self.resource.include_everything, *since, *self.bounds)
            if self.can_filter_by(_field_of(condition))
        ]
        order = [name for name in ("created_at", "id") if self.refusals.allows(self.resource.name, "sort", name)]
        # Send no `sort=id` alone, because it would replace the default order by creation time.
        sort = [("sort", ",".join(order))] if "created_at" in order else []
        return f"{self.address}?{urlencode([*sort, *conditions])}"

    @property
    def address(self) -> str:
        """The list's URL without a query."""
        return f"{self.api_url}/{self.resource.path or self.resource.name}"

    def can_filter_by(self, name: str) -> bool:
        """Return False once Cliniko has refused to filter by this field, else True."""
        return self.refusals.allows(self.resource.name, "filter", name)

    @property
    def is_bounded(self) -> bool:
        """Whether all bounds are sent. A bound that Cliniko refused is left out."""
        return all(self.can_filter_by(_field_of(bound)) for bound in self.bounds)

    @property
    def refused_filters(self) -> list[str]:
        """The fields whose filters are left out because Cliniko refuses them."""
        names = [_field_of(condition) for condition in (*self.resource.include_everything, *self.bounds)]
        return [name for name in names if not self.can_filter_by(name)]

    def page_count(self, entries: int) -> int:
        """Return the number of pages for this many entries."""
        return -(-entries // self.page_size)

    def describe_place(self, entry: int) -> str:
        """Describe the place of an entry in the list, counted from 1."""
        since = "" if self.changed_since is None else f" of those changed since {format_second(self.changed_since)}"
        return f"record {entry}{since}"

    def before(self, instant: datetime) -> "Listing[RecordT]":
        """Return the part of the list with time stamps before the instant."""
        return replace(self, bounds=(f"{self._bounded_field}:<{format_second(instant)}",))

    def newest(self, started_at: datetime) -> "Listing[RecordT]":
        """Return the part with time stamps around `started_at`, which may still grow."""
        earliest, latest = format_second(started_at - MAX_CLOCK_SKEW), format_second(started_at + MAX_CLOCK_SKEW)
        return replace(self, bounds=(f"{self._bounded_field}:>={earliest}", f"{self._bounded_field}:<={latest}"))

    def of_second(self, second: datetime) -> "Listing[RecordT]":
        """Return the part of the list with the records created in this clock second."""
        other_bounds = [bound for bound in self.bounds if _field_of(bound) != "created_at"]
        # The bounds include the whole clock second, because Cliniko may store fractions of it.
        end = format_second(second + timedelta(seconds=1))
        return replace(self, bounds=(*other_bounds, f"created_at:>={format_second(second)}", f"created_at:<{end}"))

    def filtered(self, filters: tuple[str, ...]) -> "Listing[RecordT]":
        """Return the part of the list that these additional filters select."""
        return replace(self, bounds=(*self.bounds, *filters))

    @property
    def _bounded_field(self) -> str:
        # Prefer created_at, which an update never changes. A new updated_at moves a record beyond the bound.
        is_full = self.changed_since is None or not self.can_filter_by("updated_at")
        return "created_at" if is_full else "updated_at"


def format_second(moment: datetime) -> str:
    """Return an instant in the format of filters, in whole seconds like the Date header."""
    return f"{moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat()}Z"


def _field_of(condition: str) -> str:
    return condition.partition(":")[0]
