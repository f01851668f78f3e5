"""Tests of docs/errors.md, and of the remedies in error messages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.api.problems import MEANINGS
from cliniko_pipeline.cli.error_reference import render
from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.server.faults import FAULTS
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cliniko_pipeline"

# The places that advise `migrate`, and what `migrate` repairs in that case.
MAY_ADVISE_MIGRATE = {
    ("postgres/server/faults.py", "STATEMENTS"): "an object of the pipeline is missing",
    ("postgres/schema/upgrade.py", "require_current"): "an object of the pipeline is missing or of another version",
    ("postgres/schema/upgrade.py", "require_isolation"): "policies and grants; its user may grant the role",
    ("postgres/schema/inventory.py", "require_own_tables"): "the schema is created after it was dropped",
    ("postgres/schema/isolation.py", "ensure_organization_role"): "in `migrate` itself: again after a grant",
    ("postgres/schema/isolation.py", "isolate"): "in `migrate` itself: again after a statement",
    ("postgres/schema/isolation.py", "retire_other_roles"): "in `migrate` itself: for other databases",
    ("postgres/schema/identity.py", "require_own"): "with --adopt",
    ("postgres/schema/contacts_filter.py", "require_stored"): "`migrate` stores the setting",
    ("postgres/sql/contacts/refuse_contacts_filter.sql", ""): "after the setting was corrected",
}

# The places that advise `doctor`. The commands `doctor` and `migrate` rehearse a sync, and never load these modules.
MAY_ADVISE_DOCTOR = {
    ("orchestration/alerts/messages.py", "_ADVICE"): "alerts",
    ("orchestration/instance/start_rehearsal.py", "rehearse_at_start"): "the daemon's log",
    ("orchestration/runs/backfills.py", "_launched"): "`backfill`, which asks Dagster only",
    ("api/problems.py", "_answer_pipeline_error"): "the HTTP API",
}

EVENT_TRIGGER = """
    create function public.log_changes() returns event_trigger language plpgsql
    as $$ begin insert into public.changes values (now()); end $$
"""


def test_errors_page_equals_the_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert page == render(), "run `make errors`"
    for fault in FAULTS:
        assert fault.cause in page


def test_errors_page_has_every_status_of_the_api(environ: dict[str, str]) -> None:
    with open_runtime(load_settings(environ)) as runtime:
        paths = create_application(runtime).openapi()["paths"].values()
    documented = {int(status) for path in paths for route in path.values() for status in route["responses"]}
    assert {status for status in documented if status >= 400} <= set(MEANINGS)


def advising_places(words: str) -> set[tuple[str, str]]:
    """Return the places in the package, as module and function or constant, whose texts contain these words."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), "")
        for kind in ("sql", "js", "html")
        for path in PACKAGE.rglob(f"*.{kind}")
        if words in path.read_text(encoding="utf-8")
    }
    for path in PACKAGE.rglob("*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            docstrings = {id(each.value) for each in ast.walk(statement) if isinstance(each, ast.Expr)}
            texts = (each for each in ast.walk(statement) if isinstance(each, ast.Constant))
            if not any(words in str(each.value) for each in texts if id(each) not in docstrings):
                continue
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement
            found.add((path.relative_to(PACKAGE).as_posix(), getattr(target, "name", getattr(target, "id", "?"))))
    return found


def test_migrate_is_advised_only_where_it_helps() -> None:
    assert advising_places("cliniko-pipeline migrate") == set(MAY_ADVISE_MIGRATE)
    advising = [fault for fault in FAULTS if "cliniko-pipeline migrate" in fault.remedy]
    assert [fault.cause for fault in advising if fault.otherwise] == ["an object that the pipeline needs is missing"]
    assert len(advising) == 1
    assert not any("cliniko-pipeline" in fault.otherwise for fault in FAULTS)


def test_doctor_and_migrate_never_load_what_advises_doctor() -> None:
    assert advising_places("cliniko-pipeline doctor") == set(MAY_ADVISE_DOCTOR)
    modules = {f"cliniko_pipeline.{path.removesuffix('.py').replace('/', '.')}" for path, _ in MAY_ADVISE_DOCTOR}
    program = "import sys, cliniko_pipeline.cli.doctor, cliniko_pipeline.cli.migrate; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert modules & set(loaded) == set()


def test_migrate_does_not_advise_itself(database: Database, command: CommandLine) -> None:
    """`migrate` cannot make the missing object, because it belongs to the application."""
    administer(
        database.url,
        "drop index public.active_patients_organization_id_contact_id_key",
        EVENT_TRIGGER,
        "create event trigger log_changes on ddl_command_end execute function public.log_changes()",
    )
    with pytest.raises(DatabaseSetupError) as raised:
        schema.migrate(database)
    refused = command("migrate")
    assert_refused(refused, 'relation "public.changes" does not exist', "application's function")
    for text in (str(raised.value), refused.stderr):
        assert "pipeline migrate" not in text
        assert "doctor" not in text
    with pytest.raises(DatabaseSetupError, match="cliniko-pipeline migrate"), database.operator() as connection:
        connection.exec_driver_sql("select from cliniko.unknown")
    administer(database.url, "drop event trigger log_changes")
    assert command("migrate").returncode == 0
