from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.instants import parse_instant


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31)),  # noqa: DTZ001 (made aware below)
    st.integers(min_value=-(23 * 60 + 59), max_value=23 * 60 + 59),
)
def test_instant_with_an_offset_is_read_as_utc(moment: datetime, minutes: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert parse_instant(aware.isoformat()) == aware
    assert parse_instant(aware.isoformat()).tzinfo == UTC
    assert parse_instant(f"{moment.isoformat()}Z") == moment.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-01-31", "2026-01-31T09:30:00", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00+23:59", "1\n2"],
)
def test_other_text_is_refused_in_one_line_with_an_example(text: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        parse_instant(text)
    assert "\n" not in str(refused.value)
    assert "Z" in str(refused.value)
