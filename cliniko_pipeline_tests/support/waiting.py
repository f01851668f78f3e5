"""Waits for a state, with a generous limit: the only place where tests sleep."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_SECONDS = 60.0
"""Long enough for a machine that does other things too; a state that comes is seen within a fiftieth of a second."""


def wait_until(
    condition: Callable[[], T],
    failure: str | Callable[[], str] = "the state never came",
    seconds: float = LIMIT_SECONDS,
) -> T:
    """Return the first true result of `condition`. Raise TimeoutError with `failure` when none comes in time.

    `failure` may be a function: it is called at the end, to say what was seen instead.
    """
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{failure if isinstance(failure, str) else failure()} (waited {seconds:.0f} s)")
        time.sleep(0.02)
    return result
