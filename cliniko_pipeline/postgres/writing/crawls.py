"""How far the readings of an account's resources came: `cliniko.crawls`, `cliniko.crawled_ids` and
`cliniko.rejected_records`. All functions run in the organization context the caller opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres.engine import Sent, sql, statement
from cliniko_pipeline.postgres.tables import RECONCILED

OVERLAP = timedelta(minutes=3)
"""How much earlier than the last crawl's beginning the next one starts.

The server's clock may be a minute early when one begins and a minute late when a record changes, and a change is
stamped a moment before it can be read.
"""


@dataclass(frozen=True)
class RejectedRecord:
    """A record that was set aside: `id` where it was readable; `reason` never quotes the record."""

    id: str | None
    reason: str


@dataclass(frozen=True)
class CrawlState:
    """How far the reading of a resource came. Instants are of Cliniko's clock.

    Attributes:
        is_complete: whether the last crawl ended whole.
        is_full, reconciles: whether it reads everything, and then marks what it did not see as deleted.
        horizon, next_page, total_entries: where a full one that broke off stands; no page: at the beginning.
        records: how many it has read so far.
        is_partial: whether the records of before its horizon were left out, since none of them could count.
        cursor: what an incremental crawl starts from; None: nothing was read whole yet.
        needs_full: why that would not do; None: it does.
        doubtful_deletions: how many records the last full crawl missed that are not believed to be deleted.
        refused_fields: by what Cliniko refuses to sort or filter the list (see cliniko.refusals).
    """

    resource: str
    is_complete: bool
    is_full: bool
    reconciles: bool
    horizon: datetime | None
    next_page: int | None
    total_entries: int | None
    records: int
    is_partial: bool
    cursor: datetime | None
    needs_full: str | None
    doubtful_deletions: int
    refused_fields: Sequence[str]


@dataclass(frozen=True)
class Vanished:
    """How many records a full crawl should have seen, and how many of them it did not."""

    known: int
    vanished: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.vanished / self.known if self.known else 0.0


@dataclass(frozen=True)
class StoredCount:
    """How many records of a resource are stored, and how many were set aside without ever having been understood: of
    these nobody knows whether they belong to those that were counted.
    """

    stored: int
    set_aside: int

    def agrees_with(self, total: int) -> bool:
        """Whether Cliniko may have so many."""
        return self.stored <= total <= self.stored + self.set_aside


def states(connection: Connection) -> dict[str, CrawlState]:
    """The state of every resource that was ever begun, by its name."""
    rows = connection.execute(
        sa.text(
            "select resource, completed_at is not null as is_complete, is_full, reconciles, horizon, next_page,"
            " total_entries, records, is_partial, cursor, needs_full, doubtful_deletions, refused_fields"
            " from cliniko.crawls"
        )
    ).mappings()
    return {row["resource"]: CrawlState(**row) for row in rows}


def begin(connection: Connection, resource: str, *, is_full: bool, reconciles: bool) -> None:
    """A reading of the resource begins; until `complete`, what is stored of it is a mixture."""
    connection.execute(
        statement(sql("crawls/begun")), {"resource": resource, "is_full": is_full, "reconciles": reconciles}
    )
    _forget_ids(connection, resource)


def advancing(
    resource: str,
    *,
    records: int,
    horizon: datetime | None,
    next_page: int | None = None,
    total_entries: int | None = None,
    refused: Sequence[str] = (),
) -> Sent:
    """A statement to be sent: some more was written; a full crawl that breaks off goes on from here. It tells whether
    anything of the resource is set aside.
    """
    return sql("crawls/advanced"), {
        "resource": resource,
        "records": records,
        "horizon": horizon,
        "next_page": next_page,
        "total_entries": total_entries,
        "refused": list(refused),
    }


def complete(
    connection: Connection,
    resource: str,
    *,
    horizon: datetime | None,
    is_partial: bool = False,
    doubtful_deletions: int = 0,
) -> None:
    """The reading reached the end; the next one starts from its beginning, by Cliniko's clock, less an overlap."""
    connection.execute(
        statement(sql("crawls/completed")),
        {
            "resource": resource,
            "horizon": horizon,
            "overlap": OVERLAP,
            "is_partial": is_partial,
            "doubtful_deletions": doubtful_deletions,
        },
    )
    connection.execute(statement(sql("crawls/set_aside_before")), {"resource": resource})
    _forget_ids(connection, resource)


def require_full(connection: Connection, resource: str, reason: str) -> None:
    """Lets the next crawl of the resource be a full one."""
    connection.execute(
        sa.text("update cliniko.crawls set needs_full = :reason where resource = :resource"),
        {"resource": resource, "reason": reason},
    )


def set_aside(
    connection: Connection, resource: str, *, understood: Sequence[str], rejected: Sequence[RejectedRecord]
) -> None:
    """Notes the records that could not be understood, and that others, which perhaps once could not, now are."""
    nameless = [record for record in rejected if record.id is None]
    named = {record.id: record for record in rejected if record.id is not None}
    connection.execute(
        statement(sql("crawls/no_longer_set_aside")),
        {"resource": resource, "ids": [*understood, *named], "reasons": [record.reason for record in nameless]},
    )
    if rejected:
        connection.execute(
            statement(sql("crawls/set_aside")),
            [
                {"resource": resource, "id": record.id, "reason": record.reason}
                for record in [*named.values(), *nameless]
            ],
        )


def remember_ids(connection: Connection, resource: str, ids: Sequence[str]) -> None:
    """A reconciling crawl has seen these records."""
    if ids:
        connection.execute(statement(sql("crawls/crawled_ids_added")), {"resource": resource, "ids": list(ids)})


def vanished(connection: Connection, resource: str, horizon: datetime | None) -> Vanished:
    """Counts what the reconciling crawl did not see. None vanished where it set a record aside of which not even the
    id is known: any of those stored could be meant.
    """
    unreadable = connection.execute(statement(sql("crawls/rejected_without_id")), {"resource": resource}).scalar_one()
    # How many ids there are, the planner cannot know: it would go through all of them for every row.
    connection.execute(statement(sql("transforms/plan_for_whole_tables")))
    row = connection.execute(_on_rows("vanished", resource), {"resource": resource, "horizon": horizon}).one()
    return Vanished(row.known, 0 if unreadable else row.vanished)


def mark_vanished(connection: Connection, resource: str, horizon: datetime | None) -> int:
    """Marks what the reconciling crawl did not see as deleted; returns how many records that were."""
    connection.execute(statement(sql("transforms/plan_for_whole_tables")))
    return connection.execute(_on_rows("mark_vanished", resource), {"resource": resource, "horizon": horizon}).rowcount


def stored_count(connection: Connection, state: CrawlState) -> StoredCount:
    """Counts what is stored of the records that were created before the cursor: all of them were read, and Cliniko
    gets no more of them. What is doubted to be deleted is not there in Cliniko, and counts as that.
    """
    parameters = {"resource": state.resource, "created_before": state.cursor}
    row = connection.execute(_on_rows("stored_count", state.resource), parameters).one()
    return StoredCount(row.stored - state.doubtful_deletions, row.set_aside)


def require_complete(connection: Connection, resources: Sequence[str]) -> None:
    """Raises DataError where one of the resources was never read to its end, or its last reading broke off: what is
    stored of it is then no state that Cliniko ever had, and nothing may be computed from it.
    """
    found = states(connection)
    missing = [each for each in resources if each not in found or not found[each].is_complete]
    if missing:
        raise DataError(
            f"What is stored of {', '.join(missing)} is not a complete reading of Cliniko:"
            " materialize cliniko/patients and cliniko/appointments first (the job cliniko_sync does all in order)."
        )


def _forget_ids(connection: Connection, resource: str) -> None:
    connection.execute(sa.text("delete from cliniko.crawled_ids where resource = :resource"), {"resource": resource})


def _on_rows(name: str, resource: str) -> sa.TextClause:
    rows = RECONCILED[resource]
    return statement(sql(f"crawls/{name}").format(table=rows.table.qualified, condition=rows.condition))
