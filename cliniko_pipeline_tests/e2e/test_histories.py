"""Tests of histories of a clinic, after which the tables must equal the independent computation.

In a history, the account changes between and during syncs, and the server's clock is up to a minute wrong. Syncs fail,
are killed and meet faults. After each quiet sync, the stored records must equal the account.
A failing history is printed as `History(...)`, so that it can be added here.
"""

from collections.abc import Iterable, Iterator

import dagster as dg
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from sqlalchemy.engine import URL

from cliniko_pipeline.cliniko.exchange.throttle import BudgetRegistry
from cliniko_pipeline_tests.support.changing_clinics import Beginning, Change, ServerClock
from cliniko_pipeline_tests.support.histories import Clock, History, Sync, histories
from cliniko_pipeline_tests.support.history_runs import (
    HistoryRun,
    KillableDatabase,
    Requests,
    Stored,
    World,
    run_history,
)
from cliniko_pipeline_tests.support.page_by_page import commit_each_page, small_pages
from cliniko_pipeline_tests.support.pipelines import SkippedTime, opened_pipeline

TESTS = 5
"""Number of tests with random histories, so that several processes can share the histories."""
HISTORIES_IN_A_TEST = 8


@pytest.fixture
def world(environ: dict[str, str], database_url: URL) -> Iterator[World]:
    clock, requests = ServerClock(), Requests()
    with opened_pipeline(environ, waits=SkippedTime()) as pipeline:
        database = KillableDatabase(database_url)
        pipeline.runtime.database = database
        commit_each_page(pipeline.runtime)
        pipeline.runtime._budgets = BudgetRegistry(lambda _digest: requests)
        with pipeline.sandbox([], clock=clock) as sandbox:
            yield World(pipeline, database, sandbox, clock, requests)
        database.close()


def in_each_gap(kind: str, of: Iterable[int]) -> tuple[tuple[Change], ...]:
    """Return the change for each gap between requests, each time with the next record of `of`."""
    return tuple((Change(kind, which, 1),) for which in of)


KNOWN = {
    "a clock set back, in a first sync": History(
        10, Beginning(patients=25), (Clock(0, 60), Change("patient added"), Clock(1, -60), Sync())
    ),
    "a clock set back, in a later sync": History(
        10,
        Beginning(patients=25),
        (Sync(), Clock(300, 60), Change("patients imported", value=1), Clock(1, -60), Sync()),
    ),
    "a change right after a sync, by a clock set back": History(
        10, Beginning(patients=3), (Sync(), Clock(300, 60), Sync(), Clock(0, -60), Change("patient renamed"), Sync())
    ),
    "changes of what a long sync has read": History(
        10, Beginning(patients=45), (Sync(pace=70, between_requests=in_each_gap("patient renamed", range(10))), Sync())
    ),
    "changes of what is being read": History(
        10,
        Beginning(patients=25),
        (
            Sync(),
            Clock(86_400),
            Change("patients imported", value=1),
            Sync(pace=1, between_requests=in_each_gap("patient renamed", range(25, 37))),
            Clock(86_400),
            Sync(),
        ),
    ),
    "a full sync that fails, and deleted records": History(
        10,
        Beginning(patients=7, individual_appointments=7, group_appointments=7, attendees_of_each=1),
        (
            Sync(),
            Change("group deleted for good"),
            Change("attendee deleted for good"),
            Sync(full=True, broken=("individual_appointments", 1)),
            Sync(),
        ),
    ),
    "records deleted during a full sync": History(
        10,
        Beginning(patients=45),
        (Sync(), Sync(full=True, pace=1, between_requests=in_each_gap("patient deleted for good", [0] * 12)), Sync()),
    ),
    "a clock set back during a full sync": History(
        10,
        Beginning(patients=25),
        (
            Clock(0, 60),
            Change("patient added"),
            Sync(),
            Clock(0, -30),
            # Whichever asset is read first, a patient is added right after its first page, with an earlier creation
            # time than the page.
            Sync(
                full=True,
                between_requests=(
                    (Clock(0, -45), Change("patient added")),
                    (Clock(0, -30),),
                    (),
                    (),
                    (Clock(0, -60), Change("patient added")),
                ),
            ),
            Sync(),
        ),
    ),
    "the first group, and attendees that come later": History(
        10,
        Beginning(patients=5, individual_appointments=25),
        (
            Sync(),
            Clock(86_400),
            Change("group added", value=2),
            Sync(),
            Clock(86_400),
            Sync(),
            Clock(86_400),
            Change("attendee added", 3),
            Change("attendee added again", 1, 1),
            Change("attendee cancelled, or back", 0),
            Sync(),
        ),
    ),
    "changes while a sync is killed": History(
        10,
        Beginning(individual_appointments=65),
        (
            Sync(killed_at_request=7),
            Clock(86_400),
            *(Change("individual appointment moved", number, number + 1) for number in range(0, 65, 6)),
            Sync(killed_at_request=3),
            Clock(86_400),
            Change("many individual appointments cancelled, or back", 3, 2),
            Sync(),
        ),
    ),
}


SHORT = ("a clock set back, in a first sync", "changes while a sync is killed")


@pytest.mark.parametrize(
    "history",
    [pytest.param(each, marks=[] if name in SHORT else pytest.mark.slow, id=name) for name, each in KNOWN.items()],
)
def test_known_history_leaves_the_right_tables(world: World, history: History) -> None:
    run_history(world, history)


@pytest.mark.slow
def test_crawl_killed_at_any_commit_is_resumed(world: World) -> None:
    killed = 0
    for number in range(1, 12):
        with small_pages(10), dg.DagsterInstance.ephemeral() as instance:
            run = HistoryRun(world, instance)
            run.begin(Beginning(patients=25))
            world.database.revive(commits_left=number)
            run.pipeline.materialize(run.clinic.id, "cliniko/patients")
            killed += world.database.is_dead
            world.database.revive()
            assert run.pipeline.materialize(run.clinic.id, "cliniko/patients").success
            stored = Stored(run.pipeline, run.clinic.id)
        assert stored.rows["patients"].keys() == run.clinic.records["patients"].keys()
        if killed < number:
            break
    # There are seven commits: the start of the run, the start of the crawl, three pages, the count of the rows, and the
    # end of the run.
    assert killed == 7


@pytest.mark.slow
@pytest.mark.parametrize("number", range(TESTS))
def test_random_histories_leave_the_right_tables(world: World, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=HISTORIES_IN_A_TEST,
        database=None,
        # Histories are not shrunk, because shrinking takes many more of them.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(histories())
    def run(history: History) -> None:
        run_history(world, history)

    run()


def test_probe_finds_nothing_to_do_after_a_sync(world: World) -> None:
    """In all histories, a sync after such a probe must change nothing. Here the probe is known to find nothing."""
    beginning = Beginning(patients=5, individual_appointments=10)
    run_history(world, History(10, beginning, (Sync(), Clock(600), Sync(), Clock(1), Sync())))
    assert world.unchanged > 0
