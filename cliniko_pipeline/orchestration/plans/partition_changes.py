"""Which partitions are to be added and removed. Pure: decides, does nothing."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionChanges:
    """What makes the partitions equal to the organizations, in the order of the ids."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def plan_partitions(
    source: AbstractSet[str] | None, existing: AbstractSet[str], in_flight: AbstractSet[str]
) -> PartitionChanges:
    """Decides from the organizations with active credentials, the partitions there are, and those that a run or a
    backfill still needs: these stay. A source that could not be read (None) is not an empty one, and changes nothing.
    """
    if source is None:
        return PartitionChanges()
    return PartitionChanges(tuple(sorted(source - existing)), tuple(sorted(existing - source - in_flight)))
