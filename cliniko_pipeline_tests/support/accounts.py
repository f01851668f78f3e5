"""Sandbox accounts that tests change or hold while requests are in flight."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support.hostile_accounts import cliniko_text, individual_appointment
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS


def add_appointment(account: Account, number: int) -> None:
    """Give patient 1 an appointment that took place yesterday and is created now."""
    at = datetime.now(UTC)
    now, yesterday = (cliniko_text(moment) for moment in (at, at - timedelta(days=1)))
    record = individual_appointment(str(1000 + number), "1", yesterday, created_at=now, updated_at=now)
    account.put("individual_appointments", record)


class Hold:
    """A barrier for requests. `reached` is set when a request waits. `release` lets all requests pass."""

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
    """Hold all pages of the account except the first `after` pages, until `release` or the end of the block."""
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
