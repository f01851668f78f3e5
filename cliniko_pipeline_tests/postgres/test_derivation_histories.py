"""Tests that, after any history of changes and syncs, the tables equal a full computation."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import PRACTITIONERS
from cliniko_pipeline_tests.support.derived_clinics import NOW, DerivedClinic
from cliniko_pipeline_tests.support.properties import examples

NAMES = ("Ann Lee", "Bo Fam", "ANN  lee", "Cy Gross", "Ann Lee ")
EMAILS = (None, "ann@example.org", " ANN@example.org", "bo@example.org")
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
# Starts of appointments relative to now. They are around the start of the window, around now, and far from both.
STARTS = (-60 * DAY, SECOND - 60 * DAY, -59 * DAY, -30 * DAY - SECOND, -7 * DAY, -HOUR, 0 * DAY, SECOND, HOUR, 2 * DAY)
OF_PATIENTS = st.sampled_from(["1", "2", "3", "4"])
NUMBERS = st.integers(1, 6).map(str)
TIMES = st.sampled_from([*STARTS, 30 * DAY, -400 * DAY])
ENDS = st.sampled_from([None, None, NOW])
SWAP = """
update public.contacts set name = case name when 'Ann Lee' then 'Bo Fam' else 'Ann Lee' end
where organization_id = :organization_id and name in ('Ann Lee', 'Bo Fam')
"""

STEPS: dict[str, tuple[Callable[..., object], tuple[st.SearchStrategy[Any], ...]]] = {
    "individual": (
        lambda clinic, number, patient, start, ended, missed: clinic.appointment(
            number, "individual", NOW + start, patient_id=patient, cancelled_at=ended, did_not_arrive=missed
        ),
        (NUMBERS, OF_PATIENTS, TIMES, ENDS, st.booleans()),
    ),
    "group": (
        lambda clinic, number, start, ended: clinic.appointment(number, "group", NOW + start, archived_at=ended),
        (NUMBERS, TIMES, ENDS),
    ),
    "attendee": (
        lambda clinic, number, booking, patient, ended, arrived: clinic.attendee(
            number, booking, patient, cancelled_at=ended, arrived=arrived
        ),
        (NUMBERS, NUMBERS, OF_PATIENTS, ENDS, st.sampled_from([None, True, False])),
    ),
    "patient": (
        lambda clinic, number, name, email, ended, into: clinic.patient(
            number, first_name=name, last_name=None, email=email, archived_at=ended, merged_into_id=into
        ),
        (OF_PATIENTS, st.sampled_from(NAMES), st.sampled_from(EMAILS), ENDS, OF_PATIENTS | st.just("gone") | st.none()),
    ),
    "contact": (
        DerivedClinic.contact,
        (st.integers(1, 5), st.sampled_from(NAMES), st.sampled_from(EMAILS), OF_PATIENTS | st.none()),
    ),
    "practitioner": (
        lambda clinic, name: clinic.upsert(PRACTITIONERS, {"id": "1", "name": name, "updated_at": NOW}),
        (st.sampled_from(["Dr No", "Dr Who"]),),
    ),
    "time": (lambda clinic, passed: setattr(clinic, "as_of", NOW + passed), (TIMES,)),
    "a little time": (
        lambda clinic, passed: setattr(clinic, "as_of", clinic.as_of + passed),
        (st.sampled_from([SECOND, HOUR, 25 * HOUR, 30 * DAY]),),
    ),
    "window": (lambda clinic, days: setattr(clinic, "window", days * DAY), (st.sampled_from([60, 30]),)),
    "no-shows": (lambda clinic, counted: setattr(clinic, "count_no_shows", counted), (st.booleans(),)),
    "by hand": (
        DerivedClinic.execute,
        (
            st.sampled_from(
                [
                    "delete from cliniko.appointments where id = '1'",
                    "delete from cliniko.attendees",
                    "update cliniko.patients set deleted_at = now() where id = '2'",
                    "delete from cliniko.contact_mapping where patient_id = '1'",
                    "delete from public.active_patients",
                    "delete from public.contacts where organization_id = :organization_id and name = 'Ann Lee'",
                    SWAP,
                ]
            ),
        ),
    ),
    "killed after the mapping": (lambda clinic: clinic.derive(), ()),
    "sync": (DerivedClinic.sync, ()),
    "full sync": (lambda clinic: clinic.sync(full=True), ()),
}
# Syncs and time are drawn most often, because they matter most.
OFTEN = ["sync"] * 6 + ["a little time"] * 3 + ["individual", "attendee", "contact"]
HISTORIES = st.lists(
    st.sampled_from([*STEPS, *OFTEN]).flatmap(lambda kind: st.tuples(st.just(kind), *STEPS[kind][1])),
    min_size=3,
    max_size=25,
)


@settings(max_examples=examples(4, 100), suppress_health_check=list(HealthCheck))
@given(HISTORIES)
def test_history_of_changes_equals_a_full_computation(
    module_database: Database, history: list[tuple[Any, ...]]
) -> None:
    """Each sync asserts that the tables are right."""
    clinic = DerivedClinic(module_database)
    for number, name in enumerate(NAMES[:4], start=1):
        clinic.patient(str(number), first_name=name, last_name=None)
        clinic.contact(number, name)
    clinic.appointment("1", "individual", NOW - DAY, patient_id="1")
    clinic.appointment("2", "group", NOW + HOUR)
    clinic.attendee("1", "2", "2", arrived=False)
    for kind, *values in history:
        STEPS[kind][0](clinic, *values)
    clinic.sync()
    assert not clinic.sync()
