"""Tests of syncs of hostile accounts, before and after changes, against the independent computation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import dagster as dg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.sandbox.accounts.account import Account as ServedAccount
from cliniko_pipeline.sandbox.server import Sandbox
from cliniko_pipeline_tests.support.environments import environment
from cliniko_pipeline_tests.support.hostile_accounts import (
    ORGANIZATION,
    Account,
    WireRecord,
    accounts,
    attendee,
    hand_written_account,
    individual_appointment,
    patient,
)
from cliniko_pipeline_tests.support.independent import expected_active_patients, expected_contact_mapping
from cliniko_pipeline_tests.support.pipelines import BOOKKEEPING, KEPT, PipelineUnderTest, errors_of, opened_pipeline
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.synced_organizations import cliniko_text

# Accounts are not shrunk, because shrinking runs three syncs per attempt and takes minutes.
WITHOUT_SHRINKING = settings(
    phases=[Phase.explicit, Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck)
)


class HostileOrganization:
    """A hostile account as an organization of the pipeline. Its records are served, and its contacts are stored."""

    def __init__(self, pipeline: PipelineUnderTest, sandbox: Sandbox, account: Account) -> None:
        self.pipeline = pipeline
        self.sandbox = sandbox
        self.id = f"org-{uuid4().hex}"
        self.records: dict[str, dict[str, WireRecord]] = {}
        self.contacts: dict[UUID, dict[str, Any]] = {}
        self.served = ServedAccount(self.id, "au4", f"{self.id}-au4")
        self._contact_ids: dict[UUID, UUID] = {}
        sandbox.add(self.served)
        pipeline.add_organization(self.id, sandbox, self.served)
        self.put(account.records)
        self.set_contacts(account.contacts)

    def put(self, records: Mapping[str, Sequence[WireRecord]], **changes: Any) -> None:
        """Add the records. Replace records with the same ids."""
        for resource, found in records.items():
            mine = self.records.setdefault(resource, {})
            for number, record in enumerate(found):
                changed = record | changes
                mine[str(record["id"]) if record.get("id") else f"{uuid4()}{number}"] = changed
                self.served.put(resource, changed)

    def set_contacts(self, contacts: Sequence[Mapping[str, Any]]) -> None:
        """Replace the contacts of this organization and of its neighbour, which is never synced."""
        self.contacts = {}
        for contact in contacts:
            contact_id = self._contact_ids.setdefault(contact["id"], uuid4())
            organization = self.id if contact["organization_id"] == ORGANIZATION else f"{self.id}-neighbour"
            self.contacts[contact_id] = {**contact, "id": contact_id, "organization_id": organization}
        with self.pipeline.database.operator() as connection:
            connection.execute(
                sa.text("delete from public.contacts where organization_id in (:own, :neighbour)"),
                {"own": self.id, "neighbour": f"{self.id}-neighbour"},
            )
        self.pipeline.add_contacts(list(self.contacts.values()))

    def renames(self, records: Mapping[str, Sequence[WireRecord]]) -> bool:
        """Return whether the records rename stored types or practitioners, which only a full sync reads again."""
        return any(
            str(int(record["id"])) in {row["id"] for row in self.pipeline.rows(self.id, f"cliniko.{resource}")}
            for resource in ("appointment_types", "practitioners")
            for record in records.get(resource, ())
        )

    def sync(self, as_of: datetime, *, full: bool = False) -> None:
        # A drawn change may take away all contacts, which otherwise stops the sync.
        result = self.pipeline.sync(self.id, as_of, full=full, accept_unmatched=True)
        assert result.success, errors_of(result)

    def assert_right(self, as_of: datetime) -> None:
        wire = {resource: list(found.values()) for resource, found in self.records.items()}
        contacts = list(self.contacts.values())
        configured = self.pipeline.runtime.settings
        assert self.pipeline.contact_mapping(self.id) == expected_contact_mapping(wire, contacts, self.id)
        assert self.pipeline.active_patients(self.id) == expected_active_patients(
            wire,
            contacts,
            self.id,
            as_of,
            activity_window_days=configured.activity_window_days,
            count_no_shows=configured.count_no_shows,
        )


@contextmanager
def opened_clinic(pipeline: PipelineUnderTest, sandbox: Sandbox, account: Account) -> Iterator[HostileOrganization]:
    """Open a clinic with its own organization and Dagster instance, in a database that all examples share."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield HostileOrganization(PipelineUnderTest(pipeline.runtime, instance), sandbox, account)


@pytest.fixture
def sandbox(pipeline: PipelineUnderTest) -> Iterator[Sandbox]:
    with pipeline.sandbox([]) as opened:
        yield opened


def assert_same_identity(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], key: str, *identity: str
) -> None:
    earlier = {row[key]: row for row in before}
    for row in after:
        if row[key] in earlier:
            assert [row[column] for column in identity] == [earlier[row[key]][column] for column in identity]


def sync_change_and_sync_again(
    clinic: HostileOrganization, first: Account, then: Account, kept: Sequence[bool]
) -> None:
    """Sync `first`, apply the records and contacts of `then`, and sync again.

    Contacts of `first` remain if `kept` says so.
    """
    clinic.sync(first.as_of)
    clinic.assert_right(first.as_of)
    before = clinic.pipeline.tables(clinic.id)

    renames = clinic.renames(then.records)
    clinic.put(then.records, updated_at=now())
    left = [row for row, keep in zip(first.contacts, kept, strict=False) if keep]
    changed = {row["id"]: row for row in [*left, *then.contacts]}
    clinic.set_contacts(list(changed.values()))
    clinic.sync(then.as_of, full=renames)
    clinic.assert_right(then.as_of)
    after = clinic.pipeline.tables(clinic.id)
    assert_same_identity(
        before["public.active_patients"], after["public.active_patients"], "contact_id", "id", "created_at"
    )
    assert_same_identity(
        before["cliniko.contact_mapping"], after["cliniko.contact_mapping"], "patient_id", "created_at"
    )

    assert_another_sync_changes_nothing(clinic, then.as_of)


def assert_another_sync_changes_nothing(clinic: HostileOrganization, as_of: datetime) -> None:
    before = clinic.pipeline.tables(clinic.id)
    clinic.sync(as_of)
    assert without_crawl_times(clinic.pipeline.tables(clinic.id)) == without_crawl_times(before)


def now() -> str:
    """Return the current time as Cliniko writes it, so that the next sync reads what is changed now."""
    return cliniko_text(datetime.now(UTC))


def without_crawl_times(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the tables without times of the last crawl, sync runs and KEPT tables."""
    times = {each: BOOKKEEPING[each] for each in ("cliniko.crawls", "cliniko.rejected_records")}
    return {
        name: sorted(({c: row[c] for c in row if c not in times.get(name, ())} for row in rows), key=repr)
        for name, rows in tables.items()
        if name not in {"cliniko.sync_runs", *KEPT}
    }


def test_hand_written_account_gives_the_right_tables(pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
    """The tables are also right after changes, and ten years later, when nobody is active."""
    account = hand_written_account()
    with opened_clinic(pipeline, sandbox, account) as clinic:
        sync_change_and_sync_again(clinic, account, with_changes(account), [True] * len(account.contacts))
        assert clinic.pipeline.active_patients(clinic.id)
        clinic.sync(account.as_of + timedelta(days=3650))
        assert clinic.pipeline.active_patients(clinic.id) == {}


def with_changes(account: Account) -> Account:
    """Return changed and new records of the account, with changed contacts, a day later."""
    ended = "2025-08-01T00:00:00Z"
    changed: dict[str, list[WireRecord]] = {
        "patients": [
            patient("112", "Tom", "Fam", "FAM@example.org", archived_at=ended),
            patient("9223372036854775806", "Big", "Six", merged_into="9223372036854775807"),
            patient("129", "Set", "Right", "real@example.org"),
            patient("110", "Hans", "Gross", "elsewhere@example.org"),
            patient("500", "New", "Person", "new@example.org"),
        ],
        "individual_appointments": [
            individual_appointment("41", "110", "2026-03-01T00:00:00Z", cancelled_at=ended),
            individual_appointment("501", "500", "2026-03-30T00:00:00Z"),
            individual_appointment("12", "82", "2026-03-30T00:00:00Z"),
        ],
        "attendees": [attendee("201", "20", "500"), attendee("220", "45", "97")],
    }
    rows = [deepcopy(row) for row in account.contacts]
    rows[4]["email"] = "new@example.org"
    rows[11]["cliniko_patient_id"] = "500"
    return replace(account, records=changed, contacts=rows, as_of=account.as_of + timedelta(days=1))


def test_settings_change_the_tables(database_url: URL, tmp_path: Path) -> None:
    account = hand_written_account()
    variables = {"CLINIKO_ACTIVITY_WINDOW_DAYS": "31", "CLINIKO_COUNT_NO_SHOWS": "false"}
    with (
        opened_pipeline(environment(database_url, tmp_path) | variables) as pipeline,
        pipeline.sandbox([]) as sandbox,
        opened_clinic(pipeline, sandbox, account) as clinic,
    ):
        clinic.sync(account.as_of)
        clinic.assert_right(account.as_of)


def test_contacts_with_single_names_are_matched(pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
    """Older applications have only one column for the name of a contact."""
    with pipeline.database.operator() as connection:
        connection.execute(sa.text("alter table public.contacts drop column first_name, drop column last_name"))
    account = hand_written_account()
    contacts = [{c: row[c] for c in row if c not in {"first_name", "last_name"}} for row in account.contacts]
    with opened_clinic(pipeline, sandbox, replace(account, contacts=contacts)) as clinic:
        clinic.sync(account.as_of)
        clinic.assert_right(account.as_of)
        assert any(mapping.method == "name" for mapping in clinic.pipeline.contact_mapping(clinic.id).values())


def test_empty_account_gives_empty_tables(pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
    account = Account(dict.fromkeys(hand_written_account().records, ()), [], hand_written_account().as_of)
    with opened_clinic(pipeline, sandbox, account) as clinic:
        clinic.sync(account.as_of)
        clinic.assert_right(account.as_of)
        assert_another_sync_changes_nothing(clinic, account.as_of)
        filled = {name: rows for name, rows in clinic.pipeline.contents(clinic.id).items() if rows}
    assert filled.keys() == {"cliniko.crawls"}


@settings(WITHOUT_SHRINKING, max_examples=examples(2, 20))
@given(first=accounts(bad_records=True), then=accounts(), kept=st.lists(st.booleans(), min_size=9, max_size=9))
def test_drawn_accounts_give_the_right_tables(
    pipeline: PipelineUnderTest, sandbox: Sandbox, first: Account, then: Account, kept: list[bool]
) -> None:
    with opened_clinic(pipeline, sandbox, first) as clinic:
        sync_change_and_sync_again(clinic, first, then, kept)
