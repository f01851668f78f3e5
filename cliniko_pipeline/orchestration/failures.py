"""How an error of ours becomes a failure of Dagster's: one line, without the chain that may hold what must not be
seen, and without retries where nothing would change.
"""

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError


def failure(error: ClinikoPipelineError) -> dg.Failure:
    """The failure to raise, `from None`, in place of the error."""
    return dg.Failure(
        description=str(error),
        metadata={"error": type(error).__name__, "permanent": error.permanent},
        allow_retries=not error.permanent,
    )
