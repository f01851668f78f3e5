"""The values that assets return for the IO manager, besides a pandas DataFrame."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.tables import Table
from cliniko_pipeline.postgres.writing.record_batches import RecordBatch
from cliniko_pipeline.postgres.writing.sync_journal import RequestCost

MATCHES_ARE_KEPT = "matches_are_kept"
"""The asset check of contact_mapping that fails where its rows must not be replaced."""


@dataclass(frozen=True)
class RecordStream:
    """The batches of an extracting asset. Iterating `batches()` sends the requests, and `cost()` returns their cost."""

    batches: Callable[[], Iterator[RecordBatch]] = field(repr=False)
    cost: Callable[[], RequestCost] = field(repr=False)


@dataclass(frozen=True)
class TableQuery:
    """A query that computes the organization's rows of a table inside PostgreSQL.

    Attributes:
        table: the table.
        query: the name of the SQL file, without `.sql`.
        parameters: returns the query's parameters when it is run, so that their errors are recorded like any other.
        requires: the resources whose last crawl must be complete.
        inputs: the tables that the query reads besides the contacts. An incremental sync skips the query while these
            are unchanged (see derivations). Empty: never skipped.
        inspect: called when the rows are in the staging table; raises where they must not replace the stored ones.
    """

    table: Table
    query: str
    parameters: Callable[[], Mapping[str, object]] = dict[str, object]
    requires: tuple[str, ...] = ()
    inputs: tuple[Table, ...] = ()
    inspect: Callable[[Connection], None] | None = None


@dataclass(frozen=True)
class TableReference:
    """The input of a downstream asset that wants the table instead of its rows.

    `qualified` is its quoted name, for SQL in the context of the organization (`Database.organization`).
    """

    qualified: str
    organization_id: str
