"""The asset checks that compare record counts with Cliniko's, by one request per resource."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from cliniko_pipeline.orchestration.assets.appointments import GROUPS, IN_GROUPS, INDIVIDUAL, appointments
from cliniko_pipeline.orchestration.assets.extraction import Source
from cliniko_pipeline.orchestration.assets.patients import SOURCE as PATIENTS
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.checks.results import (
    errors_as_failures,
    organization_of,
    partitioned_checks,
    store_results,
)
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.record_counts import Comparison, compare
from cliniko_pipeline.runtime import Runtime

COUNTS_AGREE = "counts_agree_with_cliniko"
COUNTS_DIFFER = "Cliniko has a different number of records"


def _counts_agree(asset: dg.AssetsDefinition, sources: Sequence[Source[Any]]) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset,
        name=COUNTS_AGREE,
        description=(
            "The number of stored records equals Cliniko's number of records created before the last sync. If the check"
            " fails, records were deleted permanently or missed, and the next sync reads the resource in full."
        ),
        partitions_def=ORGANIZATIONS,
    )
    def counts_agree_with_cliniko(
        context: dg.AssetCheckExecutionContext,
        runtime: dg.ResourceParam[Runtime],
        cliniko: dg.ResourceParam[ClinikoResource],
    ) -> dg.AssetCheckResult:
        with errors_as_failures():
            organization_id = organization_of(context)
            with runtime.database.organization_lock(organization_id):
                with cliniko.client(organization_id, context.log) as client:
                    compared = [
                        compare(runtime.database, organization_id, client, source.resource) for source in sources
                    ]
                _require_full(runtime.database, organization_id, compared)
            result = _result(compared)
            store_results(context, runtime, organization_id, [result])
            return result

    return counts_agree_with_cliniko


def _require_full(database: Database, organization_id: str, compared: Sequence[Comparison]) -> None:
    with database.organization(organization_id) as connection:
        for comparison in compared:
            if comparison.total is not None and not comparison.passed:
                crawls.require_full(connection, comparison.resource, COUNTS_DIFFER)


def _result(compared: Sequence[Comparison]) -> dg.AssetCheckResult:
    rows = [
        dg.TableRecord(
            {
                "resource": one.resource,
                "stored": "" if one.stored is None else str(one.stored.stored),
                "rejected": "" if one.stored is None else str(one.stored.rejected),
                "in Cliniko": "" if one.total is None else str(one.total),
                "remark": one.remark,
            }
        )
        for one in compared
    ]
    return dg.AssetCheckResult(
        passed=all(one.passed for one in compared),
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{one.resource}: {one.remark}" for one in compared if one.remark) or None,
        metadata={"counts": dg.MetadataValue.table(rows)},
    )


with partitioned_checks():
    COUNT_CHECKS = (_counts_agree(patients, [PATIENTS]), _counts_agree(appointments, [INDIVIDUAL, GROUPS, IN_GROUPS]))
