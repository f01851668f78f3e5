"""Tests of DataFrames of an operator's own assets, which are read as they were written."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from threading import Barrier
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cliniko_pipeline.errors import DatabaseSetupError, DataError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema.isolation import organization_role
from cliniko_pipeline.postgres.writing import frames
from cliniko_pipeline.postgres.writing.merge import Written
from cliniko_pipeline_tests.support.properties import examples
from cliniko_pipeline_tests.support.waiting import LIMIT_SECONDS

SYDNEY = timezone(timedelta(hours=10))
INSTANT = datetime(2026, 3, 1, 9, 30, 0, 123456, tzinfo=UTC)

# The values of a column, its type, and the values that are read back if they differ.
COLUMNS: dict[str, tuple[pd.Series, str, list[object]]] = {
    "small integers": (pd.Series([1, 2], dtype="int8"), "bigint", [1, 2]),
    "nullable integers": (pd.Series([-(2**63), None], dtype="Int64"), "bigint", [-(2**63), None]),
    "integers as objects": (pd.Series([None, np.int64(2**62 + 1)], dtype=object), "bigint", [None, 2**62 + 1]),
    "floats": (pd.Series([float("inf"), float("nan")]), "double precision", [float("inf"), None]),
    "nullable booleans": (pd.Series([True, None], dtype="boolean"), "boolean", [True, None]),
    "numpy booleans as objects": (pd.Series([np.bool_(True), None], dtype=object), "boolean", [True, None]),
    "texts": (pd.Series(["Zoë 😀\n\t\\N", ""]), "text", ["Zoë 😀\n\t\\N", ""]),
    "texts of pandas": (pd.Series(["x", None], dtype="string"), "text", ["x", None]),
    "categories": (pd.Series(["x", None], dtype="category"), "text", ["x", None]),
    "instants elsewhere": (
        pd.Series([INSTANT.astimezone(SYDNEY), None]),
        "timestamp with time zone",
        [INSTANT, None],
    ),
    "instants as objects": (pd.Series([None, INSTANT], dtype=object), "timestamp with time zone", [None, INSTANT]),
    "naive times": (
        pd.Series([pd.Timestamp(2026, 3, 1, 9), pd.NaT]),
        "timestamp without time zone",
        [datetime(2026, 3, 1, 9), None],  # noqa: DTZ001
    ),
    "naive times as objects": (
        pd.Series([None, datetime(2026, 3, 1, 9)], dtype=object),  # noqa: DTZ001
        "timestamp without time zone",
        [None, datetime(2026, 3, 1, 9)],  # noqa: DTZ001
    ),
    "dates": (pd.Series([date(2026, 3, 1), None]), "date", [date(2026, 3, 1), None]),
    "decimals": (
        pd.Series([Decimal("12345678901234567890.10"), None]),
        "numeric",
        [Decimal("12345678901234567890.10"), None],
    ),
    "uuids": (pd.Series([UUID(int=7), None]), "uuid", [UUID(int=7), None]),
    "objects": (pd.Series([{"a": [1, None, "😀"]}, [2]]), "jsonb", [{"a": [1, None, "😀"]}, [2]]),
    "durations": (pd.Series([timedelta(days=1, seconds=1), None]), "interval", [timedelta(days=1, seconds=1), None]),
    "nothing": (pd.Series([None, None], dtype=object), "text", [None, None]),
}


# The long names have at least one byte more than PostgreSQL keeps.
HOSTILE_NAMES = ['x" text); --', "a:b", "50%", "", "a\x00b", "a\nb", 1, None, "ctid", "a" * 64, "名" * 22]


@pytest.fixture
def database(module_database: Database) -> Database:
    with module_database.operator() as connection:
        connection.execute(sa.text("drop schema if exists clinic cascade"))
    return module_database


def write(database: Database, frame: pd.DataFrame, organization: str = "a", name: str = "reports") -> Written:
    return frames.write(database, organization, "clinic", name, frame)


def values(database: Database, organization: str = "a", name: str = "reports") -> list[tuple[object, ...]]:
    frame = frames.read(database, organization, "clinic", name)
    return [
        tuple(None if not isinstance(value, dict | list) and pd.isna(value) else value for value in row)
        for row in frame.astype(object).itertuples(index=False, name=None)
    ]


def test_columns_of_every_type_are_read_back(database: Database) -> None:
    frame = pd.DataFrame({"position": [0, 1]} | {name: series for name, (series, _, _) in COLUMNS.items()})
    expected = {name: values for name, (_, _, values) in COLUMNS.items()}
    assert write(database, frame) == Written(inserted=2)
    with database.operator() as connection:
        types = connection.execute(
            sa.text(
                "select attname, format_type(atttypid, null) from pg_attribute"
                " where attrelid = 'clinic.reports'::regclass and attnum > 0 order by attnum"
            )
        ).all()
    assert [name for name, _ in types] == ["organization_id", "position", *COLUMNS]
    assert dict(map(tuple, types[2:])) == {name: sql_type for name, (_, sql_type, _) in COLUMNS.items()}
    assert by_column(database) == expected
    # The read values can be written again without a change.
    write(database, frames.read(database, "a", "clinic", "reports"))
    assert by_column(database) == expected


def by_column(database: Database) -> dict[str, list[object]]:
    rows = sorted(values(database), key=lambda row: row[0])
    return {name: [row[number] for row in rows] for number, name in enumerate(COLUMNS, start=1)}


def test_write_replaces_the_rows_of_its_organization_only(database: Database) -> None:
    assert write(database, pd.DataFrame({"x": [1, 2, 3]})) == Written(inserted=3)
    # The index is not stored.
    frame = pd.DataFrame({"x": [9]}, index=pd.Index(["k"], name="key"))
    assert write(database, frame, "b") == Written(inserted=1)
    assert write(database, pd.DataFrame({"x": [1, 5]})) == Written(inserted=2, deleted=3)
    assert (sorted(values(database)), values(database, "b")) == ([(1,), (5,)], [(9,)])


def test_empty_frame_deletes_the_rows(database: Database) -> None:
    assert write(database, pd.DataFrame({"x": pd.Series([], dtype="int64"), "y": []})) == Written()
    assert values(database) == []
    write(database, pd.DataFrame({"x": [1], "y": [2.5]}))
    assert write(database, pd.DataFrame({"x": [], "y": []})) == Written(deleted=1)
    assert values(database) == []


def test_integers_with_a_missing_value_stay_integers(database: Database) -> None:
    write(database, pd.DataFrame({"x": [1, 2]}))
    write(database, pd.DataFrame({"x": [7, None]}), "b")
    assert sorted(values(database, "b"), key=str) == [(7,), (None,)]
    with pytest.raises(DataError):
        write(database, pd.DataFrame({"x": [7.5, None]}), "b")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (pd.DataFrame(), r"clinic\.reports has no columns"),
        (pd.DataFrame(index=[1, 2]), r"clinic\.reports has no columns"),
        (pd.DataFrame({"x": [1], "organization_id": ["b"]}), "remove it"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "two columns of the same name"),
        *((pd.DataFrame({"x": [1], name: [2]}), None) for name in HOSTILE_NAMES),
    ],
)
def test_frame_of_unusable_columns_is_refused(database: Database, frame: pd.DataFrame, reason: str | None) -> None:
    with pytest.raises(DataError, match=reason) as raised:
        write(database, frame)
    assert "\n" not in str(raised.value)
    assert _tables(database) == []


def test_unusual_column_names_are_kept(database: Database) -> None:
    names = ["select", "Upper Case", "größe", "名前", "_x", "a" * 63, "ö" * 31]
    for value in (1, 2):
        write(database, pd.DataFrame({name: [value] for name in names}))
        assert list(frames.read(database, "a", "clinic", "reports").columns) == names
        assert values(database) == [(value,) * len(names)]


def test_unknown_column_is_refused_and_a_missing_one_left_null(database: Database) -> None:
    write(database, pd.DataFrame({"x": [1], "y": ["a"]}))
    with pytest.raises(DataError, match="has no column z"):
        write(database, pd.DataFrame({"x": [2], "z": [1]}))
    assert values(database) == [(1, "a")]
    write(database, pd.DataFrame({"y": ["b"]}))
    assert values(database) == [(None, "b")]


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([1, "not a number"], dtype=object),
        pd.Series(["NUL \x00"]),
        pd.Series([2**63], dtype="uint64"),
        pd.Series([{"nul": "\x00"}]),
        pd.Series([{"when": datetime.now(UTC)}]),
        pd.Series(["half a character \ud800"]),
        pd.Series([object()]),
    ],
    ids=["mixed", "nul", "too large", "nul in json", "instant in json", "surrogate", "foreign object"],
)
def test_unstorable_value_is_refused_without_being_quoted(database: Database, series: pd.Series) -> None:
    write(database, pd.DataFrame({"before": [1]}), name="kept")
    with pytest.raises(DataError) as raised:
        write(database, pd.DataFrame({"x": series}))
    assert "\n" not in str(raised.value)
    assert not any(part in str(raised.value) for part in ("not a number", "NUL", "half", "9223372036854775808"))
    assert values(database, name="kept") == [(1,)]


def test_created_table_is_isolated_and_part_of_a_removal(database: Database) -> None:
    for organization in "ab":
        write(database, pd.DataFrame({"x": [1, 2]}), organization)
    with database.operator() as connection:
        row = connection.execute(
            sa.text(
                """
                select relrowsecurity, relforcerowsecurity,
                    (select count(*) from pg_policy where polrelid = pg_class.oid),
                    has_table_privilege(:role, oid, 'truncate')
                from pg_class where oid = 'clinic.reports'::regclass
                """
            ),
            {"role": organization_role(connection)},
        ).one()
    assert tuple(row) == (True, True, 2, False)
    with database.organization("a") as connection:
        found = connection.execute(sa.text("select organization_id from clinic.reports")).scalars().all()
    assert found == ["a", "a"]
    assert organizations.delete_tenant_rows(database, "a") == 2
    assert (values(database), len(values(database, "b"))) == ([], 2)


def test_owner_of_a_created_table_sees_no_rows_without_a_context(owner_database: Database) -> None:
    write(owner_database, pd.DataFrame({"x": [1, 2]}))
    assert len(values(owner_database)) == 2
    with owner_database.operator() as connection:
        assert connection.execute(sa.text("select count(*) from clinic.reports")).scalar_one() == 0
        # Other tests have users of this database without access to the new schema.
        connection.execute(sa.text("drop schema clinic cascade"))


def test_first_writes_of_many_organizations_at_once_succeed(database: Database) -> None:
    start = Barrier(8)

    def work(number: int, schema: str) -> Written:
        start.wait(LIMIT_SECONDS)
        return frames.write(database, f"org_{number}", schema, "at_once", pd.DataFrame({"x": [number]}))

    # There are two rounds. In the first round, the writers also create the schema, and their overlap is random.
    for schema in ("first", "second"):
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(work, range(8), [schema] * 8)) == [Written(inserted=1)] * 8
        read = [frames.read(database, f"org_{number}", schema, "at_once")["x"].tolist() for number in range(8)]
        assert read == [[number] for number in range(8)]


def test_application_tables_cannot_be_written_or_read(database: Database) -> None:
    with pytest.raises((DatabaseSetupError, DataError)):
        frames.write(database, "a", "public", "contacts", pd.DataFrame({"id": [None], "name": ["x"]}))
    with pytest.raises(DatabaseSetupError, match="permission denied"):
        frames.read(database, "a", "public", "contacts")
    with pytest.raises(DatabaseSetupError, match="does not exist"):
        frames.read(database, "a", "clinic", "nowhere")


def test_pipeline_table_takes_its_own_columns_only(database: Database) -> None:
    columns = ["patient_id", "contact_id", "status", "method", "candidate_count"]
    frame = pd.DataFrame(
        [["1", None, "unmatched", None, None], ["2", UUID(int=1), "matched", "name", None]], columns=columns
    )
    assert frames.write(database, "a", "cliniko", "contact_mapping", frame) == Written(inserted=2)
    assert frames.write(database, "a", "cliniko", "contact_mapping", frame[columns[::-1]]) == Written()
    with pytest.raises(DataError, match="must have the columns"):
        frames.write(database, "a", "cliniko", "contact_mapping", frame[["patient_id"]])


SCALARS = [
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    st.booleans(),
    st.uuids(),
    st.dates(),
    st.datetimes(timezones=st.just(UTC), min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)),  # noqa: DTZ001
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20),
]


@settings(
    max_examples=examples(12, 60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(SCALARS).flatmap(lambda kind: st.lists(st.none() | kind, min_size=1, max_size=8)))
def test_values_of_any_type_are_read_back(database: Database, cells: list[object]) -> None:
    with database.operator() as connection:
        connection.execute(sa.text("drop table if exists clinic.any"))
    frame = pd.DataFrame({"n": range(len(cells)), "x": pd.Series(cells, dtype=object)})
    write(database, frame, name="any")
    with database.organization("a") as connection:
        stored = connection.execute(sa.text("select x from clinic.any order by n")).scalars().all()
    assert stored == cells


def _tables(database: Database) -> list[str]:
    with database.operator() as connection:
        return sa.inspect(connection).get_table_names("clinic")
