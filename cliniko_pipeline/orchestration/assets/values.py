"""The values that assets return for the IO manager, besides a pandas DataFrame."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.tables import Table
from cliniko_pipeline.postgres.writing.record_batches import RecordBatch
from cliniko_pipeline.postgres.writing.sync_journal import RequestCost

MATCHES_ARE_KEPT = "matches_are_kept"
"""The asset check that fails if a new contact_mapping would lose too many matches."""


@dataclass(frozen=True)
class RecordStream:
    """The batches of an extracting asset, and the cost of the requests that read them."""

    batches: Callable[[], Iterator[RecordBatch]] = field(repr=False)
    cost: Callable[[], RequestCost] = field(repr=False)


@dataclass(frozen=True)
class TableQuery:
    """A query that computes the organization's rows of a table inside PostgreSQL.

    Attributes:
        table: the table.
        query: the name of the SQL file, without `.sql`.
        parameters: a function that returns the query's parameters. The IO manager calls it, and records its errors.
        requires: the resources whose last crawl must be complete.
        inputs: the tables that the query reads besides the contacts. An incremental sync skips the query while these
            tables and the contacts are unchanged (see derivations.py). A query without inputs is never skipped.
        inspect: a function that raises an error if the rows in the staging table must not replace the stored rows.
    """

    table: Table
    query: str
    parameters: Callable[[], Mapping[str, object]] = dict[str, object]
    requires: tuple[str, ...] = ()
    inputs: tuple[Table, ...] = ()
    inspect: Callable[[Connection], None] | None = None


@dataclass(frozen=True)
class TableReference:
    """The input of a downstream asset that queries a table instead of receiving its rows.

    `qualified` is the table's quoted name, for SQL in the organization context (`Database.organization`).
    """

    qualified: str
    organization_id: str
