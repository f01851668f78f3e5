"""`cliniko-pipeline worker`: a Celery worker that executes the runs of Dagster's daemon."""

import os

import click

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.sync_options import LONG_QUEUE

QUEUES = ("syncs", LONG_QUEUE)


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=lambda: 2 * (os.cpu_count() or 1),
    show_default="twice the number of cores",
    help="Runs at the same time.",
)
@click.option(
    "--queue",
    "queues",
    type=click.Choice(QUEUES),
    multiple=True,
    default=QUEUES,
    show_default="both",
    help="Queue to take runs from. May be repeated.",
)
def worker(concurrency: int, queues: tuple[str, ...]) -> None:
    """Execute runs that the daemon sends over Celery, until SIGTERM.

    SIGTERM lets the present runs end first.
    """
    try:
        from cliniko_pipeline.orchestration.celery.worker import run_worker, worker_application  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"celery", "dagster_celery"}:
            raise
        raise click.ClickException(
            "Celery is not installed: install the package with its extra, as in `pip install '.[celery]'`."
        ) from None
    from cliniko_pipeline.orchestration.instance.home import open_instance  # noqa: PLC0415

    with session() as runtime:
        with open_instance(runtime) as instance:
            application = worker_application(instance)
        runtime.database.close()
        run_worker(application, queues, concurrency, f"worker-{os.getpid()}")
