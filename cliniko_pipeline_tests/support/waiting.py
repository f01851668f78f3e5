"""Waits for a state. Only this module sleeps in tests."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_SECONDS = 60.0
"""Default time limit, long enough for a busy machine."""


def wait_until(
    condition: Callable[[], T],
    failure: str | Callable[[], str] = "the state never came",
    seconds: float = LIMIT_SECONDS,
) -> T:
    """Return the first true result of `condition`. Raise TimeoutError with `failure` if there is none in time.

    `failure` may be a function that describes the last state.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{failure if isinstance(failure, str) else failure()} (waited {seconds:.0f} s)")
        time.sleep(0.02)
    return result
