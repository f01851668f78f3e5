"""Tests of the shared request budget with real processes and threads, which may hang or be killed."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables.request_budgets import LONGEST_ANSWER_SECONDS, SharedRequestBudget
from cliniko_pipeline_tests.support.budget_simulations import WINDOW, Process, WouldSleep, would_sleep
from cliniko_pipeline_tests.support.databases import created_database
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS

HOUR = 3600.0
"""A window that is longer than any test."""

multiprocessing = get_context("spawn")


@contextmanager
def started(*processes: BaseProcess) -> Iterator[None]:
    """Start processes. Kill those that still run at the end."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def take_until_refused(budget: SharedRequestBudget, stack: ExitStack) -> int:
    """Start as many requests as the budget permits. Return their number."""
    for number in range(100):
        try:
            stack.enter_context(budget.request())
        except WouldSleep:
            return number
    return 100


def hold_requests(url: str, key: str, limit: int, pipe: Pipe) -> None:
    """Start the permitted requests of a process on command, report their number, and complete none of them."""
    budget = SharedRequestBudget(Database(url), key, limit, sleep=would_sleep)
    pipe.send("ready")
    pipe.recv()
    with ExitStack() as stack:
        pipe.send(take_until_refused(budget, stack))
        pipe.recv()


def receive(pipe: Pipe) -> Any:
    assert pipe.poll(LIMIT_SECONDS), "the process said nothing"
    return pipe.recv()


def test_processes_share_the_limit_and_killed_ones_return_it(clock) -> None:
    other = Process(clock, 9)
    url = clock.database.url.render_as_string(hide_password=False)
    pipes = [multiprocessing.Pipe() for _ in range(2)]
    processes = [multiprocessing.Process(target=hold_requests, args=(url, other.key, 9, pipe)) for _, pipe in pipes]
    with started(*processes):
        assert [receive(pipe) for pipe, _ in pipes] == ["ready"] * 2
        for pipe, _ in pipes:
            pipe.send("go")
        assert sum(receive(pipe) for pipe, _ in pipes) == 9
    clock.now = WINDOW + LONGEST_ANSWER_SECONDS - 0.01
    assert not other.may_send()
    clock.now += 0.02
    assert [other.may_send() for _ in range(10)] == [True] * 9 + [False]


@pytest.mark.parametrize("budgets", [1, 8])
def test_threads_that_ask_at_the_same_time_share_the_limit(module_database, budgets) -> None:
    key, together = uuid4().hex, threading.Barrier(8)
    shared = [SharedRequestBudget(module_database, key, 9, window=HOUR, sleep=would_sleep) for _ in range(budgets)]

    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> int:
            together.wait(LIMIT_SECONDS)
            return take_until_refused(shared[number % budgets], stack)

        assert sum(pool.map(work, range(8))) == 9


def test_failed_request_is_counted(module_database) -> None:
    budget = SharedRequestBudget(module_database, uuid4().hex, 2, window=HOUR)
    with pytest.raises(ZeroDivisionError), budget.request():
        raise ZeroDivisionError
    with budget.request() as waited:
        assert waited == 0.0
    assert budget.left() == 0


def test_process_that_stands_still_stops_nobody(module_database, monkeypatch) -> None:
    """The process has not read the result of its statement, so its transaction stays open as on a lost machine."""
    key = uuid4().hex
    budget, other = (SharedRequestBudget(module_database, key, 10) for _ in range(2))
    held, go_on = threading.Event(), threading.Event()
    plain = sa.engine.Connection.execute

    def execute(self: Any, *arguments: Any, **more: Any) -> Any:
        result = plain(self, *arguments, **more)
        if threading.current_thread().name.startswith("still"):
            held.set()
            go_on.wait(2 * LIMIT_SECONDS)
        return result

    def send(budget: SharedRequestBudget) -> None:
        with budget.request():
            pass

    monkeypatch.setattr(sa.engine.Connection, "execute", execute)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="still") as still,
        ThreadPoolExecutor(1) as waiting,
        ExitStack() as stack,
    ):
        stack.callback(go_on.set)
        still.submit(send, budget)
        assert held.wait(LIMIT_SECONDS)
        waiting.submit(send, other).result(LIMIT_SECONDS)


def test_database_that_is_gone_is_reported(server_url: URL, template: str) -> None:
    with created_database(server_url, template) as url:
        database = Database(url)
        budget = SharedRequestBudget(database, "key", 10)
        with budget.request():
            pass
    with pytest.raises(DatabaseUnavailableError), budget.request():
        pytest.fail("it was permitted")
    with pytest.raises(DatabaseUnavailableError):
        budget.block(5)
    with pytest.raises(DatabaseUnavailableError):
        budget.close()
    database.close()


def test_organization_role_has_no_access_to_budgets(module_database) -> None:
    with pytest.raises(ClinikoPipelineError), module_database.organization("one") as connection:
        connection.exec_driver_sql("select * from cliniko.take_requests('key', 1, 1, 60, 120, 900, 600, '{}', '{}')")
