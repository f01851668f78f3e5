"""The rehearsal when the daemon's code server starts: a sync is tried and rolled back."""

import logging

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseUnavailableError
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.rehearsal import require_rehearsed
from cliniko_pipeline.runtime import Runtime

_rehearsed: set[str] = set()
"""The databases on which this process has rehearsed a sync."""


def rehearse_at_start(runtime: Runtime, log: logging.Logger) -> None:
    """Rehearse a sync at the first call in this process, and log what would fail.

    If the database is unavailable at that call, rehearse at the next one.
    """
    database = runtime.database
    if database.location in _rehearsed:
        return
    try:
        schema.require_current(database)
        schema.require_isolation(database)
        for untried in require_rehearsed(database):
            log.warning("The rehearsal of a sync is incomplete. %s", untried)
    except DatabaseUnavailableError:
        return  # The caller reads the database next, and reports the same error.
    except ClinikoPipelineError as error:
        # A traceback would hide the error's text, which says what to do.
        log.error("Syncs will fail until this is corrected (check with `cliniko-pipeline doctor`). %s", error)  # noqa: TRY400
    _rehearsed.add(database.location)
