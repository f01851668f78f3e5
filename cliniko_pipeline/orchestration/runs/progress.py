"""Notes in `cliniko.sync_runs` how far a run has come, for whoever follows it from elsewhere."""

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from cliniko_pipeline.cliniko.events import Event, PageRead, Retrying, Waiting
from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import sync_runs

SECONDS_BETWEEN_NOTES = 1.0


class RecordedProgress:
    """Listens to the client of one asset's reading. Notes something a second at most, and nothing in the first one: a
    sync in which little happens costs nothing more.
    """

    def __init__(
        self, database: Database, organization_id: str, run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._organization_id = organization_id
        self._run_id = run_id
        self._clock = clock
        self._noted_at = clock()
        self._requests = 0
        self._seconds_waited = 0.0
        self._records = 0
        self._resource = ""
        self._begun_at = datetime.now(UTC)
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Takes note of the event; raises nothing."""
        with self._lock:
            match event:
                case PageRead():
                    self._count(event)
                    self._note(event)
                case Retrying():
                    self._requests += 1
                case Waiting():
                    self._seconds_waited += event.seconds

    def _count(self, page: PageRead) -> None:
        if page.resource != self._resource:
            self._resource, self._records, self._begun_at = page.resource, 0, datetime.now(UTC)
        self._requests += 1
        self._records += page.records

    def _note(self, page: PageRead) -> None:
        now = self._clock()
        if now - self._noted_at < SECONDS_BETWEEN_NOTES:
            return
        self._noted_at = now
        progress = {
            "resource": page.resource,
            "pages_read": page.number,
            "pages": page.pages,
            "records_read": self._records,
            "records": page.total_entries,
            "requests": self._requests,
            "seconds_waited": round(self._seconds_waited, 1),
            "begun_at": self._begun_at.isoformat(),
            "at": datetime.now(UTC).isoformat(),
        }
        try:
            with self._database.organization(self._organization_id, is_resumable=True) as connection:
                sync_runs.progressed(connection, run_id=self._run_id, progress=json.dumps(progress))
        except ClinikoPipelineError:
            # A sync does not fail since nobody can be told how far it is; whoever writes its records will notice, too.
            return
