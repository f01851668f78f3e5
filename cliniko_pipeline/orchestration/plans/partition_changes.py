"""The partitions to add and remove. Pure functions."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionChanges:
    """The changes that make the partitions equal the organizations, in the order of the ids."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def plan_partitions(
    source: AbstractSet[str], existing: AbstractSet[str], in_flight: AbstractSet[str]
) -> PartitionChanges:
    """Compare the active organizations with the partitions. Partitions that a run or a backfill needs stay."""
    return PartitionChanges(tuple(sorted(source - existing)), tuple(sorted(existing - source - in_flight)))
