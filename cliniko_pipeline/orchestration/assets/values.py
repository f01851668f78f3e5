"""The values that assets return for the IO manager, besides a pandas DataFrame."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cliniko_pipeline.postgres.writing.derivations import Derivation
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
        derivation: a function that returns the query, its inputs and its parameters. The IO manager calls it, and
            records its errors.
        requires: the resources whose last crawl must be complete.
    """

    derivation: Callable[[], Derivation]
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableReference:
    """The input of a downstream asset that queries a table instead of receiving its rows.

    `qualified` is the table's quoted name, for SQL in the organization context (`Database.organization`).
    """

    qualified: str
    organization_id: str
