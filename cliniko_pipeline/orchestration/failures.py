"""How an error of ours becomes a failure of Dagster's: one line, without the chain that may hold what must not be
seen, and without retries where nothing would change.
"""

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError


def is_permanent(event: dg.DagsterEvent) -> bool:
    """Whether the failure of a step is of the kind that trying again does not mend."""
    data = event.step_failure_data.user_failure_data
    return data is not None and data.metadata.get("permanent") == dg.MetadataValue.bool(True)


def failure(error: ClinikoPipelineError) -> dg.Failure:
    """The failure to raise, `from None`, in place of the error."""
    return dg.Failure(
        description=str(error),
        metadata={"error": type(error).__name__, "permanent": error.permanent},
        allow_retries=not error.permanent,
    )
