"""The progress of a run, stored in `cliniko.sync_runs` for the HTTP API and the page."""

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from cliniko_pipeline.cliniko.events import Event, PageRead, Retrying, Waiting
from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import sync_runs

SECONDS_BETWEEN_UPDATES = 1.0


class RecordedProgress:
    """A listener that stores the progress of one client's crawls.

    Progress is stored at most once per second, and not in the first second after the client was made.
    """

    def __init__(
        self, database: Database, organization_id: str, run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._organization_id = organization_id
        self._run_id = run_id
        self._clock = clock
        self._stored_at = clock()
        self._requests = 0
        self._seconds_waited = 0.0
        self._records = 0
        self._resource = ""
        self._first_page = 1
        self._started_at = datetime.now(UTC)
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Count the event, and store the progress if that is due. Raise nothing."""
        with self._lock:
            match event:
                case PageRead():
                    self._count(event)
                    self._store(event)
                case Retrying():
                    self._requests += 1
                case Waiting():
                    self._seconds_waited += event.seconds

    def _count(self, page: PageRead) -> None:
        if page.resource != self._resource:
            self._resource, self._records, self._started_at = page.resource, 0, datetime.now(UTC)
            self._first_page = page.number
        self._requests += 1
        self._records += page.records

    def _store(self, page: PageRead) -> None:
        now = self._clock()
        if now - self._stored_at < SECONDS_BETWEEN_UPDATES:
            return
        self._stored_at = now
        progress = {
            "resource": page.resource,
            "first_page": self._first_page,
            "pages_read": page.number,
            "pages": page.pages,
            "records_read": self._records,
            "records": page.total_entries,
            "requests": self._requests,
            "seconds_waited": round(self._seconds_waited, 1),
            "begun_at": self._started_at.isoformat(),
            "at": datetime.now(UTC).isoformat(),
        }
        try:
            with self._database.organization(self._organization_id, is_resumable=True) as connection:
                sync_runs.note_progress(connection, run_id=self._run_id, progress=json.dumps(progress))
        except ClinikoPipelineError:
            # An error here must not end the sync. If the error persists, the next write of records raises it.
            return
