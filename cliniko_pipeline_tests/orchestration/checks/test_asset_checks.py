"""Tests in which each asset check of stored data fails."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.writing import computed_tables
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support.hostile_accounts import attendee, group_appointment, individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of
from cliniko_pipeline_tests.support.prepared_databases import copied_pipeline, prepared_database

CLINIC = "clinic"
CHOSEN = {"dagster/partition": CLINIC}
STARTED = (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
CONTACTS = [UUID(int=number) for number in range(1, 5)]
STORED_ONCE = "every_active_patient_with_a_contact_is_stored_once"
ALL = {
    "nothing_was_rejected",
    "no_contact_is_used_twice",
    "matches_are_kept",
    "unmatched_share_is_below_the_limit",
    STORED_ONCE,
    "is_fresh",
}


def clinic_account() -> Account:
    account = Account(CLINIC, "au4", "checks-au4")
    for number in range(1, 5):
        account.put("patients", patient(str(number), "Pat", f"Number {number}", email=f"pat{number}@example.org"))
        account.put("individual_appointments", individual_appointment(f"1{number}", str(number), STARTED))
    account.put("group_appointments", group_appointment("50", STARTED))
    account.put("attendees", attendee("60", "50", "1"))
    return account


@pytest.fixture
def account() -> Account:
    return clinic_account()


def prepare(pipeline: PipelineUnderTest) -> None:
    contacts = [{"id": each, "organization_id": CLINIC, "name": f"Pat Number {each.int}"} for each in CONTACTS]
    pipeline.add_contacts(contacts)
    account = clinic_account()
    with pipeline.sandbox([account]) as sandbox:
        pipeline.add_organization(CLINIC, sandbox, account)
        result = pipeline.sync(CLINIC)
    assert result.success, errors_of(result)
    assert len(list(result.get_asset_check_evaluations())) == len(ALL) + 1, "nothing_was_rejected is of two assets"


synced_database = prepared_database(prepare)


@pytest.fixture
def clinic(server_url: URL, synced_database: dict[str, str], account: Account) -> Iterator[PipelineUnderTest]:
    with copied_pipeline(server_url, synced_database) as pipeline, pipeline.sandbox([account]):
        yield pipeline


def failed(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Return the descriptions of the failed checks."""
    evaluations = result.get_asset_check_evaluations()
    assert {each.partition for each in evaluations} == {CLINIC}
    return {each.check_name: each.description or "" for each in evaluations if not each.passed}


def evaluate(clinic: PipelineUnderTest, tags: Mapping[str, str] = CHOSEN) -> dg.ExecuteInProcessResult:
    checks = [key for key in clinic.definitions.resolve_asset_graph().asset_check_keys if key.name in ALL]
    job = dg.define_asset_job("checks", selection=dg.AssetSelection.checks(*checks))
    definitions = dg.Definitions.merge(clinic.definitions, dg.Definitions(jobs=[job]))
    return definitions.resolve_job_def("checks").execute_in_process(
        instance=clinic.instance, tags=dict(tags), raise_on_error=False
    )


def change(clinic: PipelineUnderTest, statement: str) -> None:
    with clinic.database.organization(CLINIC) as connection:
        connection.execute(sa.text(statement))


def operate(clinic: PipelineUnderTest, statement: str) -> None:
    with clinic.database.operator() as connection:
        connection.execute(sa.text(statement))


def stored_results(clinic: PipelineUnderTest) -> set[tuple[str, bool]]:
    with clinic.database.operator() as connection:
        return {tuple(row) for row in connection.execute(sa.text("select name, holds from cliniko.check_results"))}


def test_checks_hold_until_records_are_rejected_or_unmatched(clinic: PipelineUnderTest, account: Account) -> None:
    assert stored_results(clinic) == {(name, True) for name in ALL}
    assert failed(evaluate(clinic)) == {}
    assert "the run has none" in errors_of(evaluate(clinic, {}))[0]

    account.put("patients", patient("9", "Pat", "Broken") | {"updated_at": "yesterday"})
    for number in range(20, 25):
        account.put("patients", patient(str(number), "Nobody", f"Known {number}"))
    result = clinic.sync(CLINIC, full=True)
    assert result.success, errors_of(result)
    assert failed(result) == {
        "nothing_was_rejected": "Rejected records: 1 of patients.",
        "unmatched_share_is_below_the_limit": "5 of 9 current people have no contact (56%; the limit is 50%).",
    }
    rejected = [each for each in result.get_asset_check_evaluations() if each.check_name == "nothing_was_rejected"]
    (severity,) = [each.severity for each in rejected if not each.passed and each.asset_key.path[-1] == "patients"]
    assert severity == dg.AssetCheckSeverity.WARN
    assert len(clinic.active_patients(CLINIC)) == 4


def test_missing_surplus_or_doubled_active_patient_is_found(clinic: PipelineUnderTest) -> None:
    change(clinic, "delete from cliniko.appointments where kind = 'individual' and patient_id = '1'")
    assert failed(evaluate(clinic)) == {}, "patient 1 attended the class"
    remark = "3 rows: {} too many, 0 stored twice, 1 missing."
    change(clinic, f"delete from public.active_patients where contact_id = '{CONTACTS[1]}'")
    assert failed(evaluate(clinic)) == {STORED_ONCE: remark.format(0)}
    change(clinic, "update cliniko.attendees set cancelled_at = now()")
    assert failed(evaluate(clinic)) == {STORED_ONCE: remark.format(1)}
    change(clinic, "update cliniko.appointments set cancelled_at = now() where patient_id = '3'")
    change(clinic, "update cliniko.patients set archived_at = now() where id = '4'")
    assert failed(evaluate(clinic)) == {STORED_ONCE: remark.format(3)}
    operate(clinic, "drop index public.active_patients_organization_id_contact_id_key")
    doubled = f"set contact_id = '{CONTACTS[0]}' where contact_id = '{CONTACTS[2]}'"
    change(clinic, f"update public.active_patients {doubled}")
    assert "1 stored twice" in failed(evaluate(clinic))[STORED_ONCE]


def test_contact_used_twice_keeps_active_patients_unchanged(
    clinic: PipelineUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a defect of the mapping could use a contact twice."""
    before = clinic.active_patients(CLINIC)
    constraint = "contact_mapping_organization_id_contact_id_key"
    operate(clinic, f"alter table cliniko.contact_mapping drop constraint {constraint}")
    real = computed_tables.sql

    def doubled(name: str) -> str:
        if name != "transforms/contact_mapping":
            return real(name)
        return (
            f"select patient_id, '{CONTACTS[0]}'::uuid as contact_id, 'matched' as status, 'name' as method,"
            f" 1 as candidate_count from ({real(name)}) as real"
        )

    monkeypatch.setattr(computed_tables, "sql", doubled)
    # Without this, the mapping of unchanged records is not computed.
    change(clinic, "delete from cliniko.table_states")
    result = clinic.sync(CLINIC)
    assert not result.success
    assert "no_contact_is_used_twice" in failed(result)
    assert clinic.active_patients(CLINIC) == before
    last = max(clinic.rows(CLINIC, "cliniko.sync_runs"), key=lambda row: row["started_at"])
    assert last["error"] == "The check no_contact_is_used_twice failed: 3 contacts are used for more than one person."

    monkeypatch.undo()
    result = clinic.sync(CLINIC)
    assert result.success, errors_of(result)
    assert failed(result) == {}
    assert ("no_contact_is_used_twice", False) not in stored_results(clinic)


def test_stale_organization_is_fresh_after_a_complete_sync(clinic: PipelineUnderTest) -> None:
    past = "verified_at = now() - interval '4 hours', known_since = now() - interval '9 days'"
    operate(clinic, f"update cliniko.scheduling set {past}")
    remark = "Last verified 240 minutes ago; the limit is 180 minutes."
    assert failed(evaluate(clinic)) == {"is_fresh": remark}
    assert clinic.materialize(CLINIC, "active_patients").success
    assert "is_fresh" in failed(evaluate(clinic)), "a partial sync makes nothing fresh"
    assert failed(clinic.sync(CLINIC)) == {}
