"""Tests of writes of many rows: added, updated and removed rows, and above all unchanged rows."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import ClinikoPipelineError, DataError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, ATTENDEES, CONTACT_MAPPING, PATIENTS, Table
from cliniko_pipeline.postgres.writing.merge import (
    Written,
    quote,
    replace_all,
    replace_by_query,
    replace_by_rows,
    upsert,
)
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


def test_upsert_writes_and_stamps_new_and_changed_rows_only(database: Database) -> None:
    """The last read version is stored, even if its `updated_at` is older."""
    rows = [patient(str(number)) for number in range(1, 5)]
    assert write(database, upsert, PATIENTS, rows) == Written(inserted=4)
    before, stamps = seen(database, PATIENTS), dict(stored(database, PATIENTS, "id, synced_at"))
    assert write(database, upsert, PATIENTS, rows) == Written()
    assert seen(database, PATIENTS) == before
    rows = [patient("2"), patient("3", "Bea", updated=-1), patient("4", None, updated=1), patient("5")]
    assert write(database, upsert, PATIENTS, rows) == Written(inserted=1, updated=2)
    names = [("1", "Ann"), ("2", "Ann"), ("3", "Bea"), ("4", None), ("5", "Ann")]
    assert stored(database, PATIENTS, "id, first_name") == names
    after = dict(stored(database, PATIENTS, "id, synced_at"))
    assert [id_ for id_ in stamps if after[id_] > stamps[id_]] == ["3", "4"]


def test_last_of_several_readings_in_one_batch_is_stored(database: Database) -> None:
    rows = [patient(str(n), name) for name in ("First", "Second", "Last") for n in range(2_000)]
    assert write(database, upsert, PATIENTS, rows) == Written(inserted=2_000)
    assert write(database, upsert, PATIENTS, rows) == Written()
    assert {name for _, name in stored(database, PATIENTS, "id, first_name")} == {"Last"}


def test_replacement_writes_only_what_came_changed_and_went(database: Database) -> None:
    first = [active(1), active(2, details='[{"id": "1", "kind": "x"}]'), active(3)]
    write(database, replace_by_rows, ACTIVE_PATIENTS, first)
    before = seen(database, ACTIVE_PATIENTS)
    first[1] = active(2, details='[ {"kind":"x","id":"1"} ]')  # the same JSON in another spelling
    assert write(database, replace_by_rows, ACTIVE_PATIENTS, first) == Written()
    assert seen(database, ACTIVE_PATIENTS) == before
    written = write(database, replace_by_rows, ACTIVE_PATIENTS, [first[1], active(3, 5), active(4), active(5)])
    assert written == Written(inserted=2, updated=1, deleted=1)
    rows = stored(database, ACTIVE_PATIENTS, "contact_id, recent_appointment_count")
    assert [(contact.int, recent) for contact, recent in rows] == [(2, 1), (3, 5), (4, 1), (5, 1)]


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


def test_contact_passes_between_patients_in_one_replacement(database: Database) -> None:
    write(database, replace_by_rows, CONTACT_MAPPING, [matched("1", 1), matched("2", 2), matched("3", 3)])
    rotated = [matched("1", 2), matched("2", 1), matched("4", 3)]
    assert write(database, replace_by_rows, CONTACT_MAPPING, rotated) == Written(inserted=1, updated=2, deleted=1)
    assert [row[1].int for row in stored(database, CONTACT_MAPPING, "patient_id, contact_id")] == [2, 1, 3]


def test_contact_of_two_patients_is_refused_at_commit(database: Database) -> None:
    write(database, replace_by_rows, CONTACT_MAPPING, [matched("1", 1)])
    with pytest.raises(DataError, match="UniqueViolation"):
        write(database, replace_by_rows, CONTACT_MAPPING, [matched("1", 1), matched("2", 1)])
    assert [row[0] for row in stored(database, CONTACT_MAPPING, "patient_id")] == ["1"]


def test_query_replaces_like_rows(database: Database) -> None:
    query = """
        -- A comment: with a colon, and 100%
        select 'unmatched' as status, number::text as patient_id, null::uuid as contact_id, null as method,
            cast(:count as integer) as candidate_count
        from generate_series(1, :last) as number -- no line follows"""
    for last, expected in ((3, Written(inserted=3)), (2, Written(deleted=1)), (4, Written(inserted=2))):
        with database.organization("a") as connection:
            parameters = {"last": last, "count": None}
            assert replace_by_query(connection, CONTACT_MAPPING, query + "\n", parameters) == expected


def test_staging_table_is_reused_and_recreated_after_a_rollback(database: Database) -> None:
    for _ in range(2):
        with suppress(KeyError), database.organization("a") as connection:
            upsert(connection, PATIENTS, [patient("1")])
            raise KeyError
    with database.organization("a") as connection:
        assert upsert(connection, PATIENTS, [patient("1")]) == Written(inserted=1)
        assert upsert(connection, PATIENTS, [patient("1"), patient("2")]) == Written(inserted=1)
        assert upsert(connection, PATIENTS, []) == Written()


def test_name_is_quoted() -> None:
    assert quote('"; drop "') == '"""; drop """'


def test_written_counts_are_added() -> None:
    assert Written(1, 2, 3) + Written(inserted=10) == Written(11, 2, 3)


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
@pytest.mark.parametrize("failure", ["bad value", "broken source", "after the write"])
def test_error_in_the_middle_leaves_the_table_as_it_was(database: Database, function, failure: str) -> None:
    write(database, upsert, PATIENTS, [patient("1"), patient("2")])
    before = seen(database, PATIENTS)

    def rows():
        yield patient("1", "New", updated=1)
        yield patient("3")
        if failure == "bad value":
            yield (*patient("4")[:-1], "no instant")
        if failure == "broken source":
            raise KeyError

    with suppress(ClinikoPipelineError, KeyError), database.organization("a") as connection:
        function(connection, PATIENTS, rows())
        if failure == "after the write":
            raise KeyError
        pytest.fail("nothing was refused")
    assert seen(database, PATIENTS) == before
    assert write(database, upsert, PATIENTS, [patient("3")]) == Written(inserted=1)


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
