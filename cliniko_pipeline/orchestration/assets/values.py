"""What an asset may return for the IO manager to write, besides a pandas DataFrame: a stream of record batches
(extracted, never a whole account in memory) or a query (computed inside PostgreSQL; no row travels).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.engine import Connection

from cliniko_pipeline.cliniko.crawling.crawl import Checkpoint
from cliniko_pipeline.clocks import ClockDifference
from cliniko_pipeline.postgres.tables import Table
from cliniko_pipeline.postgres.writing.crawls import RejectedRecord

MATCHES_ARE_KEPT = "matches_are_kept"
"""The asset check of contact_mapping that fails where its rows must not be replaced."""


@dataclass(frozen=True)
class CrawlProgress:
    """A reading of a resource, and where it stands.

    Attributes:
        is_full: whether it reads everything, or what changed.
        reconciles: whether what it does not see is to be marked as deleted when it has ended whole.
        horizon: Cliniko's clock when it began.
        following: where to go on if it breaks off now; only full readings go on.
        is_partial: whether what is older than the horizon is left out, since none of it could count.
        believed_share: at most this share of the records may be missing for them to be believed deleted, 0 to 1.
        refused: by what Cliniko refuses to sort or filter the list, as far as is known.
    """

    is_full: bool
    reconciles: bool
    horizon: datetime | None = None
    following: Checkpoint | None = None
    is_partial: bool = False
    believed_share: float = 1.0
    refused: Sequence[str] = ()


@dataclass(frozen=True)
class RecordBatch:
    """Some records of one resource, to be written in one transaction.

    Attributes:
        resource: Cliniko's name for it, e.g. `group_appointments`.
        table: where the rows belong.
        rows: tuples in the order of `table.written`.
        rejected: records set aside since the batch before.
        is_first, is_last: whether the reading of this resource begins, or ended whole, with this batch.
        crawl: what kind of reading it is, and where it stands after this batch; None for rows that are no reading.
    """

    resource: str
    table: Table
    rows: Sequence[tuple[object, ...]]
    rejected: Sequence[RejectedRecord] = ()
    is_first: bool = False
    is_last: bool = False
    crawl: CrawlProgress | None = None


@dataclass(frozen=True)
class RequestCost:
    """What reading a stream took of the request budget, and how far Cliniko's clock was from the database's."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    seconds_waited: float = 0.0
    clock_difference: ClockDifference | None = None


@dataclass(frozen=True)
class RecordStream:
    """What an extracting asset returns. Nothing is requested before `batches()` is iterated; `cost()` tells what it
    has taken so far.
    """

    batches: Callable[[], Iterator[RecordBatch]] = field(repr=False)
    cost: Callable[[], RequestCost] = field(repr=False)


@dataclass(frozen=True)
class TableQuery:
    """What a transforming asset returns: `sql/<query>.sql` makes the organization's rows of `table`.

    `parameters` are asked for when the query is run, so that what is wrong with them is noted like any other failure.
    `requires` names the resources whose last reading must be complete, for the query to be run at all.
    `inputs` are the tables that it reads besides the contacts: where they are given, an incremental sync computes
    nothing again that would come out the same (see derivations). `inspect` is called when the computed rows stand in
    the staging table: it raises where they must not replace the stored ones.
    """

    table: Table
    query: str
    parameters: Callable[[], Mapping[str, object]] = dict[str, object]
    requires: tuple[str, ...] = ()
    inputs: tuple[Table, ...] = ()
    inspect: Callable[[Connection], None] | None = None


@dataclass(frozen=True)
class TableReference:
    """What a downstream asset gets that asks for the table, not its rows: a name to use in SQL, in the context of
    the organization (`Database.organization`).
    """

    qualified: str
    organization_id: str
