"""Tests of time zones and their names."""

from datetime import UTC

import pytest

from cliniko_pipeline.time_zones import iana_name, time_zone

NAMES = {
    "Australia/Sydney": "Australia/Sydney",
    "Sydney": "Australia/Sydney",
    "New York": "America/New_York",
    "Eastern Time (US & Canada)": None,
    "Louisville": None,  # There are two time zones of this name.
    "": None,
    None: None,
    "../../etc/passwd": None,
    "Mars/Olympus_Mons": None,
}


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_iana_name_is_found_by_name_or_city(text, name):
    assert iana_name(text) == name


@pytest.mark.parametrize("name", [None, "", "Australia", "../../etc/passwd", "Mars/Olympus_Mons", "a\0b"])
def test_unknown_time_zone_is_utc(name):
    assert time_zone(name) is UTC
    assert str(time_zone("Australia/Sydney")) == "Australia/Sydney"
