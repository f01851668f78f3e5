"""The journal of a run: what an asset's part of it did, in `cliniko.sync_runs` and `cliniko.scheduling`.

The journal has transactions of its own, so that a failed run is recorded too.
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

FIRST_REFUSAL = "That may pass: only if Cliniko refuses a later attempt, too, is the organization paused."


@dataclass(frozen=True)
class RequestCost:
    """The requests that an asset sent, and the difference between Cliniko's and the database's clocks."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    seconds_waited: float = 0.0
    clock_difference: ClockDifference | None = None


@dataclass
class Outcome:
    """What an asset's part of a run has done so far.

    Attributes:
        written: the rows written.
        records, rejected: the records read; None for an asset that reads none.
        rows: the organization's rows in the table.
        cost: the requests sent.
        is_recomputed: whether a computed table was computed; None for other tables.
    """

    written: Written = field(default_factory=Written)
    records: int | None = None
    rejected: int = 0
    rows: int | None = None
    cost: RequestCost = field(default_factory=RequestCost)
    is_recomputed: bool | None = None

    def add(self, batch: RecordBatch, written: Written) -> None:
        """Count a batch that was written."""
        self.written += written
        self.records = (self.records or 0) + len(batch.rows)
        self.rejected += len(batch.rejected)

    def counts(self) -> dict[str, int]:
        """Return the counts as `cliniko.sync_runs` keeps them."""
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
    """A failure as the journal describes it: one line, and whether another attempt cannot help."""

    description: str
    is_permanent: bool


class SyncJournal:
    """The entries of one asset in one organization's run.

    Args:
        warn: called with a text where a failure could not be recorded.
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
            # Before they are used: an operator may replace them while the run goes on.
            self._credentials = scheduling.credentials_digest(connection, self._organization_id)
        with self._database.organization(self._organization_id) as connection:
            sync_runs.note_started(connection, run_id=self._run_id, asset=self._asset, planned=planned, is_full=is_full)

    def succeed(self, outcome: Outcome, *, completes_sync: bool) -> None:
        """Record success; where it `completes_sync`, of the organization's sync too."""
        began_at = self._finish(outcome)
        if completes_sync:
            with self._database.operator() as connection:
                scheduling.note_success(connection, self._organization_id, read_began_at=began_at)

    def fail(self, outcome: Outcome, error: ClinikoPipelineError) -> RecordedFailure:
        """Record the failure, and pause the organization where only its operator can help."""
        is_first_refusal = self._pause(error)
        description = f"{error}. {FIRST_REFUSAL}" if is_first_refusal else str(error)
        self._finish_failed(outcome, description)
        return RecordedFailure(description, error.permanent and not is_first_refusal)

    def interrupt(self, outcome: Outcome, error: BaseException) -> None:
        """Record a defect or an interruption by its kind only: its text may hold anything."""
        self._finish_failed(outcome, f"The run was ended by {type(error).__name__}.")

    def _pause(self, error: ClinikoPipelineError) -> bool:
        """Return True instead of pausing for Cliniko's first refusal of a key, which may pass."""
        # DatabaseSetupError concerns all organizations, and they go on when it is corrected.
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
        """Return when the run began, if all of its assets have succeeded."""
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
