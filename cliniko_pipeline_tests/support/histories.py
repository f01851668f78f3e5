"""Histories of a clinic, whose steps are changes, clocks and syncs, and strategies that draw histories."""

from dataclasses import dataclass

from hypothesis import strategies as st

from cliniko_pipeline_tests.support.changing_clinics import CHANGES, NAMES, RESOURCES, Beginning, Change


@dataclass(frozen=True)
class Clock:
    """A step in which `seconds` pass and the server's clock is set ahead of the true time by `ahead` seconds."""

    seconds: int = 0
    ahead: int = 0


@dataclass(frozen=True)
class Sync:
    """A sync. It is quiet if the account does not change between its requests.

    Attributes:
        full: option of the sync.
        accept_deletions: option of the sync.
        hours: hours from the server's clock to `as_of`.
        pace: seconds between two requests.
        between_requests: steps before the second, third, ... request.
        faults: seed of transient faults.
        broken: resource and number of a page that cannot be read.
        killed_at_request: number of the request before which the process is killed.
        killed_at_commit: number of the write transaction that is killed before its commit.
    """

    full: bool = False
    accept_deletions: bool = True
    hours: int = 0
    pace: int = 0
    between_requests: tuple[tuple["Change | Clock", ...], ...] = ()
    faults: int | None = None
    broken: tuple[str, int] | None = None
    killed_at_request: int | None = None
    killed_at_commit: int | None = None

    @property
    def is_quiet(self) -> bool:
        return not any(isinstance(step, Change) for gap in self.between_requests for step in gap)


Step = Change | Clock | Sync


@dataclass(frozen=True)
class History:
    """A clinic's beginning and the steps that follow.

    `page_size` may be less than Cliniko's 100 records, so that fewer records have the same number of page boundaries.
    Without `ahead`, requests are sent one after the other, so that a history can be repeated exactly.
    """

    page_size: int
    beginning: Beginning
    steps: tuple[Step, ...]
    ahead: bool = False


clocks = st.builds(
    Clock,
    seconds=st.sampled_from([0, 1, 30, 115, 175, 300, 86_400]),
    ahead=st.sampled_from([0, -60, 60, -25, 25]),
)


def changes(kinds: list[str]) -> st.SearchStrategy[Change]:
    return st.builds(Change, st.sampled_from(kinds), st.integers(0, 250), st.integers(0, 11))


def syncs(happening: st.SearchStrategy[Change | Clock]) -> st.SearchStrategy[Sync]:
    """Draw syncs that changes, faults or kills disturb."""
    often = {
        "full": st.sampled_from([False, False, True]),
        "accept_deletions": st.sampled_from([True, True, True, False]),
        "pace": st.sampled_from([0, 1, 120]),
    }
    amid = st.lists(st.lists(happening, max_size=2).map(tuple), min_size=2, max_size=8).map(tuple)
    perhaps_amid = st.just(()) | amid
    faults = st.integers(0, 99)
    return st.one_of(
        st.builds(Sync, between_requests=amid, faults=st.none() | faults, **often),
        st.builds(Sync, between_requests=perhaps_amid, faults=st.none() | faults, **often),
        st.builds(Sync, broken=st.tuples(st.sampled_from((*RESOURCES, *NAMES)), st.integers(1, 3)), **often),
        st.builds(Sync, killed_at_request=st.integers(1, 14), between_requests=perhaps_amid, **often),
        st.builds(Sync, killed_at_commit=st.integers(1, 20), between_requests=perhaps_amid, **often),
    )


quiet_syncs = st.builds(
    Sync,
    full=st.sampled_from([False, False, False, True]),
    accept_deletions=st.sampled_from([True, True, False]),
    hours=st.sampled_from([0, 0, -2, 2]),
    pace=st.sampled_from([0, 0, 1, 7]),
    between_requests=st.lists(st.lists(clocks, max_size=1).map(tuple), max_size=3).map(tuple),
)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw a history of two parts, each with changes, disturbed syncs, more changes and a quiet sync."""
    page_size = draw(st.sampled_from([10, 10, 100]))
    sizes = st.sampled_from([0, page_size - 1, page_size + 1, 2 * page_size + page_size // 2, 3 * page_size])
    beginning = Beginning(
        patients=draw(sizes),
        individual_appointments=draw(sizes),
        group_appointments=draw(st.sampled_from([0, 0, 2, page_size + 2])),
        attendees_of_each=draw(st.integers(0, 3)),
    )
    # Only some kinds are used, so that a kind occurs several times.
    kinds = draw(st.lists(st.sampled_from(sorted(CHANGES)), min_size=5, max_size=15, unique=True))
    happening = st.one_of(changes(kinds), changes(kinds), changes(kinds), clocks)
    steps: list[Step] = []
    for least, most in ((0, 1), (1, 2)):
        steps += draw(st.lists(happening, max_size=4))
        for disturbed in draw(st.lists(syncs(happening), min_size=least, max_size=most)):
            steps += [disturbed, *draw(st.lists(happening, max_size=5))]
        steps.append(draw(quiet_syncs))
    return History(page_size, beginning, tuple(steps), ahead=draw(st.booleans()))
