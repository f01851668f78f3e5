"""Which partitions are added and removed."""

from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.orchestration.partition_plans import PartitionChanges, plan_partitions

IDS = st.frozensets(st.sampled_from("abcdef"))


def test_a_source_that_cannot_be_read_changes_nothing():
    assert plan_partitions(None, {"a"}, set()) == PartitionChanges()


def test_an_empty_source_removes_everything_that_is_not_in_flight():
    assert plan_partitions(set(), {"a", "b"}, {"b"}) == PartitionChanges(removed=("a",))


@given(IDS, IDS, IDS)
def test_afterwards_there_are_the_organizations_and_what_is_still_in_flight(source, existing, in_flight):
    changes = plan_partitions(source, existing, in_flight)
    assert not set(changes.added) & existing
    assert set(changes.removed) <= existing
    assert existing | set(changes.added) - set() == existing | source
    assert (existing | set(changes.added)) - set(changes.removed) == source | (existing & in_flight)
