"""Sandbox accounts that change, or stop answering, when the test says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support.hostile_accounts import cliniko_text, individual_appointment
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS


def add_appointment(account: Account, number: int) -> None:
    """Give the account's patient 1 an appointment of yesterday, entered now."""
    at = datetime.now(UTC)
    now, yesterday = (cliniko_text(moment) for moment in (at, at - timedelta(days=1)))
    record = individual_appointment(str(1000 + number), "1", yesterday, created_at=now, updated_at=now)
    account.put("individual_appointments", record)


class Hold:
    """A stop for requests. `reached` is set when one waits; `release` lets it and all later ones pass."""

    def __init__(self) -> None:
        self.reached = Event()
        self._released = Event()

    def release(self) -> None:
        self._released.set()

    def wait(self) -> None:
        self.reached.set()
        self._released.wait(LIMIT_SECONDS)


@contextmanager
def held(account: Account, *, after: int = 0) -> Iterator[Hold]:
    """Hold the pages of the account after the first `after`, until released or the end of the block."""
    hold = Hold()
    page = account.page
    served = 0

    def held_page(*args: Any, **options: Any) -> Any:
        nonlocal served
        served += 1
        if served > after:
            hold.wait()
        return page(*args, **options)

    account.page = held_page
    try:
        yield hold
    finally:
        hold.release()
        del account.page
