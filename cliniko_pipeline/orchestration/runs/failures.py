"""Failures of a run's steps. Chained errors are left out, because they may contain secrets."""

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError, LostMatchesError


def is_permanent(event: dg.DagsterEvent) -> bool:
    """Return whether the step's error is permanent, which means that a retry would fail, too."""
    data = event.step_failure_data.user_failure_data
    return data is not None and data.metadata.get("permanent") == dg.MetadataValue.bool(True)


def reason_of(event: dg.DagsterEvent) -> str:
    """Return the reason of the step's failure in one line.

    The text of an unexpected error may contain secrets, so only the error's class is shown.
    """
    data = event.step_failure_data
    failure_data = data.user_failure_data
    if failure_data is not None and failure_data.description:
        return failure_data.description
    if is_failed_check(event):
        return "A blocking check failed: see the run or `cliniko-pipeline status`."
    kind = (data.error.cause or data.error).cls_name if data.error is not None else None
    return f"An unexpected {kind or 'error'}: see the run."


def is_failed_check(event: dg.DagsterEvent) -> bool:
    """Return whether the step failed because of a blocking check or a LostMatchesError."""
    data = event.step_failure_data
    if data.user_failure_data is not None:
        return data.user_failure_data.metadata.get("error") == dg.MetadataValue.text(LostMatchesError.__name__)
    error = data.error
    return error is not None and error.cls_name == "DagsterAssetCheckFailedError"


def failure(
    error: ClinikoPipelineError, *, description: str | None = None, is_permanent: bool | None = None
) -> dg.Failure:
    """Return a Dagster failure, to be raised `from None` in place of the error.

    `description` replaces the error's text. `is_permanent` replaces the error's `permanent`, but only in the metadata.
    """
    return dg.Failure(
        description=description or str(error),
        metadata={
            "error": type(error).__name__,
            "permanent": error.permanent if is_permanent is None else is_permanent,
        },
        allow_retries=not error.permanent,
    )
