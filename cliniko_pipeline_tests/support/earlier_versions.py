"""Databases of earlier versions of the pipeline."""

import pytest
from alembic import command

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.schema import isolation
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.tables import TENANT_TABLES

SHARED_ROLE = "cliniko_organization"
FIRST_VERSION = "0001"
_LATER_TABLES = ("crawled_ids", "table_states", "daily_active_patients")
_LATER_FUNCTIONS = ("functions/stored_records", "request_budgets/take_requests")


def migrate_with_shared_role(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrate as earlier versions did, which shared one organization role among all databases of a server."""
    with monkeypatch.context() as patch:
        _share_role(patch)
        patch.setattr(schema, "expected_version", lambda: "earlier")
        schema.migrate(database)


def migrate_as_first_version(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create the schema of the first version, and missing tables of the application."""
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        _share_role(patch)
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, FIRST_VERSION))
        tables = tuple(table for table in TENANT_TABLES if not table.endswith(_LATER_TABLES))
        patch.setattr(isolation, "TENANT_TABLES", tables)
        patch.setattr(schema, "WATCHED", ())
        patch.setattr(schema.identity, "adopt", lambda _, **__: None)
        patch.setattr(schema.filters, "store", lambda *_: False)
        functions = tuple(name for name in schema.FUNCTIONS if name not in _LATER_FUNCTIONS)
        patch.setattr(schema, "FUNCTIONS", functions)
        patch.setattr(schema, "expected_version", lambda: FIRST_VERSION)
        schema.migrate(database, create_application_tables=True)


def _share_role(patch: pytest.MonkeyPatch) -> None:
    earlier = {"roles/organization_role_name": f"select '{SHARED_ROLE}'"}
    patch.setattr(isolation, "sql", lambda name: earlier.get(name) or sql(name))
