"""The crawls of an account: `cliniko.crawls`, `cliniko.crawled_ids` and `cliniko.rejected_records`.

Every function runs in the organization context of the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres.engine import BoundStatement, sql, statement

OVERLAP = timedelta(minutes=3)
"""The next incremental crawl reads changes from this long before the start of the last crawl.

The clocks of Cliniko's servers may differ by two minutes. A change can become readable a moment later than its time
stamp says.
"""


@dataclass(frozen=True)
class RejectedRecord:
    """A record that the pipeline could not understand, or that Cliniko did not deliver.

    Attributes:
        id: the record's id, if it is readable.
        reason: the invalid field and the rule that it breaks, without any value of the record.
        is_unanswered: whether Cliniko leaves requests for the record unanswered.
    """

    id: str | None
    reason: str
    is_unanswered: bool = False


@dataclass(frozen=True)
class CrawlState:
    """The stored state of a resource's last crawl. All times are by Cliniko's clock.

    Attributes:
        is_complete: whether the last crawl reached the end.
        is_full: whether the last crawl was a full crawl.
        reconciles: whether the crawl marks as deleted the records that it did not see.
        next_cursor: when the crawl began. It becomes `cursor`, less OVERLAP, when the crawl is complete.
        next_page: the page at which an interrupted full crawl resumes; None if there is no such page.
        total_entries: the number of records in the list that an interrupted full crawl reads.
        records: the number of records that the crawl has stored.
        is_partial: whether the last full crawl was skipped because no table needed its records. Records from before the
            skipped crawl are then stored only if they changed after it.
        cursor: where an incremental crawl starts; None if Cliniko's time is unknown or no crawl was complete.
        needs_full: why the next crawl must be full; None if it may be incremental.
        doubtful_deletions: the number of records that the last full crawl missed but did not mark as deleted.
        refused_fields: the sort and filter fields that Cliniko refuses for this list.
    """

    resource: str
    is_complete: bool
    is_full: bool
    reconciles: bool
    next_cursor: datetime | None
    next_page: int | None
    total_entries: int | None
    records: int
    is_partial: bool
    cursor: datetime | None
    needs_full: str | None
    doubtful_deletions: int
    refused_fields: Sequence[str]


@dataclass(frozen=True)
class MissingCount:
    """The number of records that a full crawl should have seen, and the number that it missed."""

    known: int
    missing: int

    @property
    def share(self) -> float:
        """Return the share of missing records, 0 to 1."""
        return self.missing / self.known if self.known else 0.0


@dataclass(frozen=True)
class StoredCount:
    """The numbers of a resource's stored records and of rejected records that were never stored.

    Stored records are counted only if they were created before an instant. It is unknown when the rejected records were
    created, so Cliniko's number of records created before the instant may include all, some or none of them.
    """

    stored: int
    rejected: int

    def agrees_with(self, total: int) -> bool:
        """Return whether Cliniko can have `total` records from before the instant."""
        return self.stored <= total <= self.stored + self.rejected


def read_states(connection: Connection) -> dict[str, CrawlState]:
    """Return the state of every resource that was ever crawled, by the resource's name."""
    rows = connection.execute(statement(sql("crawls/states"))).mappings()
    return {row["resource"]: CrawlState(**row) for row in rows}


def begin(connection: Connection, resource: str, *, is_full: bool, reconciles: bool) -> None:
    """Begin a crawl. The resource's stored records are inconsistent until `complete` is called."""
    connection.execute(
        statement(sql("crawls/begin")), {"resource": resource, "is_full": is_full, "reconciles": reconciles}
    )
    _delete_crawled_ids(connection, resource)


def build_advance(
    resource: str,
    *,
    records: int,
    next_cursor: datetime | None,
    next_page: int | None = None,
    total_entries: int | None = None,
    refused_fields: Sequence[str] = (),
) -> BoundStatement:
    """Return the statement that saves a checkpoint.

    Its one result column tells whether the resource has rejected records.
    """
    return sql("crawls/advance"), {
        "resource": resource,
        "records": records,
        "next_cursor": next_cursor,
        "next_page": next_page,
        "total_entries": total_entries,
        "refused_fields": list(refused_fields),
    }


def complete(
    connection: Connection,
    resource: str,
    *,
    next_cursor: datetime | None,
    is_partial: bool = False,
    doubtful_deletions: int = 0,
) -> None:
    """Complete the crawl. The next incremental crawl starts OVERLAP before `next_cursor`."""
    connection.execute(
        statement(sql("crawls/complete")),
        {
            "resource": resource,
            "next_cursor": next_cursor,
            "overlap": OVERLAP,
            "is_partial": is_partial,
            "doubtful_deletions": doubtful_deletions,
        },
    )
    connection.execute(statement(sql("crawls/delete_earlier_rejected")), {"resource": resource})
    _delete_crawled_ids(connection, resource)


def require_full(connection: Connection, resource: str, reason: str) -> None:
    """Make the resource's next crawl a full crawl."""
    connection.execute(
        statement("update cliniko.crawls set needs_full = :reason where resource = :resource"),
        {"resource": resource, "reason": reason},
    )


def save_rejected(
    connection: Connection, resource: str, *, accepted: Sequence[str], rejected: Sequence[RejectedRecord]
) -> None:
    """Save the rejected records, and delete earlier entries of records that are accepted now."""
    nameless = [record for record in rejected if record.id is None]
    named = {record.id: record for record in rejected if record.id is not None}
    connection.execute(
        statement(sql("crawls/delete_rejected")),
        {"resource": resource, "ids": [*accepted, *named], "reasons": [record.reason for record in nameless]},
    )
    if rejected:
        connection.execute(
            statement(
                "insert into cliniko.rejected_records (organization_id, resource, id, reason)"
                " values (current_setting('app.organization_id'), :resource, :id, :reason)"
            ),
            [
                {"resource": resource, "id": record.id, "reason": record.reason}
                for record in [*named.values(), *nameless]
            ],
        )


def save_crawled_ids(connection: Connection, resource: str, ids: Sequence[str]) -> None:
    """Save the ids of records that a reconciling crawl has seen."""
    if ids:
        connection.execute(statement(sql("crawls/save_crawled_ids")), {"resource": resource, "ids": list(ids)})


def count_missing(connection: Connection, resource: str, next_cursor: datetime | None) -> MissingCount:
    """Count the records that the reconciling crawl did not see.

    If the crawl rejected a record without a readable id, each missing record could be the rejected one. None of them is
    then counted as missing.
    """
    has_nameless = connection.execute(
        statement(sql("crawls/has_rejected_without_id")), {"resource": resource}
    ).scalar_one()
    parameters = {"resource": resource, "next_cursor": next_cursor}
    row = connection.execute(statement(sql("crawls/count_missing")), parameters).one()
    return MissingCount(row.known, 0 if has_nameless else row.missing)


def mark_missing_deleted(connection: Connection, resource: str, next_cursor: datetime | None) -> int:
    """Mark as deleted the records that the reconciling crawl did not see; return their number."""
    parameters = {"resource": resource, "next_cursor": next_cursor}
    return connection.execute(statement(sql("crawls/mark_missing_deleted")), parameters).scalar_one()


def count_stored(connection: Connection, state: CrawlState) -> StoredCount:
    """Count the stored records that were created before the cursor.

    Cliniko adds no more records from before the cursor, so a later count in Cliniko must agree. Doubtful deletions are
    subtracted, because Cliniko no longer has these records.
    """
    parameters = {"resource": state.resource, "created_before": state.cursor}
    row = connection.execute(statement(sql("crawls/count_stored")), parameters).one()
    return StoredCount(row.stored - state.doubtful_deletions, row.rejected)


def require_complete(connection: Connection, resources: Sequence[str]) -> None:
    """Raise DataError if a resource was never crawled, or if its last crawl is incomplete.

    After an incomplete crawl, the stored records of the resource are inconsistent.
    """
    states = read_states(connection)
    incomplete = [name for name in resources if name not in states or not states[name].is_complete]
    if incomplete:
        raise DataError(
            f"The last crawl of {', '.join(incomplete)} is not complete: materialize cliniko/patients and"
            " cliniko/appointments first (the job cliniko_sync materializes everything in order)."
        )


def _delete_crawled_ids(connection: Connection, resource: str) -> None:
    connection.execute(statement("delete from cliniko.crawled_ids where resource = :resource"), {"resource": resource})
