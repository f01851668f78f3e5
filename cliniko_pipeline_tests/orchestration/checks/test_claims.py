"""The checks of what is stored, broken one after the other."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline_tests.support.hostile_accounts import attendee, group_appointment, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of

CLINIC = "clinic"
NOW = datetime.now(UTC)
STARTED = (NOW - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
CONTACTS = [UUID(int=number) for number in range(1, 5)]
ALL = {
    "nothing_was_rejected",
    "no_contact_is_used_twice",
    "unmatched_share_is_below_the_limit",
    "every_active_patient_with_a_contact_is_stored_once",
    "is_not_older_than_promised",
}


@pytest.fixture
def account() -> Account:
    account = Account(CLINIC, "au4", "claims-au4")
    for number in range(1, 5):
        account.put("patients", patient(str(number), "Pat", f"Number {number}", email=f"pat{number}@example.org"))
        account.put("individual_appointments", individual_appointment(f"1{number}", str(number), STARTED))
    account.put("group_appointments", group_appointment("50", STARTED))
    account.put("attendees", attendee("60", "50", "1"))
    return account


@pytest.fixture
def clinic(pipeline: PipelineUnderTest, account: Account) -> Iterator[PipelineUnderTest]:
    pipeline.add_contacts(
        [
            {"id": contact, "organization_id": CLINIC, "name": f"Pat Number {number}", "email": None}
            for number, contact in enumerate(CONTACTS, start=1)
        ]
    )
    with pipeline.sandbox([account]) as sandbox:
        pipeline.add_organization(CLINIC, sandbox, account)
        yield pipeline


def failed(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """What each check that does not hold says."""
    evaluations = result.get_asset_check_evaluations()
    assert {each.partition for each in evaluations} == {CLINIC}
    return {each.check_name: each.description or "" for each in evaluations if not each.passed}


def look_again(clinic: PipelineUnderTest) -> dg.ExecuteInProcessResult:
    """The claims alone, of what is stored."""
    checks = [key for key in clinic.definitions.resolve_asset_graph().asset_check_keys if key.name in ALL]
    job = dg.define_asset_job("claims", selection=dg.AssetSelection.checks(*checks))
    definitions = dg.Definitions.merge(clinic.definitions, dg.Definitions(jobs=[job]))
    return definitions.resolve_job_def("claims").execute_in_process(
        instance=clinic.instance, tags={"dagster/partition": CLINIC}, raise_on_error=False
    )


def change(clinic: PipelineUnderTest, statement: str, **values: Any) -> None:
    with clinic.database.organization(CLINIC) as connection:
        connection.execute(sa.text(statement), values)


def noted(clinic: PipelineUnderTest) -> dict[str, bool]:
    with clinic.database.operator() as connection:
        rows = connection.execute(
            sa.text("select name, bool_and(holds) as holds from cliniko.check_results group by 1")
        )
        return {row.name: row.holds for row in rows}


def test_all_claims_hold_after_a_sync_and_are_looked_at_by_it(clinic: PipelineUnderTest) -> None:
    result = clinic.sync(CLINIC)
    assert result.success, errors_of(result)
    assert len(clinic.active_patients(CLINIC)) == 4
    assert len(result.get_asset_check_evaluations()) == len(ALL) + 1, "nothing_was_rejected is claimed of two assets"
    assert failed(result) == {}
    assert noted(clinic) == dict.fromkeys(ALL, True)
    assert failed(look_again(clinic)) == {}


def test_a_record_that_was_set_aside_is_told_and_stops_nothing(clinic: PipelineUnderTest, account: Account) -> None:
    account.put("patients", patient("9", "Pat", "Broken") | {"updated_at": "yesterday"})
    result = clinic.sync(CLINIC)
    assert result.success, errors_of(result)
    assert failed(result) == {"nothing_was_rejected": "Set aside, since they could not be understood: 1 of patients."}
    of = {each.asset_key.to_user_string(): each for each in result.get_asset_check_evaluations() if not each.passed}
    assert set(of) == {"cliniko/patients"}
    assert of["cliniko/patients"].severity == dg.AssetCheckSeverity.WARN
    assert len(clinic.active_patients(CLINIC)) == 4


@pytest.mark.parametrize(
    ("statement", "remark"),
    [
        (
            "delete from public.active_patients where contact_id = :contact",
            "Of 3 rows 0 should not be there and 0 stand there twice; 1 are missing.",
        ),
        (
            "update cliniko.appointments set cancelled_at = now() where patient_id = '2'",
            "Of 4 rows 1 should not be there and 0 stand there twice; 0 are missing.",
        ),
        (
            "update cliniko.patients set archived_at = now() where id = '2'",
            "Of 4 rows 1 should not be there and 0 stand there twice; 0 are missing.",
        ),
    ],
    ids=["missing", "cancelled", "archived"],
)
def test_a_row_too_few_or_too_many_is_found(clinic: PipelineUnderTest, statement: str, remark: str) -> None:
    assert clinic.sync(CLINIC).success
    change(clinic, statement, contact=CONTACTS[1])
    assert failed(look_again(clinic)) == {"every_active_patient_with_a_contact_is_stored_once": remark}


def test_a_row_that_stands_twice_is_found(clinic: PipelineUnderTest) -> None:
    assert clinic.sync(CLINIC).success
    with clinic.database.operator() as connection:
        connection.execute(sa.text("drop index public.active_patients_organization_id_contact_id_key"))
    columns = (
        "organization_id, contact_id, recent_appointment_count, upcoming_appointment_count, total_appointment_count,"
        " last_appointment_date, recent_appointments, upcoming_appointments, search_date_from, search_date_to"
    )
    change(
        clinic,
        f"insert into public.active_patients ({columns}) select {columns} from public.active_patients limit 1",
    )
    assert "1 stand there twice" in failed(look_again(clinic))["every_active_patient_with_a_contact_is_stored_once"]


def test_a_member_of_a_class_counts_in_the_second_reckoning_too(clinic: PipelineUnderTest) -> None:
    assert clinic.sync(CLINIC).success
    change(clinic, "delete from cliniko.appointments where kind = 'individual' and patient_id = '1'")
    assert failed(look_again(clinic)) == {}, "patient 1 attended the class"
    change(clinic, "update cliniko.attendees set cancelled_at = now()")
    assert "1 should not be there" in failed(look_again(clinic))["every_active_patient_with_a_contact_is_stored_once"]


def test_a_contact_that_stands_for_two_people_keeps_active_patients_as_they_were(
    clinic: PipelineUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert clinic.sync(CLINIC).success
    before = clinic.active_patients(CLINIC)
    with clinic.database.operator() as connection:
        connection.execute(
            sa.text(
                "alter table cliniko.contact_mapping drop constraint contact_mapping_organization_id_contact_id_key"
            )
        )
    # A mapping as only a defect could make it.
    from cliniko_pipeline.orchestration import io_managers  # noqa: PLC0415

    real = io_managers.sql

    def doubled(name: str) -> str:
        if name != "contact_mapping":
            return real(name)
        return (
            f"select patient_id, '{CONTACTS[0]}'::uuid as contact_id, 'matched' as status, 'name' as method,"
            f" 1 as candidate_count from ({real(name)}) as real"
        )

    monkeypatch.setattr(io_managers, "sql", doubled)
    result = clinic.sync(CLINIC)
    assert not result.success
    assert "no_contact_is_used_twice" in failed(result)
    assert clinic.active_patients(CLINIC) == before
    last = max(clinic.rows(CLINIC, "cliniko.sync_runs"), key=lambda row: row["started_at"])
    assert (last["status"], last["error"]) == (
        "failed",
        "no_contact_is_used_twice does not hold: 3 contacts stand for more than one person.",
    )

    monkeypatch.undo()
    result = clinic.sync(CLINIC)
    assert result.success, errors_of(result)
    assert failed(result) == {}
    assert noted(clinic)["no_contact_is_used_twice"]


def test_too_many_people_without_a_contact_are_told(clinic: PipelineUnderTest, account: Account) -> None:
    for number in range(20, 25):
        account.put("patients", patient(str(number), "Nobody", f"Known {number}"))
    result = clinic.sync(CLINIC)
    assert result.success, errors_of(result)
    assert failed(result) == {
        "unmatched_share_is_below_the_limit": "5 of 9 current people have no contact (56%; the limit is 50%)."
    }


def test_what_was_last_synced_too_long_ago_is_told(clinic: PipelineUnderTest) -> None:
    assert clinic.sync(CLINIC).success
    with clinic.database.operator() as connection:
        connection.execute(
            sa.text(
                "update cliniko.scheduling"
                " set succeeded_at = now() - interval '4 hours', known_since = now() - interval '9 days'"
            )
        )
    assert failed(look_again(clinic)) == {
        "is_not_older_than_promised": "Last synced 240 minutes ago; promised are 180 minutes."
    }
    # A part of a sync makes nothing fresh.
    assert clinic.materialize(CLINIC, "active_patients").success
    assert "is_not_older_than_promised" in failed(look_again(clinic))
    assert failed(clinic.sync(CLINIC)) == {}


def test_a_claim_of_no_organization_says_how_to_choose_one(clinic: PipelineUnderTest) -> None:
    assert clinic.sync(CLINIC).success
    checks = [key for key in clinic.definitions.resolve_asset_graph().asset_check_keys if key.name in ALL]
    job = dg.define_asset_job("claims", selection=dg.AssetSelection.checks(*checks))
    definitions = dg.Definitions.merge(clinic.definitions, dg.Definitions(jobs=[job]))
    result = definitions.resolve_job_def("claims").execute_in_process(instance=clinic.instance, raise_on_error=False)
    assert not result.success
    assert "none was chosen" in errors_of(result)[0]
