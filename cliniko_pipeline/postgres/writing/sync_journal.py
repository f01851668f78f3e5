"""The journal of a run's assets, in `cliniko.sync_runs` and `cliniko.scheduling`.

The journal has its own transactions. When a failure rolls back the data's transaction, the journal's entry is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cliniko_pipeline.clocks import ClockDifference
from cliniko_pipeline.errors import (
    AuthenticationError,
    ClinikoPipelineError,
    CredentialsError,
    PermissionDeniedError,
    SettingsError,
)
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import scheduling, sync_runs
from cliniko_pipeline.postgres.writing.merge import Written
from cliniko_pipeline.postgres.writing.record_batches import RecordBatch

FIRST_REFUSAL = "The refusal may be temporary. The organization is paused only if Cliniko refuses a later attempt, too."


@dataclass(frozen=True)
class RequestCost:
    """The requests that an asset sent, and the clock difference between Cliniko and the database."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    seconds_waited: float = 0.0
    clock_difference: ClockDifference | None = None


@dataclass
class Outcome:
    """The work that an asset has done so far in a run.

    Attributes:
        written: the numbers of inserted, updated and deleted rows.
        records: the number of accepted records; None for an asset that reads no records.
        rejected: the number of rejected records.
        rows: the organization's number of rows in the table.
        cost: the requests sent.
        is_recomputed: whether a computed table was computed; None for other tables.
        as_of: the instant that the rows were computed for; None if they do not depend on the time.
    """

    written: Written = field(default_factory=Written)
    records: int | None = None
    rejected: int = 0
    rows: int | None = None
    cost: RequestCost = field(default_factory=RequestCost)
    is_recomputed: bool | None = None
    as_of: datetime | None = None

    def add(self, batch: RecordBatch, written: Written) -> None:
        """Add the counts of a written batch."""
        self.written += written
        self.records = (self.records or 0) + len(batch.rows)
        self.rejected += len(batch.rejected)

    def counts(self) -> dict[str, int]:
        """Return the counts in the form of `cliniko.sync_runs`."""
        read = {} if self.records is None else {"records": self.records, "rejected": self.rejected}
        rows = {} if self.rows is None else {"rows": self.rows}
        written = {
            "inserted": self.written.inserted,
            "updated": self.written.updated,
            "deleted": self.written.deleted,
        }
        return read | rows | written


@dataclass(frozen=True)
class RecordedFailure:
    """A failure, as the journal describes it in one line. A permanent failure is not retried."""

    description: str
    is_permanent: bool


class SyncJournal:
    """A writer of the journal entries of one asset in one organization's run.

    Args:
        warn: called with a text if a failure could not be recorded.
    """

    def __init__(
        self, database: Database, organization_id: str, *, run_id: str, asset: str, warn: Callable[[str], object]
    ) -> None:
        self._database = database
        self._organization_id = organization_id
        self._run_id = run_id
        self._asset = asset
        self._warn = warn
        self._credentials: str | None = None

    def start(self, planned: Sequence[str], *, is_full: bool) -> None:
        """Record that the asset has begun; `planned` are all assets of the run."""
        with self._database.operator() as connection:
            # Read now, because a failure must not pause the organization if it gets other credentials during the run.
            self._credentials = scheduling.credentials_digest(connection, self._organization_id)
        with self._database.organization(self._organization_id) as connection:
            sync_runs.note_started(connection, run_id=self._run_id, asset=self._asset, planned=planned, is_full=is_full)

    def succeed(self, outcome: Outcome, *, completes_sync: bool) -> None:
        """Record the asset's success. With `completes_sync` the organization's sync has succeeded, too."""
        began_at = self._finish(outcome)
        if completes_sync:
            with self._database.operator() as connection:
                scheduling.note_success(connection, self._organization_id, read_began_at=began_at, as_of=outcome.as_of)

    def fail(self, outcome: Outcome, error: ClinikoPipelineError) -> RecordedFailure:
        """Record the failure, and pause the organization if only an operator can help."""
        is_first_refusal = self._pause(error)
        description = f"{error}. {FIRST_REFUSAL}" if is_first_refusal else str(error)
        self._finish_failed(outcome, description)
        return RecordedFailure(description, error.permanent and not is_first_refusal)

    def interrupt(self, outcome: Outcome, error: BaseException) -> None:
        """Record a defect or an interruption by its class only, because its text may contain secrets."""
        self._finish_failed(outcome, f"The run was ended by {type(error).__name__}.")

    def _pause(self, error: ClinikoPipelineError) -> bool:
        """Pause the organization if necessary; return True for a first refusal, which may be temporary."""
        # A DatabaseSetupError causes no pause. It affects all organizations, and syncs continue after the correction.
        if not isinstance(error, CredentialsError | SettingsError):
            return False
        is_refusal = isinstance(error, AuthenticationError | PermissionDeniedError)
        organization_id, run_id, credentials = self._organization_id, self._run_id, self._credentials
        try:
            with self._database.operator() as connection:
                if is_refusal and not scheduling.note_refusal(
                    connection, organization_id, run_id=run_id, credentials=credentials
                ):
                    return True
                scheduling.pause(connection, organization_id, reason=str(error), run_id=run_id, credentials=credentials)
        except ClinikoPipelineError as secondary:
            self._warn(f"The organization could not be paused: {secondary}")
        return False

    def _finish(self, outcome: Outcome, error: str | None = None) -> datetime | None:
        """Record the end; return when the run began, or None if not all its assets have succeeded."""
        with self._database.organization(self._organization_id) as connection:
            return sync_runs.note_finished(
                connection,
                run_id=self._run_id,
                asset=self._asset,
                counts=outcome.counts(),
                requests=outcome.cost.requests,
                seconds_waited=outcome.cost.seconds_waited,
                error=error,
            )

    def _finish_failed(self, outcome: Outcome, error: str) -> None:
        try:
            self._finish(outcome, error)
        except ClinikoPipelineError as secondary:
            self._warn(f"The failure could not be recorded in cliniko.sync_runs: {secondary}")
