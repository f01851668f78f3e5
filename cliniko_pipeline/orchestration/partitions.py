"""The partitions of the assets, one per organization that has Cliniko credentials."""

import dagster as dg

from cliniko_pipeline.sync_options import PARTITIONS

ORGANIZATIONS = dg.DynamicPartitionsDefinition(name=PARTITIONS)


def ensure_partitions(instance: dg.DagsterInstance, organization_ids: list[str]) -> None:
    """Add the partitions that are missing."""
    existing = set(instance.get_dynamic_partitions(PARTITIONS))
    missing = [organization_id for organization_id in organization_ids if organization_id not in existing]
    if missing:
        instance.add_dynamic_partitions(PARTITIONS, missing)
