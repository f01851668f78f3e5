"""A pure function that decides which partitions to add and remove."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionChanges:
    """The partitions to add and to remove, in the order of their ids."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def plan_partitions(
    source: AbstractSet[str], existing: AbstractSet[str], in_flight: AbstractSet[str]
) -> PartitionChanges:
    """Plan to make `existing` equal to `source`. Partitions in `in_flight` are not removed."""
    return PartitionChanges(tuple(sorted(source - existing)), tuple(sorted(existing - source - in_flight)))
