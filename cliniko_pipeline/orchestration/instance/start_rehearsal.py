"""The rehearsal at the start of the daemon's code server: what would fail is said before the first sync is due."""

import logging

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseUnavailableError
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.rehearsal import require_rehearsed
from cliniko_pipeline.runtime import Runtime

_rehearsed: set[str] = set()
"""The databases that this process has rehearsed a sync on."""


def rehearse_at_start(runtime: Runtime, log: logging.Logger) -> None:
    """Rehearse a sync, at the first call of this process; log what would fail. Raises nothing.

    A database that does not answer is tried again at the next call.
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
        return  # Whatever needs the database says so.
    except ClinikoPipelineError as error:
        # The traceback would only hide the remedy.
        log.error("Syncs will fail until this is mended (`cliniko-pipeline doctor` checks it). %s", error)  # noqa: TRY400
    _rehearsed.add(database.location)
