"""The main job on hostile accounts: read from a sandbox over HTTP, held against the independent computation row by
row and field by field; then changed and synced again.

HYPOTHESIS_PROFILE=thorough draws 500 pairs of accounts a test instead of a few.
"""

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

from cliniko_pipeline.sandbox.account import Account as ServedAccount
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

EXAMPLES = settings(
    max_examples=examples(4, 500),
    # Accounts are small as drawn, and shrinking one further takes minutes: each attempt is three runs of the job.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Clinic:
    """A hostile account as one organization of the pipeline: its records are served, its contacts stored."""

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
        """Adds the records, or puts them in the place of those with their ids."""
        for resource, found in records.items():
            mine = self.records.setdefault(resource, {})
            for number, record in enumerate(found):
                changed = record | changes
                mine[str(record["id"]) if record.get("id") else f"{uuid4()}{number}"] = changed
                self.served.put(resource, changed)

    def set_contacts(self, contacts: Sequence[Mapping[str, Any]]) -> None:
        """Makes these, and no others, the contacts of this organization and of one that is only its neighbour."""
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
        """Whether these name what was asked for already, which only a full sync asks for again."""
        return any(
            str(int(record["id"])) in {row["id"] for row in self.pipeline.rows(self.id, f"cliniko.{resource}")}
            for resource in ("appointment_types", "practitioners")
            for record in records.get(resource, ())
        )

    def sync(self, as_of: datetime, *, full: bool = False) -> None:
        result = self.pipeline.sync(self.id, as_of, full=full)
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
def opened_clinic(pipeline: PipelineUnderTest, sandbox: Sandbox, account: Account) -> Iterator[Clinic]:
    """Each example has an organization and a Dagster instance of its own, in one database with all the others."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Clinic(PipelineUnderTest(pipeline.runtime, instance), sandbox, account)


@pytest.fixture
def sandbox(pipeline: PipelineUnderTest) -> Iterator[Sandbox]:
    with pipeline.sandbox([]) as opened:
        yield opened


@contextmanager
def pipeline_with(database_url: URL, home: Path, **variables: str) -> Iterator[tuple[PipelineUnderTest, Sandbox]]:
    with (
        opened_pipeline(environment(database_url, home) | variables) as pipeline,
        pipeline.sandbox([]) as sandbox,
    ):
        yield pipeline, sandbox


def with_names_whole(account: Account) -> Account:
    """The account with contacts as older applications have them: one column for the name."""
    parts = ("first_name", "last_name")
    return replace(account, contacts=[{c: row[c] for c in row if c not in parts} for row in account.contacts])


def drop_name_parts(pipeline: PipelineUnderTest) -> None:
    with pipeline.database.operator() as connection:
        connection.execute(sa.text("alter table public.contacts drop column first_name, drop column last_name"))


def kept_rows_keep_their_identity(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], key: str, *identity: str
) -> None:
    earlier = {row[key]: row for row in before}
    for row in after:
        if row[key] in earlier:
            assert [row[column] for column in identity] == [earlier[row[key]][column] for column in identity]


def synced_changed_and_synced_again(clinic: Clinic, first: Account, then: Account, kept: Sequence[bool]) -> None:
    """`then`'s records change and join `first`'s; its contacts change and join those of `first`'s that are kept."""
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
    kept_rows_keep_their_identity(
        before["public.active_patients"], after["public.active_patients"], "contact_id", "id", "created_at"
    )
    kept_rows_keep_their_identity(
        before["cliniko.contact_mapping"], after["cliniko.contact_mapping"], "patient_id", "created_at"
    )

    assert_another_sync_changes_nothing(clinic, then.as_of)


def assert_another_sync_changes_nothing(clinic: Clinic, as_of: datetime) -> None:
    before = clinic.pipeline.tables(clinic.id)
    clinic.sync(as_of)
    assert told_apart_only_by_the_reading(clinic.pipeline.tables(clinic.id)) == told_apart_only_by_the_reading(before)


def now() -> str:
    """As Cliniko writes it, by the sandbox's clock: what is changed now is read by the next sync."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def told_apart_only_by_the_reading(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The tables without when they were read last, which every sync notes, and what is kept for later ones."""
    told = {
        "cliniko.crawls": BOOKKEEPING["cliniko.crawls"],
        "cliniko.rejected_records": ("rejected_at", "position"),
    }
    return {
        name: sorted(({c: row[c] for c in row if c not in told.get(name, ())} for row in rows), key=repr)
        for name, rows in tables.items()
        if name not in {"cliniko.sync_runs", *KEPT}
    }


def test_the_account_written_by_hand_gives_the_right_tables_and_again_after_changes(
    pipeline: PipelineUnderTest, sandbox: Sandbox
) -> None:
    account = hand_written_account()
    with opened_clinic(pipeline, sandbox, account) as clinic:
        synced_changed_and_synced_again(clinic, account, with_changes(account), [True] * len(account.contacts))


def with_changes(account: Account) -> Account:
    """Patients archived, merged and renamed, a cancellation, a late arrival, a contact that changes hands."""
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


@pytest.mark.parametrize(
    "variables",
    [
        {"CLINIKO_ACTIVITY_WINDOW_DAYS": "1"},
        {"CLINIKO_ACTIVITY_WINDOW_DAYS": "31", "CLINIKO_COUNT_NO_SHOWS": "false"},
        {"CLINIKO_ACTIVITY_WINDOW_DAYS": "3650"},
    ],
    ids=["a day", "a month without no-shows", "ten years"],
)
def test_the_account_written_by_hand_gives_the_right_tables_under_other_settings(
    database_url: URL, tmp_path: Path, variables: dict[str, str]
) -> None:
    account = hand_written_account()
    with (
        pipeline_with(database_url, tmp_path, **variables) as (pipeline, sandbox),
        opened_clinic(pipeline, sandbox, account) as clinic,
    ):
        clinic.sync(account.as_of)
        clinic.assert_right(account.as_of)


def test_contacts_with_whole_names_only_are_matched_by_those(pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
    drop_name_parts(pipeline)
    account = with_names_whole(hand_written_account())
    with opened_clinic(pipeline, sandbox, account) as clinic:
        clinic.sync(account.as_of)
        clinic.assert_right(account.as_of)
        assert any(mapping.method == "name" for mapping in clinic.pipeline.contact_mapping(clinic.id).values())


def test_an_account_without_anything_gives_empty_tables(pipeline: PipelineUnderTest, sandbox: Sandbox) -> None:
    account = Account(dict.fromkeys(hand_written_account().records, ()), [], hand_written_account().as_of)
    with opened_clinic(pipeline, sandbox, account) as clinic:
        clinic.sync(account.as_of)
        clinic.assert_right(account.as_of)
        assert_another_sync_changes_nothing(clinic, account.as_of)
        filled = {name: rows for name, rows in clinic.pipeline.contents(clinic.id).items() if rows}
    assert filled.keys() == {"cliniko.crawls"}


def test_when_nobody_is_active_any_more_the_rows_of_active_patients_go(
    pipeline: PipelineUnderTest, sandbox: Sandbox
) -> None:
    account = hand_written_account()
    with opened_clinic(pipeline, sandbox, account) as clinic:
        clinic.sync(account.as_of)
        assert clinic.pipeline.active_patients(clinic.id)
        clinic.sync(account.as_of + timedelta(days=3650))
        assert clinic.pipeline.active_patients(clinic.id) == {}


@EXAMPLES
@given(accounts(bad_records=True), accounts(), st.lists(st.booleans(), min_size=9, max_size=9))
def test_hostile_accounts_give_the_right_tables_and_again_after_changes(
    pipeline: PipelineUnderTest, sandbox: Sandbox, first: Account, then: Account, kept: list[bool]
) -> None:
    with opened_clinic(pipeline, sandbox, first) as clinic:
        synced_changed_and_synced_again(clinic, first, then, kept)


@EXAMPLES
@given(
    first=accounts(bad_records=True, activity_window_days=7),
    then=accounts(activity_window_days=7),
    kept=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_hostile_accounts_give_the_right_tables_under_other_settings(
    seven_days_without_no_shows: tuple[PipelineUnderTest, Sandbox], first: Account, then: Account, kept: list[bool]
) -> None:
    with opened_clinic(*seven_days_without_no_shows, first) as clinic:
        synced_changed_and_synced_again(clinic, first, then, kept)


@EXAMPLES
@given(first=accounts(), then=accounts(), kept=st.lists(st.booleans(), min_size=9, max_size=9))
def test_hostile_accounts_give_the_right_tables_with_contacts_with_whole_names_only(
    without_name_parts: tuple[PipelineUnderTest, Sandbox], first: Account, then: Account, kept: list[bool]
) -> None:
    first, then = with_names_whole(first), with_names_whole(then)
    with opened_clinic(*without_name_parts, first) as clinic:
        synced_changed_and_synced_again(clinic, first, then, kept)


@pytest.fixture
def seven_days_without_no_shows(database_url: URL, tmp_path: Path) -> Iterator[tuple[PipelineUnderTest, Sandbox]]:
    variables = {"CLINIKO_ACTIVITY_WINDOW_DAYS": "7", "CLINIKO_COUNT_NO_SHOWS": "false"}
    with pipeline_with(database_url, tmp_path, **variables) as opened:
        yield opened


@pytest.fixture
def without_name_parts(pipeline: PipelineUnderTest, sandbox: Sandbox) -> tuple[PipelineUnderTest, Sandbox]:
    drop_name_parts(pipeline)
    return pipeline, sandbox
