"""Contender that does nothing, as a run of the empty Dagster project in a separate process."""

import gc
import sys

import dagster as dg

from benchmarks.fixtures.empty_runs import JOB, PARTITIONS, definitions


def main(organization_id: str) -> int:
    """Run the empty job as the pipeline's worker runs a sync. Return 0 if the run succeeds."""
    gc.freeze()  # as the pipeline does: otherwise the end of the process takes half a second more
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(PARTITIONS, [organization_id])
        result = (
            definitions()
            .resolve_job_def(JOB)
            .execute_in_process(
                instance=instance,
                partition_key=organization_id,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )
        )
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
