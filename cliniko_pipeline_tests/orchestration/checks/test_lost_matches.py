"""Tests that a mapping is not written if it would lose suspiciously many matches.

The table active_patients stays unchanged too.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.orchestration.alerts.delivery import plan_messages
from cliniko_pipeline.orchestration.sensors import failed_runs
from cliniko_pipeline.postgres.operator_tables import alerts, scheduling
from cliniko_pipeline.postgres.reads.lost_matches import LostMatches, of_stored_mapping
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support.hostile_accounts import individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of
from cliniko_pipeline_tests.support.prepared_databases import copied_pipeline, prepared_database

CLINIC = "clinic"
PEOPLE = 50
STARTED = (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
CHECK = "matches_are_kept"
TABLES = ("cliniko.contact_mapping", "public.active_patients")


def account() -> Account:
    made = Account(CLINIC, "au4", "matches-au4")
    for number in range(1, PEOPLE + 1):
        made.put("patients", patient(str(number), "Pat", f"Number {number}"))
        made.put("individual_appointments", individual_appointment(f"1{number}", str(number), STARTED))
    return made


def prepare(pipeline: PipelineUnderTest) -> None:
    pipeline.add_contacts(
        [
            {"id": UUID(int=number), "organization_id": CLINIC, "name": f"Pat Number {number}"}
            for number in range(1, PEOPLE + 1)
        ]
    )
    served = account()
    with pipeline.sandbox([served]) as sandbox:
        pipeline.add_organization(CLINIC, sandbox, served)
        result = pipeline.sync(CLINIC)
    assert result.success, errors_of(result)
    assert len(pipeline.active_patients(CLINIC)) == PEOPLE


matched_database = prepared_database(prepare)


@pytest.fixture
def clinic(server_url: URL, matched_database: dict[str, str]) -> Iterator[PipelineUnderTest]:
    with copied_pipeline(server_url, matched_database) as pipeline, pipeline.sandbox([account()]):
        yield pipeline


def operate(clinic: PipelineUnderTest, statement: str) -> None:
    with clinic.database.operator() as connection:
        connection.execute(sa.text(statement))


def rows(clinic: PipelineUnderTest) -> list[list[str]]:
    """Return the rows that the application reads, without columns that change with every sync."""
    changing = {"updated_at", "search_date_from", "search_date_to"}
    return [
        sorted(repr({name: row[name] for name in row.keys() - changing}) for row in clinic.rows(CLINIC, table))
        for table in TABLES
    ]


def failed_checks(clinic: PipelineUnderTest) -> list[str]:
    with clinic.database.operator() as connection:
        return list(connection.exec_driver_sql("select name from cliniko.check_results where not holds").scalars())


def refused(clinic: PipelineUnderTest, *, full: bool = False) -> dg.ExecuteInProcessResult:
    """Sync. Assert that the rows that the application reads stay unchanged."""
    before = [clinic.rows(CLINIC, table) for table in TABLES]
    result = clinic.sync(CLINIC, full=full)
    assert not result.success
    assert [clinic.rows(CLINIC, table) for table in TABLES] == before
    return result


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("truncate public.contacts", PEOPLE),
        (f"delete from public.contacts where id <= '{UUID(int=11)}'", 11),
        (f"update public.contacts set name = 'Someone' where id <= '{UUID(int=30)}'", 30),
        (
            "insert into public.contacts (organization_id, name) select organization_id, name from public.contacts",
            PEOPLE,
        ),
    ],
    ids=["truncated", "deleted", "changed", "doubled"],
)
def test_suspicious_loss_of_matches_is_refused_until_accepted(
    clinic: PipelineUnderTest, statement: str, lost: int
) -> None:
    operate(clinic, statement)
    for full in (False, True):
        (error,) = errors_of(refused(clinic, full=full))
        assert f"{lost} of {PEOPLE} matches of patients and contacts would be lost" in error
        assert "`cliniko-pipeline sync clinic --accept-unmatched`" in error
    assert failed_checks(clinic) == [CHECK]
    result = clinic.sync(CLINIC, accept_unmatched=True)
    assert result.success, errors_of(result)
    assert len(clinic.active_patients(CLINIC)) == PEOPLE - lost
    assert CHECK not in failed_checks(clinic)


def test_reloaded_contacts_let_the_next_sync_succeed(clinic: PipelineUnderTest) -> None:
    before = rows(clinic)
    operate(clinic, "create table public.away as select * from public.contacts; truncate public.contacts")
    result = refused(clinic)
    event = next(each for each in result.all_events if each.event_type_value == "PIPELINE_FAILURE")
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_event=event,
        dagster_instance=clinic.instance,
        dagster_run=result.dagster_run,
        resources={"runtime": clinic.runtime},
    )
    failed_runs(context.for_run_failure())
    plan_messages(clinic.runtime)
    with clinic.database.operator() as connection:
        (alert,) = alerts.open_alerts(connection)
        (found,) = scheduling.schedulings(connection)
    assert (alert.name, alert.kind) == (f"contact_mapping {CHECK}", "check")
    assert "has no contact any more, though it had some" in alert.reason
    assert found.failure_reason is None, "the schedule goes on"
    operate(clinic, "insert into public.contacts select * from public.away")
    result = clinic.sync(CLINIC)
    assert result.success, errors_of(result)
    assert rows(clinic) == before
    assert failed_checks(clinic) == []


def test_loss_of_few_matches_or_of_a_small_share_is_believed(clinic: PipelineUnderTest) -> None:
    operate(clinic, f"delete from public.contacts where id <= '{UUID(int=10)}'")
    result = clinic.sync(CLINIC)
    assert result.success, errors_of(result)
    assert len(clinic.active_patients(CLINIC)) == PEOPLE - 10
    for lost, is_suspicious in ((9, False), (10, True)):
        assert LostMatches(10, lost, has_lost_all_contacts=False).is_suspicious(0.2) == is_suspicious
    assert LostMatches(1, 1, has_lost_all_contacts=True).is_suspicious(1)


def test_contacts_lost_after_the_mapping_keep_active_patients(clinic: PipelineUnderTest) -> None:
    """This happens if only active_patients is materialized, or if contacts are deleted during a run."""
    before = rows(clinic)
    operate(clinic, f"delete from public.contacts where id <= '{UUID(int=30)}'")
    result = clinic.materialize(CLINIC, "active_patients")
    assert "30 of 50 matches" in errors_of(result)[0]
    assert rows(clinic) == before
    with clinic.database.organization(CLINIC) as connection:
        assert of_stored_mapping(connection) == LostMatches(PEOPLE, 30, has_lost_all_contacts=False)
