"""How the assets are partitioned: by organization, one partition for each that has Cliniko credentials."""

import dagster as dg

ORGANIZATIONS = dg.DynamicPartitionsDefinition(name="organizations")


def ensure_partitions(instance: dg.DagsterInstance, organization_ids: list[str]) -> None:
    """Makes a partition for each organization that has none yet."""
    existing = set(instance.get_dynamic_partitions("organizations"))
    missing = [organization_id for organization_id in organization_ids if organization_id not in existing]
    if missing:
        instance.add_dynamic_partitions("organizations", missing)
