"""Tests of differences between clocks, as texts and as errors."""

from datetime import timedelta

import pytest

from cliniko_pipeline.clocks import CLINIKO, MACHINE, ClockDifference
from cliniko_pipeline.errors import ClockSkewError

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("ahead", "is_notable", "words"),
    [
        (timedelta(seconds=-20), False, "20 seconds behind"),
        (timedelta(minutes=5), False, "5 minutes ahead of"),
        (timedelta(minutes=-6), True, "6 minutes behind"),
        (timedelta(hours=-1), True, "60 minutes behind"),
    ],
)
def test_allowed_difference_is_described(ahead: timedelta, is_notable: bool, words: str) -> None:
    difference = ClockDifference(MACHINE, ahead, HOUR)
    difference.require_allowed()
    assert difference.is_notable == is_notable
    assert str(difference) == f"This machine's clock is {words} the database's"


@pytest.mark.parametrize(
    ("clock", "ahead", "words"),
    [(MACHINE, timedelta(days=-365), "365 days behind"), (CLINIKO, HOUR + timedelta(seconds=1), "60 minutes ahead of")],
)
def test_difference_above_the_limit_is_refused(clock: str, ahead: timedelta, words: str) -> None:
    with pytest.raises(ClockSkewError, match=f"{clock} is {words} the database's, more than the 60 minutes allowed"):
        ClockDifference(clock, ahead, HOUR).require_allowed()
