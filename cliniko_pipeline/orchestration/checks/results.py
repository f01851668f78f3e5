"""What all checks share: whose they are, and that their results are kept for the alerts."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import dagster as dg
from dagster_shared.utils.warnings import PreviewWarning

from cliniko_pipeline.errors import ClinikoPipelineError, DataError
from cliniko_pipeline.orchestration.runs.failures import failure
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, note_checks
from cliniko_pipeline.runtime import Runtime


@contextmanager
def partitioned_checks() -> Generator[None, None, None]:
    """Inside, checks may have partitions without a warning: only with them is a result told for each organization, and
    Dagster warns that this may still change.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PreviewWarning)
        yield


@contextmanager
def told_as_failures() -> Generator[None, None, None]:
    """Makes our errors Dagster's failures."""
    try:
        yield
    except ClinikoPipelineError as error:
        raise failure(error) from None


def organization_of(context: dg.AssetCheckExecutionContext) -> str:
    """The organization that is checked. Raises DataError where none was chosen."""
    if not context.has_partition_key:
        # The UI's button on the asset's page knows no partitions.
        raise DataError(
            "The check is of one organization, and none was chosen: launch the job cliniko_sync or cliniko_counts with"
            " the tag dagster/partition, the organization's id."
        )
    return context.partition_key


def noted(
    context: dg.AssetCheckExecutionContext,
    runtime: Runtime,
    organization_id: str,
    results: Sequence[dg.AssetCheckResult],
) -> Sequence[dg.AssetCheckResult]:
    """The same results, kept in `cliniko.check_results`."""
    selected = list(context.selected_asset_check_keys)
    with runtime.database.operator() as connection:
        note_checks(
            connection,
            [
                CheckResult(
                    organization_id,
                    asset=(each.asset_key or selected[0].asset_key).to_user_string(),
                    name=each.check_name or selected[0].name,
                    holds=each.passed,
                    remark=each.description or "",
                    run_id=context.run.run_id,
                )
                for each in results
            ],
        )
    return results
