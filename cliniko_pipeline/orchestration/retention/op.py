"""The op that prunes in a Dagster run."""

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.retention.pruning import Prune, Pruned
from cliniko_pipeline.orchestration.runs.failures import failure
from cliniko_pipeline.postgres.operator_tables.retention import prune_lock
from cliniko_pipeline.runtime import Runtime

SECONDS_BETWEEN_LOG_LINES = 60.0


@dg.op(description="Deletes old runs, events and history in small transactions.")  # pyright: ignore[reportUnknownMemberType] (Dagster's own)
def prune(context: dg.OpExecutionContext, runtime: dg.ResourceParam[Runtime]) -> None:
    """Prune, unless another process does."""
    last = runtime.elapsed()

    def log_progress(pruned: Pruned) -> None:
        nonlocal last
        if runtime.elapsed() - last >= SECONDS_BETWEEN_LOG_LINES:
            last = runtime.elapsed()
            context.log.info("Deleted so far: %s", _described(pruned))

    try:
        with prune_lock(runtime.database) as is_free:
            if not is_free:
                context.log.info("Another process prunes, so this run has nothing to do.")
                return
            pruning = Prune(runtime, context.instance)
            deleted = pruning.run(log_progress)
            sizes = pruning.sizes()
    except ClinikoPipelineError as error:
        raise failure(error) from None
    context.log.info("Deleted: %s", ", ".join(map(_described, deleted)))
    context.add_output_metadata(
        {
            **{pruned.kind.replace(" ", "_"): pruned.rows for pruned in deleted},
            "bytes_of_pipeline": sizes.pipeline,
            **({} if sizes.dagster is None else {"bytes_of_dagster": sizes.dagster}),
        }
    )


def _described(pruned: Pruned) -> str:
    return f"{pruned.rows:,} {pruned.kind}"
