"""A sync in which nothing has changed: what it reads of the tables, and when it computes and checks all the same."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from cliniko_pipeline.orchestration import io_managers
from cliniko_pipeline.orchestration.assets.active_patients import ActivePatientsConfig, active_patients
from cliniko_pipeline.orchestration.assets.contact_mapping import contact_mapping
from cliniko_pipeline.orchestration.checks.claims import UNCHANGED
from cliniko_pipeline.orchestration.values import TableQuery
from cliniko_pipeline.postgres import derivations
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.tables import WATCHED
from cliniko_pipeline.sandbox.generated import generated_account
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.hostile_accounts import contact
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of, materializations_of

ID = "clinic"
NOW = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
COMPUTED = ("contact_mapping", "active_patients")
FIRST_UNCHANGED = [False, True]
RECKONED = (
    "every_active_patient_with_a_contact_is_stored_once",
    "no_contact_is_used_twice",
    "unmatched_share_is_below_the_limit",
)
PATIENTS, APPOINTMENTS = 400, 2_500
# What only the large computations and countings say.
LARGE = (
    "cliniko.persons()",
    "cliniko.organization_contacts()",
    'count(*) from "cliniko"',
    "from cliniko.contact_mapping as mapping",
    "appointment.starts_at",
)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now.timestamp()


class Clinic:
    def __init__(self, pipeline: PipelineUnderTest, sandbox: Sandbox, account: Any, clock: Clock) -> None:
        self.pipeline = pipeline
        self.sandbox = sandbox
        self.account = account
        self.clock = clock

    def sync(self, *, hours: float = 1, full: bool = False) -> dg.ExecuteInProcessResult:
        """Some time later; a sync reads what changed since the one before."""
        self.clock.now += timedelta(hours=hours)
        result = self.pipeline.sync(ID, self.clock.now, full=full)
        assert result.success, errors_of(result)
        return result

    def change(self, resource: str, number: int, **given: Any) -> None:
        record = list(self.account.records[resource].values())[number]
        now = f"{self.clock.now + timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}"
        self.account.put(resource, dict(record) | {"updated_at": now} | given)


@pytest.fixture
def clinic(pipeline: PipelineUnderTest) -> Iterator[Clinic]:
    account = generated_account(PATIENTS, APPOINTMENTS, 3, NOW, 0.1)
    clock = Clock()
    pipeline.add_contacts(
        [contact(n, ID, cliniko_patient_id=each) for n, each in enumerate(account.records["patients"]) if n % 4]
    )
    with pipeline.sandbox([account], clock=clock) as sandbox:
        pipeline.add_organization(ID, sandbox, account)
        clinic = Clinic(pipeline, sandbox, account, clock)
        clinic.sync()
        assert computed(clinic.sync()) == FIRST_UNCHANGED
        yield clinic


def computed(result: dg.ExecuteInProcessResult) -> list[bool]:
    told = materializations_of(result)
    return [told[name]["computed_again"] for name in COMPUTED]


def kept(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Of each check that reckons, whether it took over what was found earlier; all hold."""
    evaluations = result.get_asset_check_evaluations()
    assert all(each.passed for each in evaluations)
    return {each.check_name: each.metadata[UNCHANGED].value for each in evaluations if each.check_name in RECKONED}


@contextmanager
def statements(clinic: Clinic) -> Iterator[list[str]]:
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        found.append(" ".join(statement.split()))

    engine = clinic.pipeline.database._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


def rows_read(clinic: Clinic) -> dict[str, int]:
    """How many rows of each table were ever looked at, in whatever way. Sessions that have ended have told of all."""
    clinic.pipeline.database.close()
    with clinic.pipeline.database.operator() as connection:
        waiting = sa.text(
            "select count(*) from pg_stat_activity where application_name = 'cliniko_pipeline'"
            " and datname = current_database() and pid <> pg_backend_pid()"
        )
        while connection.execute(waiting).scalar_one():
            connection.execute(sa.text("select pg_stat_clear_snapshot()"))
        rows = connection.execute(
            sa.text(
                "select relname, seq_tup_read + coalesce(idx_tup_fetch, 0) as looked_at from pg_stat_user_tables"
                " where schemaname = 'cliniko'"
            )
        )
        return {row.relname: row.looked_at for row in rows}


def test_nothing_is_computed_counted_or_checked_again(clinic: Clinic) -> None:
    clinic.sync()
    with statements(clinic) as found:
        result = clinic.sync()
    assert computed(result) == [False, False]
    assert kept(result) == dict.fromkeys(RECKONED, True)
    assert [each for each in found if any(text in each for text in LARGE)] == []
    assert len(found) < 185
    with statements(clinic) as found:
        clinic.sync(full=True)
    assert all(any(text in each for each in found) for text in LARGE), "these texts tell the large computations"


def test_of_the_large_tables_a_few_rows_are_looked_at(clinic: Clinic) -> None:
    with clinic.pipeline.database.operator_statement() as connection:
        connection.execute(sa.text("vacuum analyze"))
        # As in a table that is large: a small one is read whole where an index would do.
        name = connection.execute(sa.text("select current_database()")).scalar_one()
        connection.execute(sa.text(f'alter database "{name}" set enable_seqscan = off'))
    clinic.pipeline.database.close()
    clinic.sync()
    before = rows_read(clinic)
    clinic.sync()
    looked_at = {name: number - before[name] for name, number in rows_read(clinic).items()}
    # The first few are shown; of the mapping also those that the operator is to look at.
    assert looked_at["appointments"] <= 20
    assert looked_at["patients"] <= 20
    assert looked_at["attendees"] <= 20
    assert looked_at["contact_mapping"] <= 150


def test_every_table_that_a_query_reads_is_one_that_it_is_computed_from(pipeline: PipelineUnderTest) -> None:
    queries = (contact_mapping(), active_patients(ActivePatientsConfig(), pipeline.runtime))
    assert [isinstance(query, TableQuery) for query in queries] == [True, True]
    for query in queries:
        text = sql(query.query)
        read = derivations.current_attendances(text) if query.through is not None else text
        named = set(re.findall(r"(?:from|join) (cliniko\.\w+) ", f"{read} "))
        # The function of the same schema reads the patients; the names that are shown are looked up each time.
        assert named | {"cliniko.patients"} == {f"{table.schema}.{table.name}" for table in query.inputs}
        assert {table.name for table in query.inputs} <= {table.name for table in WATCHED}
        of_time = set(re.findall(r"(?:from|join) (cliniko\.\w+) ", derivations.from_current_attendances(text)))
        if query.through is not None:
            names = {"cliniko.appointment_types", "cliniko.practitioners"}
            assert of_time - named == {"cliniko.current_attendances", *names}
            assert set(re.findall(r"(?:from|join) (cliniko\.\w+) ", text)) - named <= names


def test_numbers_of_rows_are_those_of_a_count(clinic: Clinic) -> None:
    clinic.change("individual_appointments", 5, cancelled_at="2026-06-15T09:00:00Z")
    clinic.account.put("patients", dict(next(iter(clinic.account.records["patients"].values()))) | {
        "id": "77", "created_at": "2026-06-15T10:31:00Z", "updated_at": "2026-06-15T10:31:00Z"
    })  # fmt: skip
    for full in (False, False, True):
        told = materializations_of(clinic.sync(full=full))
        for name, table in (("cliniko/patients", "cliniko.patients"), ("cliniko/appointments", "cliniko.appointments")):
            assert told[name]["dagster/row_count"] == len(clinic.pipeline.rows(ID, table))
    assert told["cliniko/patients"]["dagster/row_count"] == PATIENTS + 1


def test_what_changes_is_computed_and_checked_once(clinic: Clinic) -> None:
    assert computed(clinic.sync()) == [False, False]
    clinic.change("individual_appointments", 3, cancelled_at="2026-06-15T09:00:00Z")
    result = clinic.sync()
    assert computed(result) == [False, True]
    assert kept(result) == {RECKONED[0]: False, RECKONED[1]: True, RECKONED[2]: True}
    assert computed(clinic.sync()) == FIRST_UNCHANGED
    assert computed(clinic.sync()) == [False, False]
    clinic.change("patients", 3, email="new@clinic.example")
    result = clinic.sync()
    assert computed(result) == [True, True]
    # The numbers of the mapping are told of its materialization first.
    assert kept(result) == {RECKONED[0]: False, RECKONED[1]: True, RECKONED[2]: True}
    assert computed(clinic.sync()) == FIRST_UNCHANGED
    assert computed(clinic.sync()) == [False, False]


def test_a_full_sync_and_what_is_launched_by_itself_do_all_anew(clinic: Clinic) -> None:
    assert computed(clinic.sync()) == [False, False]
    result = clinic.sync(full=True)
    assert computed(result) == [True, True]
    assert kept(result) == dict.fromkeys(RECKONED, False)
    for name in COMPUTED:
        result = clinic.pipeline.materialize(ID, name)
        assert result.success
        assert materializations_of(result)[name]["computed_again"]
    result = clinic.sync()
    assert computed(result) == [False, True], "by itself it was judged by the present, which is later"
    assert computed(clinic.sync()) == [False, False]


def test_a_sync_that_dies_between_its_steps_leaves_the_rest_to_the_next(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.sync()
    before = clinic.pipeline.active_patients(ID)
    victim = next(iter(before))
    with clinic.pipeline.database.operator() as connection:
        connection.execute(sa.text("delete from public.contacts where id = :id"), {"id": victim})
    real = io_managers.sql

    def dead(name: str) -> str:
        if name == "active_patients":
            raise KeyboardInterrupt
        return real(name)

    clinic.clock.now += timedelta(hours=1)
    with monkeypatch.context() as patch:
        patch.setattr(io_managers, "sql", dead)
        assert not clinic.pipeline.sync(ID, clinic.clock.now).success
    assert clinic.pipeline.active_patients(ID) == before
    assert victim not in {row["contact_id"] for row in clinic.pipeline.rows(ID, "cliniko.contact_mapping")}
    assert computed(clinic.sync()) == [False, True]
    assert victim not in clinic.pipeline.active_patients(ID)
    assert computed(clinic.sync()) == FIRST_UNCHANGED
    assert computed(clinic.sync()) == [False, False]
