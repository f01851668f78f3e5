"""`cliniko.check_results`: the last result of each asset check for each organization."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql


@dataclass(frozen=True)
class CheckResult:
    """The result of an asset check for an organization.

    `remark` describes the result in numbers. `checked_at` is None for a result that is not stored yet.
    """

    organization_id: str
    asset: str
    name: str
    holds: bool
    remark: str
    run_id: str | None
    checked_at: datetime | None = None


def note_checks(connection: Connection, results: Sequence[CheckResult]) -> None:
    """Store the results in place of the same checks' earlier results."""
    if results:
        connection.execute(sa.text(sql("checks/note_check")), [asdict(result) for result in results])


def failed_checks(connection: Connection) -> list[CheckResult]:
    """Return the failed checks of all organizations."""
    rows = connection.execute(
        sa.text(
            "select organization_id, asset, name, holds, remark, run_id, checked_at from cliniko.check_results"
            " where not holds order by organization_id, asset, name"
        )
    )
    return [CheckResult(**row) for row in rows.mappings()]
