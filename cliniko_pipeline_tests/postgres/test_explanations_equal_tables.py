"""Tests that explanations equal the tables that the pipeline's queries compute from the same records."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.reads.explanations.attendances import Counts
from cliniko_pipeline.postgres.reads.explanations.explanation import Explanation, explain
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline.sandbox.accounts.demo import demo_organizations
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import Account, accounts, contact, hand_written_account
from cliniko_pipeline_tests.support.pipelines import errors_of, opened_pipeline
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.stored_clinics import AS_OF, RULES, WITHOUT_NO_SHOWS, StoredClinic


@settings(
    max_examples=examples(2, 20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(accounts(bad_records=True))
@example(hand_written_account())
def test_explanations_of_hostile_accounts_equal_tables(module_database: Database, account: Account) -> None:
    """A second organization has a contact for every patient, so that its table has the counts of all patients."""
    for rules in (RULES, WITHOUT_NO_SHOWS):
        own, all_named = StoredClinic(module_database), StoredClinic(module_database)
        for each in (own, all_named):
            each.store(**account.records)
        with own.database.organization(own.id) as connection:
            rows = connection.execute(sa.text("select patient_id, person_id from cliniko.persons()")).all()
        persons = [row.patient_id for row in rows if row.patient_id == row.person_id]
        own.add_contacts(*account.contacts)
        all_named.add_contacts(*(contact(n, cliniko_patient_id=each) for n, each in enumerate(persons)))
        for each in (own, all_named):
            each.compute(account.as_of, rules)
            assert_equal_to_the_tables(each, [row.patient_id for row in rows], account.as_of, rules)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("old-mill-physio", 1),
        pytest.param("surf-rehab", 2, marks=pytest.mark.slow),
    ],
)
def test_explanations_of_the_demo_equal_tables(module_database: Database, tmp_path: Path, name: str, step: int) -> None:
    """The real job syncs the clinic. Every `step`-th patient is explained."""
    (demo,) = (each for each in demo_organizations(AS_OF) if each.id == name)
    with (
        opened_pipeline(environment(module_database.url, tmp_path)) as pipeline,
        pipeline.sandbox([demo.account]) as sandbox,
    ):
        pipeline.add_organization(demo.id, sandbox, demo.account)
        pipeline.add_contacts([row | {"id": UUID(row["id"])} for row in demo.contacts])
        result = pipeline.sync(demo.id, AS_OF)
        assert result.success, errors_of(result)
    clinic = StoredClinic(module_database)
    clinic.id = name
    with clinic.database.organization(name) as connection:
        ids = list(connection.execute(sa.text("select id from cliniko.patients order by id")).scalars())
    explained = assert_equal_to_the_tables(clinic, ids[::step], AS_OF, are_all=step == 1)
    assert {(each.as_of_source, each.as_of, each.changed_after) for each in explained} == {
        ("active_patients", AS_OF, None)
    }
    assert {each.listing for each in explained} >= {"listed", "not_active", "ambiguous"}


def assert_equal_to_the_tables(
    clinic: StoredClinic, patient_ids: Iterable[str], as_of: datetime, rules: Rules = RULES, *, are_all: bool = True
) -> list[Explanation]:
    """Assert that the explanation of every patient equals the computed tables. Return the explanations."""
    with clinic.database.organization(clinic.id) as connection:
        mapping = {row.patient_id: row for row in connection.execute(sa.text("select * from cliniko.contact_mapping"))}
        rows = {row.contact_id: row for row in connection.execute(sa.text("select * from public.active_patients"))}
        persons = dict(connection.execute(sa.text("select patient_id, person_id from cliniko.persons()")).all())
        # An empty table does not tell the instant.
        explained = [explain(connection, each, rules, None if rows else as_of) for each in patient_ids]
    listed: set[UUID] = set()
    for found in explained:
        assert found is not None
        assert found.person.id == persons[found.patient_id]
        stored = mapping.get(found.person.id)
        _assert_equal_to_the_mapping(found, stored)
        row = rows.get(stored.contact_id) if stored is not None else None
        assert (row is not None) == (found.is_active and stored is not None and stored.status == "matched")
        assert found.listing in ({"listed"} if row else {"not_active", "unmatched", "ambiguous"})
        assert (found.listing == "not_active") == (not found.is_active)
        if row is not None:
            listed.add(row.contact_id)
            last = row.last_appointment_date and row.last_appointment_date.replace(tzinfo=UTC)
            assert found.counts == Counts(
                row.recent_appointment_count, row.upcoming_appointment_count, row.total_appointment_count, last
            )
            for window, details in (("recent", row.recent_appointments), ("upcoming", row.upcoming_appointments)):
                counted = {(a.kind, a.id) for a in found.attendances if a.counts and a.window == window}
                assert counted == {(each["kind"], each["id"]) for each in details}
    assert listed == set(rows) or not are_all
    return [found for found in explained if found is not None]


def _assert_equal_to_the_mapping(found: Explanation, stored: Any) -> None:
    match = found.match
    assert match.stored == match.now
    if stored is None:
        assert match.stored is None
        assert found.person.record is None
        return
    assert match.stored is not None
    for column in ("status", "method", "contact_id", "candidate_count"):
        assert getattr(match.stored, column) == getattr(stored, column)
    *earlier, last = match.passes
    assert all(each.outcome in {"no_candidate", "not_taken"} for each in earlier)
    assert last.outcome == stored.status or (stored.status == "unmatched" and len(match.passes) == 3)
    free = [each for each in last.candidates if each.state == "free"]
    if stored.status == "matched":
        assert stored.contact_id in {each.id for each in free}
        assert last.reason != "only_pair" or (len(free), last.other_patient_ids) == (1, ())
    if stored.status == "ambiguous":
        assert len(free) == stored.candidate_count
    for each in match.passes:
        if each.outcome == "no_candidate":
            assert all(candidate.state != "free" for candidate in each.candidates)
            assert (each.reason == "none_free") == bool(each.candidates)
