"""The launcher that sends runs to Celery workers.

Do not rename this module or its class, because the `dagster.yaml` of every installation with workers refers to them.
"""

import dagster as dg
from dagster_celery.launcher import CeleryRunLauncher


class WorkerRunLauncher(CeleryRunLauncher):
    """Dagster's launcher for Celery, whose runs are judged by their heartbeats.

    Dagster would ask Celery's result backend whether a run is alive. It would then fail live runs whose results Redis
    has lost, and runs of the command line, which have no task in Celery. It would never end the runs of a worker that
    was killed. So this launcher needs no result backend.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Return False: Dagster leaves started runs to the sensor `lost_runs`."""
        return False

    @property
    def supports_resume_run(self) -> bool:
        """Return False: a lost run ends as failed, and a new run continues at its checkpoint."""
        return False

    def get_run_worker_debug_info(
        self,
        run: dg.DagsterRun,  # noqa: ARG002 (Dagster's signature)
        include_container_logs: bool | None = True,  # noqa: ARG002
    ) -> str | None:
        """Return None, because the state of the task is unknown without a result backend."""
        return None
