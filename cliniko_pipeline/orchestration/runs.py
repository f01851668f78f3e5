"""Runs of the main job in this very process, for the command line: the same runs the UI shows.

Such a run holds a file lock as long as its process lives, so that a later one can tell a run that was killed from one
that goes on: nobody else would ever end it, and Dagster starts no second run of an organization while one goes on.
"""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa

from cliniko_pipeline.postgres import sync_runs
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SyncOptions

JOB = "cliniko_sync"
TERMINAL_TAG = "cliniko_pipeline/terminal"
ABANDONED = "Its process ended before it did; sync the organization again."

_GOES_ON = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


@dataclass(frozen=True)
class RunResult:
    """How a run ended; `error` is one line, None where it succeeded."""

    run_id: str
    error: str | None


def run_sync(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    runtime: Runtime,
    organization_id: str,
    options: SyncOptions,
) -> RunResult:
    """Runs `cliniko_sync` for one organization, to its end. A failure is in the result, an interruption too."""
    end_abandoned_runs(instance, runtime, organization_id)
    with _marked_alive(runtime) as run_id:
        result = definitions.resolve_job_def(JOB).execute_in_process(
            instance=instance,
            partition_key=organization_id,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **run_config(options)},
            raise_on_error=False,
            run_id=run_id,
            tags={TERMINAL_TAG: "true"},
        )
    return RunResult(result.run_id, None if result.success else _first_error(result))


def run_config(options: SyncOptions) -> dict[str, object]:
    """The options as `cliniko_sync` takes them."""
    extraction = {"config": {"full": options.full, "accept_deletions": options.accept_deletions}}
    as_of = {} if options.as_of is None else {"as_of": options.as_of.isoformat()}
    return {
        "ops": {
            "cliniko__patients": extraction,
            "cliniko__appointments": extraction,
            "active_patients": {"config": as_of},
        }
    }


def end_abandoned_runs(instance: dg.DagsterInstance, runtime: Runtime, organization_id: str) -> None:
    """Marks the organization's runs as failed whose process was killed: in Dagster and in `cliniko.sync_runs`.

    Of the runs that Dagster launched, Dagster itself notices that; here only what it knows is taken over.
    """
    tags = {TERMINAL_TAG: "true", "dagster/partition": organization_id}
    for run in instance.get_runs(dg.RunsFilter(job_name=JOB, tags=tags, statuses=list(_GOES_ON))):
        if _is_abandoned(runtime, run.run_id):
            instance.report_run_failed(run, ABANDONED)
    _remove_old_marks(instance, runtime)
    with runtime.database.organization(organization_id) as connection:
        rows = connection.execute(
            sa.text("select run_id, planned, assets from cliniko.sync_runs where status = 'running'")
        )
        for row in rows.all():
            run = instance.get_run_by_id(row.run_id)
            if run is None or run.is_finished:
                unfinished = (name for name in row.planned if row.assets.get(name, {}).get("status") != "succeeded")
                sync_runs.finished(
                    connection,
                    run_id=row.run_id,
                    asset=next(unfinished, row.planned[-1]),
                    counts={},
                    requests=0,
                    seconds_waited=0.0,
                    error=ABANDONED,
                )


@contextmanager
def _marked_alive(runtime: Runtime) -> Generator[str, None, None]:
    """Gives the id of a run that counts as alive until the end of the block, or of the process."""
    run_id = str(uuid4())
    mark = _mark(runtime, run_id)
    mark.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with mark.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not mark.exists():  # taken for an old one before it was locked
                continue
            yield run_id
            # Only now: a run that an interruption left half made is found by its mark, and ended.
            mark.unlink(missing_ok=True)
            return


def _remove_old_marks(instance: dg.DagsterInstance, runtime: Runtime) -> None:
    """Those of processes that were killed before their run was made, or when it had ended."""
    for mark in _mark(runtime, "").glob("*"):
        with suppress(OSError), mark.open("r+") as file:  # gone meanwhile, or locked by a process that lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            run = instance.get_run_by_id(mark.name)
            if run is None or run.is_finished:
                mark.unlink()


def _is_abandoned(runtime: Runtime, run_id: str) -> bool:
    """False too where there is no mark: it may be a run of another machine."""
    mark = _mark(runtime, run_id)
    try:
        with mark.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # no such file, or somebody holds the lock
        return False
    return True


def _mark(runtime: Runtime, run_id: str) -> Path:
    return runtime.settings.dagster_home / "terminal_runs" / run_id


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            told = event.step_failure_data.user_failure_data
            if told is not None and told.description:
                return told.description
            error = event.step_failure_data.error
            kind = (error.cause or error).cls_name if error is not None else None
            return f"An unexpected {kind or 'error'}; the run {result.run_id} in the Dagster UI has the details."
    return f"The run {result.run_id} failed before its first step; it is in the Dagster UI."
