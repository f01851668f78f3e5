"""Writes of many rows at once: what is added, renewed, removed and, above all, left alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError, DatabaseUnavailableError, DataError
from cliniko_pipeline.postgres import engine
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.merge import Written, replace_all, replace_by_query, replace_by_rows, upsert
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, ATTENDEES, CONTACT_MAPPING, PATIENTS, Table
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.tenants import row_versions

DAY = datetime(2026, 6, 15, tzinfo=UTC)


@pytest.fixture
def database(module_database: Database) -> Database:
    for organization in ("a", "b"):
        with module_database.organization(organization) as connection:
            for table in (PATIENTS, ATTENDEES, CONTACT_MAPPING, ACTIVE_PATIENTS):
                connection.execute(sa.text(f"delete from {table.qualified}"))
    return module_database


def patient(id_: str, name: str | None = "Ann", *, updated: int = 0) -> tuple[object, ...]:
    return (id_, name, None, None, None, None, None, None, DAY, DAY + timedelta(days=updated))


def active(contact: int, recent: int = 1, details: object = '[{"id": "1"}]', *, at: int = 0) -> tuple[object, ...]:
    return (UUID(int=contact), recent, 0, recent, None, details, "[]", DAY + timedelta(days=at), DAY)


def matched(patient_id: str, contact: int) -> tuple[object, ...]:
    return (patient_id, UUID(int=contact), "matched", "name", None)


def write(database: Database, function: Any, table: Table, rows: Sequence[object], organization: str = "a") -> Written:
    with database.organization(organization) as connection:
        return function(connection, table, rows)


def stored(database: Database, table: Table, columns: str, organization: str = "a") -> list[tuple[Any, ...]]:
    with database.organization(organization) as connection:
        return [tuple(r) for r in connection.execute(sa.text(f"select {columns} from {table.qualified} order by 1"))]


def seen(database: Database, table: Table, organization: str = "a") -> list[Any]:
    with database.organization(organization) as connection:
        return row_versions(connection, table.qualified)


def test_upsert_counts_new_and_changed_rows(database: Database) -> None:
    first = write(database, upsert, PATIENTS, [patient("1"), patient("2"), patient("3")])
    second = write(database, upsert, PATIENTS, [patient("2"), patient("3", "Bea", updated=1), patient("4")])
    assert (first, second) == (Written(inserted=3), Written(inserted=1, updated=1))
    assert stored(database, PATIENTS, "id, first_name") == [("1", "Ann"), ("2", "Ann"), ("3", "Bea"), ("4", "Ann")]


def test_an_upsert_of_what_is_there_rewrites_no_row(database: Database) -> None:
    rows = [patient("1"), patient("2", None)]
    write(database, upsert, PATIENTS, rows)
    before = seen(database, PATIENTS)
    assert write(database, upsert, PATIENTS, rows) == Written()
    assert seen(database, PATIENTS) == before


@pytest.mark.parametrize("updated", [-1, 0, 1], ids=["older", "of the same second", "newer"])
def test_what_was_read_last_holds_whatever_its_time_stamp_says(database: Database, updated: int) -> None:
    write(database, upsert, PATIENTS, [patient("1")])
    written = write(database, upsert, PATIENTS, [patient("1", "New", updated=updated)])
    assert stored(database, PATIENTS, "id, first_name") == [("1", "New")]
    assert written == Written(updated=1)


def test_of_several_readings_in_one_batch_the_last_is_stored(database: Database) -> None:
    rows = [patient(str(n), name) for name in ("First", "Second", "Last") for n in range(2_000)]
    assert write(database, upsert, PATIENTS, rows) == Written(inserted=2_000)
    assert write(database, upsert, PATIENTS, rows) == Written()
    assert {name for _, name in stored(database, PATIENTS, "id, first_name")} == {"Last"}


def test_a_changed_row_is_stamped_and_an_unchanged_one_is_not(database: Database) -> None:
    write(database, upsert, PATIENTS, [patient("1"), patient("2")])
    before = dict(stored(database, PATIENTS, "id, synced_at"))
    write(database, upsert, PATIENTS, [patient("1"), patient("2", "Bea", updated=1)])
    after = dict(stored(database, PATIENTS, "id, synced_at"))
    assert after["1"] == before["1"]
    assert after["2"] > before["2"]


def test_an_upsert_sets_a_value_back_to_nothing(database: Database) -> None:
    write(database, upsert, PATIENTS, [patient("1", "Ann")])
    write(database, upsert, PATIENTS, [patient("1", None, updated=1)])
    assert stored(database, PATIENTS, "id, first_name") == [("1", None)]


def test_several_writes_fit_into_one_transaction(database: Database) -> None:
    attendee = ("7", None, None, None, None, None, None, DAY, DAY)
    with database.organization("a") as connection:
        assert upsert(connection, PATIENTS, [patient("1")]) == Written(inserted=1)
        assert upsert(connection, PATIENTS, [patient("1"), patient("2")]) == Written(inserted=1)
        assert upsert(connection, ATTENDEES, [attendee]) == Written(inserted=1)
        assert replace_by_rows(connection, ACTIVE_PATIENTS, [active(1)]) == Written(inserted=1)
        assert upsert(connection, PATIENTS, []) == Written()


def test_texts_of_all_kinds_come_through_the_copy_unchanged(database: Database) -> None:
    texts = [
        "",
        " ",
        "\\N",
        "\\.",
        "a\tb\nc\rd",
        "\\",
        '"',
        "null",
        "😀 Zoë",
        "a" * 100_000,
        "\x01\x7f",
        "'; drop table x",
    ]
    write(database, upsert, PATIENTS, [patient(str(number), text) for number, text in enumerate(texts)])
    assert dict(stored(database, PATIENTS, "id, first_name")) == {str(n): text for n, text in enumerate(texts)}


def test_a_replacement_counts_what_came_changed_and_went(database: Database) -> None:
    write(database, replace_by_rows, ACTIVE_PATIENTS, [active(1), active(2), active(3)])
    written = write(database, replace_by_rows, ACTIVE_PATIENTS, [active(2), active(3, 5), active(4), active(5)])
    assert written == Written(inserted=2, updated=1, deleted=1)
    assert [
        (row[0].int, row[1]) for row in stored(database, ACTIVE_PATIENTS, "contact_id, recent_appointment_count")
    ] == [
        (2, 1),
        (3, 5),
        (4, 1),
        (5, 1),
    ]


def test_a_replacement_by_the_same_rewrites_no_row(database: Database) -> None:
    # The same JSON, differently written.
    write(database, replace_by_rows, ACTIVE_PATIENTS, [active(1, details='[{"id": "1", "kind": "x"}]')])
    before = seen(database, ACTIVE_PATIENTS)
    rows = [active(1, details='[ {"kind":"x","id":"1"} ]')]
    assert write(database, replace_by_rows, ACTIVE_PATIENTS, rows) == Written()
    assert seen(database, ACTIVE_PATIENTS) == before


def test_kept_row_keeps_its_id_and_creation_time(database: Database) -> None:
    write(database, replace_by_rows, ACTIVE_PATIENTS, [active(1), active(2)])
    columns = "contact_id, id, created_at, updated_at"
    before = stored(database, ACTIVE_PATIENTS, columns)
    for at in range(1, 4):
        written = write(database, replace_by_rows, ACTIVE_PATIENTS, [active(1, at=at), active(2, at=at)])
        assert written == Written(updated=2)
    after = stored(database, ACTIVE_PATIENTS, columns)
    assert [row[:3] for row in after] == [row[:3] for row in before]
    assert all(row[3] > old[3] for row, old in zip(after, before, strict=True))
    write(database, replace_by_rows, ACTIVE_PATIENTS, [active(1), active(2), active(3)])
    ids = [row[1] for row in stored(database, ACTIVE_PATIENTS, columns)]
    assert ids == [ids[0], ids[0] + 1, ids[0] + 2]


def test_timestamps_are_utc_in_any_database_time_zone(database: Database) -> None:
    with database.operator() as connection:
        name = connection.execute(sa.text("select current_database()")).scalar_one()
        connection.execute(sa.text(f"alter database {name} set timezone = 'Australia/Sydney'"))
    other = Database(database.url)
    try:
        write(other, replace_by_rows, ACTIVE_PATIENTS, [active(1)])
        ((_, found, created),) = stored(other, ACTIVE_PATIENTS, "contact_id, search_date_to, created_at")
        assert found == DAY.replace(tzinfo=None)
        assert abs(created.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=5)
    finally:
        other.close()
        with database.operator() as connection:
            connection.execute(sa.text(f"alter database {name} reset timezone"))


def test_a_contact_passes_from_one_patient_to_another_in_one_replacement(database: Database) -> None:
    write(database, replace_by_rows, CONTACT_MAPPING, [matched("1", 1), matched("2", 2), matched("3", 3)])
    rotated = [matched("1", 2), matched("2", 1), matched("4", 3)]
    assert write(database, replace_by_rows, CONTACT_MAPPING, rotated) == Written(inserted=1, updated=2, deleted=1)
    assert [row[1].int for row in stored(database, CONTACT_MAPPING, "patient_id, contact_id")] == [2, 1, 3]


def test_contact_of_two_patients_is_refused_at_commit(database: Database) -> None:
    write(database, replace_by_rows, CONTACT_MAPPING, [matched("1", 1)])
    with pytest.raises(DataError, match="UniqueViolation"):
        write(database, replace_by_rows, CONTACT_MAPPING, [matched("1", 1), matched("2", 1)])
    assert [row[0] for row in stored(database, CONTACT_MAPPING, "patient_id")] == ["1"]


def test_a_query_replaces_like_rows(database: Database) -> None:
    query = """
        -- A comment: with a colon, and 100%
        select 'unmatched' as status, number::text as patient_id, null::uuid as contact_id, null as method,
            cast(:count as integer) as candidate_count
        from generate_series(1, :last) as number -- no line follows"""
    for last, expected in ((3, Written(inserted=3)), (2, Written(deleted=1)), (4, Written(inserted=2))):
        with database.organization("a") as connection:
            parameters = {"last": last, "count": None}
            assert replace_by_query(connection, CONTACT_MAPPING, query + "\n", parameters) == expected


def test_a_table_without_a_key_is_emptied_and_filled(database: Database) -> None:
    keyless = Table("cliniko", "practitioners", key=(), columns=("id", "name", "created_at", "updated_at"))
    rows = [(str(number), "Pat", DAY, DAY) for number in range(3)]
    assert write(database, replace_all, keyless, rows, "b") == Written(inserted=3)
    assert write(database, replace_all, keyless, rows) == Written(inserted=3)
    assert write(database, replace_all, keyless, rows[:1]) == Written(inserted=1, deleted=3)
    assert write(database, replace_all, keyless, []) == Written(deleted=1)
    assert len(stored(database, keyless, "id", "b")) == 3


def test_staging_table_is_recreated_after_a_rollback(database: Database) -> None:
    for _ in range(2):
        with suppress(KeyError), database.organization("a") as connection:
            upsert(connection, PATIENTS, [patient("1")])
            raise KeyError
    assert write(database, upsert, PATIENTS, [patient("1")]) == Written(inserted=1)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)


@settings(max_examples=examples(15, 300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            TEXTS | st.sampled_from(["null", '"', "\\", "\\.", "\\N", "]\n[", ",", "\r\n", " ", ""]), st.datetimes()
        ),
        min_size=1,
        max_size=5,
    )
)
def test_text_and_instants_are_stored_as_they_are(database: Database, values: list[tuple[str, datetime]]) -> None:
    write(database, replace_by_rows, PATIENTS, [])
    rows = [
        (str(number), text, None, text[::-1], None, None, None, None, moment.replace(tzinfo=UTC), DAY)
        for number, (text, moment) in enumerate(values)
    ]
    write(database, upsert, PATIENTS, rows)
    columns = "cast(id as integer), first_name, last_name, email, created_at"
    assert stored(database, PATIENTS, columns) == [(int(row[0]), row[1], row[2], row[3], row[8]) for row in rows]


@pytest.mark.parametrize("function", [upsert, replace_by_rows, replace_all])
@pytest.mark.parametrize("failure", ["bad value", "broken source", "null key", "after the write"])
def test_an_error_in_the_middle_leaves_the_table_as_it_was(database: Database, function, failure: str) -> None:
    write(database, upsert, PATIENTS, [patient("1"), patient("2")])
    before = seen(database, PATIENTS)

    def rows():
        yield patient("1", "New", updated=1)
        yield patient("3")
        if failure == "bad value":
            yield (*patient("4")[:-1], "no instant")
        if failure == "null key":
            yield (None, *patient("4")[1:])
        if failure == "broken source":
            raise KeyError

    with suppress(ClinikoPipelineError, KeyError), database.organization("a") as connection:
        function(connection, PATIENTS, rows())
        if failure == "after the write":
            raise KeyError
        pytest.fail("nothing was refused")
    assert seen(database, PATIENTS) == before
    assert write(database, upsert, PATIENTS, [patient("3")]) == Written(inserted=1)


@pytest.mark.parametrize("organizations", ["aa", "ab"], ids=["of one organization", "of two organizations"])
def test_concurrent_replacements_are_serialized(database: Database, organizations: str) -> None:
    candidates = [[active(c) for c in range(1, 40)], [active(c, 2) for c in range(20, 60)]]
    start = Barrier(2)

    def replace(worker: int) -> Written:
        start.wait(10)
        return write(database, replace_by_rows, ACTIVE_PATIENTS, candidates[worker], organizations[worker])

    for _ in range(4):
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(replace, range(2)))
        for organization in set(organizations):
            found = stored(database, ACTIVE_PATIENTS, "contact_id, recent_appointment_count", organization)
            allowed = [
                [(row[0], row[1]) for row in rows]
                for rows, its in zip(candidates, organizations, strict=True)
                if its == organization
            ]
            assert found in allowed


def test_replacement_waits_for_same_table_and_organization(database: Database) -> None:
    def held(connection: Connection) -> bool:
        connection.execute(sa.text("set local lock_timeout = '50ms'"))
        try:
            replace_by_rows(connection, ACTIVE_PATIENTS, [])
        except sa.exc.OperationalError:
            connection.rollback()
            return True
        return False

    with database.organization("a") as writer:
        replace_by_rows(writer, ACTIVE_PATIENTS, [active(1)])
        with database.organization("b") as other:
            assert not held(other)
        with database.organization("a") as same:
            assert held(same)
        with database.organization("a") as same:
            replace_by_rows(same, CONTACT_MAPPING, [])


def test_upserts_of_the_same_rows_at_the_same_time_never_mix(database: Database) -> None:
    start = Barrier(4)

    def work(worker: int) -> None:
        start.wait(10)
        for turn in range(5):
            rows = [patient(str(number), f"v{worker}") for number in range(50)]
            with database.turn("a"), database.organization("a") as connection:
                upsert(connection, PATIENTS, rows if turn % 2 else rows[::-1])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert len({row[1] for row in stored(database, PATIENTS, "id, first_name")}) == 1


def test_organization_lock_ends_with_its_connection(database: Database) -> None:
    with suppress(DatabaseUnavailableError), database.turn("a"):
        with database.operator() as connection:
            connection.exec_driver_sql(
                "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
            )
        raise DatabaseUnavailableError("lost")
    with database.turn("a"), database.turn("b"):
        pass


def test_organization_lock_timeout_is_reported(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOCK_TIMEOUT_SECONDS", 0.05)
    with (
        database.turn("a"),
        pytest.raises(DatabaseUnavailableError, match="Another run has been writing organization 'a'"),
        database.turn("a"),
    ):
        raise AssertionError("both had their turn")
