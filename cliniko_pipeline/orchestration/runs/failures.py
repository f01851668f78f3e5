"""How an error of ours becomes a failure of Dagster's: one line, without the chain that may hold what must not be
seen, and without retries where nothing would change.
"""

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError, LostMatchesError


def is_permanent(event: dg.DagsterEvent) -> bool:
    """Whether the failure of a step is of the kind that trying again does not mend."""
    data = event.step_failure_data.user_failure_data
    return data is not None and data.metadata.get("permanent") == dg.MetadataValue.bool(True)


def reason_of(event: dg.DagsterEvent) -> str:
    """What the failure of a step says, in one line; of a defect only its kind, since its text may hold anything."""
    data = event.step_failure_data
    told = data.user_failure_data
    if told is not None and told.description:
        return told.description
    if is_failed_check(event):
        return "A check that must hold does not; the run and `cliniko-pipeline status` say which."
    kind = (data.error.cause or data.error).cls_name if data.error is not None else None
    return f"An unexpected {kind or 'error'}; the run has the details."


def is_failed_check(event: dg.DagsterEvent) -> bool:
    """Whether the step is a check that does not hold and keeps the run from going on, or fails in place of one."""
    data = event.step_failure_data
    if data.user_failure_data is not None:
        return data.user_failure_data.metadata.get("error") == dg.MetadataValue.text(LostMatchesError.__name__)
    error = data.error
    return error is not None and error.cls_name == "DagsterAssetCheckFailedError"


def failure(
    error: ClinikoPipelineError, *, description: str | None = None, is_permanent: bool | None = None
) -> dg.Failure:
    """Return the failure to raise, `from None`, in place of the error.

    `description` and `is_permanent` replace the error's own where more is known.
    """
    return dg.Failure(
        description=description or str(error),
        metadata={
            "error": type(error).__name__,
            "permanent": error.permanent if is_permanent is None else is_permanent,
        },
        allow_retries=not error.permanent,
    )
