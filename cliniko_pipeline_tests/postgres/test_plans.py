"""How the two large queries are carried out: in time that grows with the organization, not with its square."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres import crawls
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.merge import Written, replace_by_query
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, CONTACT_MAPPING, RECONCILED, Table

AS_OF = datetime(2026, 6, 15, tzinfo=UTC)
SIZE = 2_000
QUERIES: list[tuple[Table, str, dict[str, object]]] = [
    (CONTACT_MAPPING, "contact_mapping", {}),
    (
        ACTIVE_PATIENTS,
        "active_patients",
        {"as_of": AS_OF, "activity_window": timedelta(days=60), "count_no_shows": True},
    ),
]
# Of seven patients one has no e-mail, of five one is merged; of three contacts one names its patient.
ROWS = f"""
insert into cliniko.patients
    (organization_id, id, first_name, last_name, email, merged_into_id, created_at, updated_at)
select 'a', (1000 + n)::text, 'First' || n, 'Last' || n / 2, case when n % 7 > 0 then n / 2 || '@example.com' end,
    case when n % 5 = 0 then (999 + n)::text end, now(), now()
from generate_series(1, {SIZE}) as n;
insert into cliniko.appointments
    (organization_id, kind, id, patient_id, starts_at, did_not_arrive, created_at, updated_at)
select 'a', case when n % 4 = 0 then 'group' else 'individual' end, n::text,
    case when n % 4 > 0 then (1001 + n % {SIZE})::text end, '2026-06-20'::timestamptz - n % 100 * interval '1 day',
    false, now(), now()
from generate_series(1, {SIZE * 4}) as n;
insert into cliniko.attendees (organization_id, id, booking_id, patient_id, created_at, updated_at)
select 'a', n::text, (n * 4)::text, (1001 + n % {SIZE})::text, now(), now()
from generate_series(1, {SIZE}) as n;
"""
CONTACTS = f"""
insert into public.contacts (organization_id, cliniko_patient_id, name, email)
select 'a', case when n % 3 = 0 then (1000 + n)::text end, 'First' || n || ' Last' || n / 2, n / 2 || '@example.com'
from generate_series(1, {SIZE}) as n
"""


@pytest.fixture(scope="module")
def database(module_database: Database) -> Iterator[Database]:
    """An organization read for the first time: nothing was analyzed yet."""
    with module_database.operator() as connection:
        for table in ("cliniko.patients", "cliniko.appointments", "cliniko.attendees", "public.active_patients"):
            connection.exec_driver_sql(f"alter table {table} set (autovacuum_enabled = false)")
        connection.exec_driver_sql("alter table cliniko.contact_mapping set (autovacuum_enabled = false)")
        connection.execute(sa.text(CONTACTS))
    with module_database.organization("a") as connection:
        connection.execute(sa.text(ROWS))
    return module_database


@pytest.mark.parametrize("state", ["empty tables", "computed before", "analyzed"])
@pytest.mark.parametrize(("table", "name", "parameters"), QUERIES, ids=[name for _, name, _ in QUERIES])
def test_queries_have_no_nested_loop(
    database: Database, table: Table, name: str, parameters: dict[str, object], state: str
) -> None:
    if state != "empty tables":
        for each, query, values in QUERIES:
            with database.organization("a") as connection:
                replace_by_query(connection, each, sql(query), values)
    if state == "analyzed":
        with database.operator() as connection:
            connection.exec_driver_sql("analyze")
    with database.organization("a") as connection:
        replace_by_query(connection, table, sql(name), parameters)
        # In the same transaction, for which that has set how to plan.
        assert "Nested Loop" not in _steps(connection, name, parameters)
        connection.rollback()


def test_the_queries_compute_what_they_should_at_this_size(database: Database) -> None:
    written = []
    for table, name, parameters in QUERIES:
        with database.organization("a") as connection:
            connection.execute(sa.text(f"delete from {table.qualified}"))
            written.append(replace_by_query(connection, table, sql(name), parameters))
    with database.organization("a") as connection:
        matched = connection.execute(
            sa.text("select count(*) from cliniko.contact_mapping where status = 'matched'")
        ).scalar_one()
    persons = SIZE - SIZE // 5
    assert written[0] == Written(inserted=persons)
    assert matched == persons  # each has a contact of its own name


@pytest.mark.parametrize("name", ["vanished", "mark_vanished", "stored_count"])
def test_deleted_records_are_found_without_nested_loop(database: Database, name: str) -> None:
    with database.organization("a") as connection:
        crawls.begin(connection, "attendees", is_full=True, reconciles=True)
        crawls.remember_ids(connection, "attendees", [str(number) for number in range(SIZE // 10, SIZE)])
        assert crawls.vanished(connection, "attendees", None) == crawls.Vanished(SIZE, SIZE // 10)
        rows = RECONCILED["attendees"]
        statement = sql(name).format(table=rows.table.qualified, condition=rows.condition)
        parameters = {"resource": "attendees", "horizon": None, "created_before": None}
        used = {key: value for key, value in parameters.items() if f":{key}" in statement}
        assert "Nested Loop" not in _steps_of(connection, statement, used)
        assert crawls.mark_vanished(connection, "attendees", None) == SIZE // 10
        connection.rollback()


def test_how_a_query_is_planned_ends_with_its_transaction(database: Database) -> None:
    with database.organization("a") as connection:
        replace_by_query(connection, CONTACT_MAPPING, sql("contact_mapping"), {})
        assert connection.execute(sa.text("show enable_nestloop")).scalar_one() == "off"
    with database.organization("a") as connection:
        assert connection.execute(sa.text("show enable_nestloop")).scalar_one() == "on"


def _steps(connection: Connection, name: str, parameters: dict[str, object]) -> set[str]:
    return _steps_of(connection, sql(name), parameters)


def _steps_of(connection: Connection, statement: str, parameters: dict[str, object]) -> set[str]:
    plan = connection.execute(sa.text(f"explain (format json) {statement}"), parameters).scalar_one()
    plan = json.loads(plan) if isinstance(plan, str) else plan

    def walk(node: dict[str, Any]) -> Iterator[str]:
        yield node["Node Type"]
        for child in node.get("Plans", []):
            yield from walk(child)

    return set(walk(plan[0]["Plan"]))
