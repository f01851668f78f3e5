"""Functions that all asset checks use for partitions, errors and stored results."""

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
    """Suppress Dagster's preview warning about partitioned checks while the block defines them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PreviewWarning)
        yield


@contextmanager
def errors_as_failures() -> Generator[None, None, None]:
    """Raise errors of this package as Dagster's failures."""
    try:
        yield
    except ClinikoPipelineError as error:
        raise failure(error) from None


def organization_of(context: dg.AssetCheckExecutionContext) -> str:
    """Return the organization to check. Raise DataError if the run has no organization."""
    if not context.has_partition_key:
        # The asset's page in the UI has a button that launches the check without a partition.
        raise DataError(
            "The check needs an organization, and the run has none: launch the job cliniko_sync or cliniko_counts with"
            " the tag dagster/partition set to the organization's id."
        )
    return context.partition_key


def store_results(
    context: dg.AssetCheckExecutionContext,
    runtime: Runtime,
    organization_id: str,
    results: Sequence[dg.AssetCheckResult],
) -> None:
    """Store the results in `cliniko.check_results`, which alerts and `status` read."""
    selected = next(iter(context.selected_asset_check_keys))
    stored = [
        CheckResult(
            organization_id,
            asset=(result.asset_key or selected.asset_key).to_user_string(),
            name=result.check_name or selected.name,
            holds=result.passed,
            remark=result.description or "",
            run_id=context.run.run_id,
        )
        for result in results
    ]
    with runtime.database.operator() as connection:
        note_checks(connection, stored)
