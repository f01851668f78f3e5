"""Tests of dumps by Debian's pg_dump: which role can make a complete dump, and what a restored dump contains."""

import os
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.identity import copy_problem
from cliniko_pipeline.postgres.schema.rehearsal import rehearse
from cliniko_pipeline_tests.support.databases import administer, organization_role_of
from cliniko_pipeline_tests.support.servers import chosen_programs, debian_programs
from cliniko_pipeline_tests.support.tenants import MINE, sow


@pytest.fixture
def owned(debian_server_url: URL) -> Iterator[Database]:
    """Yield a migrated database of two organizations, whose owner is not a superuser."""
    name = f"dumped_{uuid4().hex}"
    administer(
        debian_server_url, f"create role {name} login createrole createdb", f"create database {name} owner {name}"
    )
    database = Database(debian_server_url.set(username=name, database=name))
    schema.migrate(database, create_application_tables=True)
    sow(database)
    yield database
    role = organization_role_of(database.url)
    database.close()
    administer(
        debian_server_url,
        f"drop database {name} with (force)",
        f"drop role {role}",
        f"drop role {name}",
    )


def run(
    program: str, url: URL, *arguments: str, user: str | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    programs = chosen_programs() or debian_programs()
    assert programs is not None
    if not (programs / program).exists():
        pytest.skip(f"{programs} has no {program}")
    command = [str(programs / program), f"--username={user or url.username}", f"--dbname={url.database}", *arguments]
    environ = os.environ | {"PGHOST": str(url.query["host"]), "PGPORT": str(url.query["port"])}
    return subprocess.run(command, env=environ, input=stdin, capture_output=True, text=True, check=False)


def test_owner_cannot_dump_and_the_named_role_can(owned: Database, debian_server_url: URL) -> None:
    assert "row-level security" in run("pg_dump", owned.url).stderr
    hint = schema.dump_hint(owned) or ""
    assert f"pg_dump as {owned.url.username} fails" in hint
    backup = f"backup_{uuid4().hex}"
    administer(debian_server_url, hint.split("`")[1].replace("clinic_backup", backup))
    try:
        assert f"dump as {backup}" in (schema.dump_hint(owned) or "")
        assert "Pat1" in run("pg_dump", owned.url, user=backup).stdout
    finally:
        administer(debian_server_url, f"drop role {backup}")


def test_superuser_needs_no_hint(owned: Database, debian_server_url: URL) -> None:
    superuser = Database(debian_server_url.set(database=owned.url.database))
    assert schema.dump_hint(superuser) is None
    superuser.close()


def test_restored_dump_is_a_copy_until_adopted(owned: Database, debian_server_url: URL) -> None:
    """If the owner restores the dump without owners and privileges, the copy has all rows and sends nothing."""
    dump = run("pg_dump", owned.url, "--no-owner", "--no-privileges", user="postgres").stdout
    name = f"restored_{uuid4().hex}"
    administer(debian_server_url, f"create database {name} owner {owned.url.username}")
    restored = Database(owned.url.set(database=name))
    try:
        # The policies refer to the role of the dumped database, which exists because the server is the same.
        done = run("psql", restored.url, "--quiet", "--set=ON_ERROR_STOP=1", stdin=dump)
        assert done.returncode == 0, done.stderr
        schema.migrate(restored)
        assert "migrate --adopt" in (copy_problem(restored) or "")
        assert [str(each) for each in rehearse(restored)] == []
        schema.migrate(restored, adopts=True)
        assert copy_problem(restored) is None
        with restored.organization(MINE) as connection:
            assert connection.exec_driver_sql("select first_name from cliniko.patients").scalars().all() == ["Pat1"]
    finally:
        role = organization_role_of(restored.url)
        restored.close()
        administer(debian_server_url, f"drop database {name} with (force)", f"drop role if exists {role}")


def test_schema_of_the_pipeline_can_be_restored_alone(owned: Database, debian_server_url: URL) -> None:
    """This is how an upgrade is rolled back (docs/deployment.md). The application's tables stay as they are."""
    dump = run("pg_dump", owned.url, "--schema=cliniko", user="postgres").stdout
    active = "select id, contact_id from public.active_patients"
    with owned.organization(MINE) as connection:
        before = connection.exec_driver_sql(active).all()
    administer(debian_server_url.set(database=owned.url.database), "drop schema cliniko cascade")
    restored = run("psql", owned.url, "--quiet", "--set=ON_ERROR_STOP=1", user="postgres", stdin=dump)
    assert (restored.returncode, restored.stderr) == (0, "")
    schema.migrate(owned)
    assert [str(each) for each in rehearse(owned)] == []
    assert copy_problem(owned) is None
    with owned.organization(MINE) as connection:
        assert connection.exec_driver_sql(active).all() == before != []
        assert connection.exec_driver_sql("select first_name from cliniko.patients").scalars().all() == ["Pat1"]
