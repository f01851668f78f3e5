"""Tests of which partitions are added and removed."""

from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.orchestration.plans.partition_changes import plan_partitions

IDS = st.frozensets(st.sampled_from("abcdef"))


@given(IDS, IDS, IDS)
def test_partitions_are_the_organizations_and_runs_in_flight(source, existing, in_flight):
    changes = plan_partitions(source, existing, in_flight)
    assert not set(changes.added) & existing
    assert set(changes.removed) <= existing
    assert (existing | set(changes.added)) - set(changes.removed) == source | (existing & in_flight)
