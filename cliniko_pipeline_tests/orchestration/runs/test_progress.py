"""The stored progress of a run, and the estimate that the API makes of it."""

from itertools import count

from cliniko_pipeline.api.syncs import _progress
from cliniko_pipeline.cliniko.events import PageRead
from cliniko_pipeline.orchestration.runs.progress import RecordedProgress
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import sync_runs
from cliniko_pipeline.sync_options import SYNC_ASSETS


def test_estimate_of_a_resumed_crawl_counts_its_own_pages(database: Database) -> None:
    """The crawl resumes at page 41 of 60. At page 50, nine pages took the time and ten are left."""
    with database.organization("clinic") as connection:
        sync_runs.note_started(
            connection, run_id="run", asset="cliniko/patients", planned=sorted(SYNC_ASSETS), is_full=True
        )
    progress = RecordedProgress(database, "clinic", "run", clock=count(step=2).__next__)
    for number in range(41, 51):
        progress(PageRead("patients", number, 60, 100, 6_000, 100))
    with database.organization("clinic") as connection:
        stored = sync_runs.sync(connection, "run")
    assert stored is not None
    assert stored.progress is not None
    # The stored times are nearly the same: let the nine pages take nine seconds.
    stored.progress.update(begun_at="2026-06-15T09:30:00+00:00", at="2026-06-15T09:30:09+00:00")
    shown = _progress(stored)
    assert shown is not None
    assert shown.seconds_left == 10
    assert shown.records_read == 1_000
