"""`cliniko.crawls` and `cliniko.rejected_records`: how far the last reading of a resource came, and what of it could
not be understood. All functions run in the organization context the caller opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres.engine import sql


@dataclass(frozen=True)
class RejectedRecord:
    """A record that was set aside: `id` where it was readable; `reason` never quotes the record."""

    id: str | None
    reason: str


def begin(connection: Connection, resource: str) -> None:
    """A reading of the resource begins; until `complete`, what is stored of it is a mixture."""
    connection.execute(sa.text(sql("crawl_started")), {"resource": resource})


def complete(connection: Connection, resource: str, records: int, rejected: Sequence[RejectedRecord]) -> None:
    """The reading reached the end: what it rejected takes the place of what the one before rejected."""
    connection.execute(sa.text(sql("crawl_completed")), {"resource": resource, "records": records})
    connection.execute(
        sa.text("delete from cliniko.rejected_records where resource = :resource"), {"resource": resource}
    )
    if rejected:
        connection.execute(
            sa.text(
                "insert into cliniko.rejected_records (organization_id, resource, position, id, reason)"
                " values (current_setting('app.organization_id'), :resource, :position, :id, :reason)"
            ),
            [
                {"resource": resource, "position": position, "id": record.id, "reason": record.reason}
                for position, record in enumerate(rejected, start=1)
            ],
        )


def require_complete(connection: Connection, resources: Sequence[str]) -> None:
    """Raises DataError where one of the resources was never read to its end, or its last reading broke off: what is
    stored of it is then no state that Cliniko ever had, and nothing may be computed from it.
    """
    complete = set(
        connection.execute(
            sa.text(
                "select resource from cliniko.crawls where completed_at is not null and resource = any(:resources)"
            ),
            {"resources": list(resources)},
        ).scalars()
    )
    missing = [resource for resource in resources if resource not in complete]
    if missing:
        raise DataError(
            f"What is stored of {', '.join(missing)} is not a complete reading of Cliniko:"
            " materialize cliniko/patients and cliniko/appointments first (the job cliniko_sync does all in order)."
        )
