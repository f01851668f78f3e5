"""Whether the numbers of records agree with Cliniko's: one request a resource."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.errors import FieldRefusedError
from cliniko_pipeline.orchestration.assets.appointments import GROUPS, IN_GROUPS, INDIVIDUAL, appointments
from cliniko_pipeline.orchestration.assets.extraction import Source
from cliniko_pipeline.orchestration.assets.patients import SOURCE as PATIENTS
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.checks.results import (
    noted,
    organization_of,
    partitioned_checks,
    told_as_failures,
)
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.resources import ClinikoResource
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.crawls import StoredCount
from cliniko_pipeline.runtime import Runtime

COUNTS_DIFFER = "Cliniko has another number of records"


@dataclass(frozen=True)
class Comparison:
    """A resource's number of records here and in Cliniko; `total` is None where they were not compared.

    `remark` says why not, or what is wrong; `holds` is whether the claim does, as far as it can.
    """

    resource: str
    holds: bool
    remark: str = ""
    stored: StoredCount | None = None
    total: int | None = None


def _counts_agree(asset: dg.AssetsDefinition, sources: Sequence[Source[Any]]) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset,
        name="counts_agree_with_cliniko",
        description=(
            "Cliniko has as many records as are stored, of those created before the last sync: one request a resource."
            " If not, records were deleted for good or missed, and the next sync is a full one."
        ),
        partitions_def=ORGANIZATIONS,
    )
    def counts_agree_with_cliniko(
        context: dg.AssetCheckExecutionContext,
        runtime: dg.ResourceParam[Runtime],
        cliniko: dg.ResourceParam[ClinikoResource],
    ) -> dg.AssetCheckResult:
        with told_as_failures():
            organization_id = organization_of(context)
            with runtime.database.turn(organization_id):
                with cliniko.client(organization_id, context.log) as client:
                    found = [_compare(runtime.database, organization_id, client, source) for source in sources]
                _require_full(runtime.database, organization_id, found)
            (result,) = noted(context, runtime, organization_id, [_result(found)])
            return result

    return counts_agree_with_cliniko


def _compare(database: Database, organization_id: str, client: ClinikoClient, source: Source[Any]) -> Comparison:
    name = source.resource.name
    with database.organization(organization_id) as connection:
        state = crawls.states(connection).get(name)
        if state is None or not state.is_complete or state.cursor is None:
            return Comparison(name, holds=False, remark="not read to the end; sync it first")
        if state.is_partial:
            return Comparison(name, holds=True, remark="not read whole: there was no group appointment")
        stored = crawls.stored_count(connection, state)
    client.refusals.remember(name, state.refused_fields)
    try:
        total = client.total_entries(source.resource, created_before=state.cursor)
    except FieldRefusedError as error:
        return Comparison(name, holds=True, remark=f"not known, since {error}", stored=stored)
    agrees = stored.agrees_with(total)
    return Comparison(name, agrees, "" if agrees else "the next sync reads it whole", stored, total)


def _require_full(database: Database, organization_id: str, found: Sequence[Comparison]) -> None:
    with database.organization(organization_id) as connection:
        for each in found:
            if each.total is not None and not each.holds:
                crawls.require_full(connection, each.resource, COUNTS_DIFFER)


def _result(found: Sequence[Comparison]) -> dg.AssetCheckResult:
    rows = [
        dg.TableRecord(
            {
                "resource": each.resource,
                "stored": "" if each.stored is None else str(each.stored.stored),
                "set aside": "" if each.stored is None else str(each.stored.set_aside),
                "in Cliniko": "" if each.total is None else str(each.total),
                "remark": each.remark,
            }
        )
        for each in found
    ]
    return dg.AssetCheckResult(
        passed=all(each.holds for each in found),
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{each.resource}: {each.remark}" for each in found if each.remark) or None,
        metadata={"counts": dg.MetadataValue.table(rows)},
    )


with partitioned_checks():
    COUNTS = (_counts_agree(patients, [PATIENTS]), _counts_agree(appointments, [INDIVIDUAL, GROUPS, IN_GROUPS]))
