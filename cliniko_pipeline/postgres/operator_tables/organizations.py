"""The application's organizations and their stored Cliniko credentials.

The application owns these tables, and the pipeline creates no policies on them. Credentials are encrypted, and only the
vault decrypts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import NoOrganizationsError, OrganizationUnknownError
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.schema.isolation import isolated_tables

SERVICE = "cliniko"
"""The `api_credentials.service_name` of Cliniko credentials."""


MAX_IDS_SHOWN = 5

OPERATOR_TABLES = (
    "cliniko.scheduling",
    "cliniko.check_results",
    "cliniko.alerts",
    "cliniko.webhook_secrets",
    "cliniko.webhook_events",
    "cliniko.webhook_targets",
    "cliniko.webhook_deliveries",
)
"""The tables with rows per organization, but without row-level security and patient data."""


@dataclass(frozen=True)
class Organization:
    """An organization that has Cliniko credentials.

    Attributes:
        id: the organization's id in public.api_credentials, as text.
        name: the organization's name in public.organizations, or its id if it has no row there.
        is_active: whether the organization is enabled. Disabled organizations are not synced.
        last_validated_at: when Cliniko last accepted the credentials, UTC.
        verified_at: the latest instant for which the stored rows are known to be right, UTC; None if there is none.
        pause_reason: why the organization is paused; None if it is not paused.
        failed_checks: the names and remarks of the failed checks.
    """

    id: str
    name: str
    is_active: bool
    last_validated_at: datetime | None
    verified_at: datetime | None
    pause_reason: str | None
    failed_checks: list[str]


def organizations(connection: Connection) -> list[Organization]:
    """Return all organizations with Cliniko credentials, by id.

    Raise NoOrganizationsError if none is found and some were synced or scheduled before.
    """
    rows = connection.execute(sa.text(sql("organizations/organizations")), {"service": SERVICE, "id": None})
    found = [Organization(**row) for row in rows.mappings()]
    if not found:
        _require_none_before(connection)
    return found


def find(connection: Connection, organization_id: str) -> Organization | None:
    """Return the organization, or None if it has no Cliniko credentials."""
    rows = connection.execute(sa.text(sql("organizations/organizations")), {"service": SERVICE, "id": organization_id})
    return next((Organization(**row) for row in rows.mappings()), None)


def organization(connection: Connection, organization_id: str) -> Organization:
    """Return the organization; raise OrganizationUnknownError or NoOrganizationsError if it is missing."""
    found = find(connection, organization_id)
    if found is not None:
        return found
    organizations(connection)  # If there are no organizations at all, this raises a more helpful error.
    raise OrganizationUnknownError(
        f"There are no Cliniko credentials for organization '{organization_id}':"
        f" add them with `cliniko-pipeline organizations add {organization_id} --name NAME`."
    )


def stored_credentials(connection: Connection, organization_id: str) -> object:
    """Return the encrypted credentials; raise OrganizationUnknownError for a missing or disabled organization."""
    if not organization(connection, organization_id).is_active:
        raise OrganizationUnknownError(
            f"Organization '{organization_id}' is disabled:"
            f" enable it with `cliniko-pipeline organizations enable {organization_id}`."
        )
    return connection.execute(
        sa.text(
            "select credentials_encrypted from public.api_credentials"
            " where organization_id = :organization_id and service_name = :service"
        ),
        {"organization_id": organization_id, "service": SERVICE},
    ).scalar_one()


def credentials_of(connection: Connection, organization_ids: Sequence[str]) -> dict[str, object]:
    """Return the encrypted credentials of these organizations, by id, without disabled and unknown ones."""
    rows = connection.execute(
        sa.text(
            "select organization_id::text as id, credentials_encrypted from public.api_credentials"
            " where service_name = :service and is_active and organization_id::text = any(:ids)"
        ),
        {"service": SERVICE, "ids": list(organization_ids)},
    )
    return {row.id: row.credentials_encrypted for row in rows}


def all_stored_credentials(connection: Connection) -> dict[str, object]:
    """Return the encrypted credentials of all organizations, by id, and lock the rows."""
    rows = connection.execute(sa.text(sql("organizations/all_stored_credentials")), {"service": SERVICE})
    return {str(row.organization_id): row.credentials_encrypted for row in rows}


def save(
    connection: Connection, organization_id: str, name: str, encrypted: dict[str, str], *, validated: bool
) -> None:
    """Store an organization's credentials in place of earlier credentials, and enable the organization.

    An organization that is in public.organizations already keeps its name.
    """
    connection.execute(
        sa.text("insert into public.organizations (id, name) values (:id, :name) on conflict (id) do nothing"),
        {"id": organization_id, "name": name},
    )
    can_name_creator = connection.execute(sa.text(sql("organizations/can_name_creator"))).scalar_one()
    connection.execute(
        sa.text(sql("organizations/save_credentials")).bindparams(sa.bindparam("encrypted", type_=JSONB)),
        {
            "organization_id": organization_id,
            "service": SERVICE,
            "encrypted": encrypted,
            "created_by": "cliniko-pipeline" if can_name_creator else None,
            "validated": validated,
        },
    )


def replace_encrypted(connection: Connection, organization_id: str, encrypted: dict[str, str]) -> None:
    """Store the same credentials, encrypted with another key. This does not end a pause."""
    _update(connection, organization_id, "credentials_encrypted = :value", value=encrypted)
    connection.execute(
        sa.text(sql("organizations/keep_pause")), {"organization_id": organization_id, "service": SERVICE}
    )


def mark_validated(connection: Connection, organization_id: str) -> None:
    """Store that Cliniko has just accepted the credentials."""
    _update(connection, organization_id, "last_validated_at = now()")


def set_active(connection: Connection, organization_id: str, *, active: bool) -> None:
    """Enable or disable the organization; raise OrganizationUnknownError if it is missing."""
    organization(connection, organization_id)
    _update(connection, organization_id, f"is_active = {'true' if active else 'false'}")


def remove(database: Database, organization_id: str) -> int:
    """Delete the organization's tenant data and credentials; return the number of tenant rows.

    The application's organizations and contacts are not deleted. The first transaction disables the organization, the
    second deletes the rows under the organization lock, and the third deletes the credentials. An interrupted removal
    can be repeated.

    Raise OrganizationUnknownError if there are neither rows nor credentials, and DatabaseUnavailableError if a running
    sync holds the organization lock for too long.
    """
    with database.operator() as connection:
        _update(connection, organization_id, "is_active = false")
    with database.organization_lock(organization_id):
        rows = delete_tenant_rows(database, organization_id)
    with database.operator() as connection:
        if not rows:
            organization(connection, organization_id)
        connection.execute(
            sa.text("delete from public.api_credentials where organization_id = :id and service_name = :service"),
            {"id": organization_id, "service": SERVICE},
        )
        for table in OPERATOR_TABLES:
            connection.execute(sa.text(f"delete from {table} where organization_id = :id"), {"id": organization_id})
        # A token must not give access to another clinic that gets the same id.
        connection.execute(
            sa.text(
                "update cliniko.api_tokens set organizations = array_remove(organizations, :id)"
                " where :id = any(organizations)"
            ),
            {"id": organization_id},
        )
    return rows


def delete_tenant_rows(database: Database, organization_id: str) -> int:
    """Delete all tenant rows of the organization; return their number."""
    with database.organization(organization_id) as connection:
        return delete_rows(connection)


def delete_rows(connection: Connection) -> int:
    """Delete all tenant rows of the context's organization; return their number."""
    # The condition is a second safeguard besides the policies.
    mine = """organization_id::text collate "C" = current_setting('app.organization_id')"""
    return sum(
        connection.execute(sa.text(f"delete from {table} where {mine}")).rowcount
        for _, table in isolated_tables(connection)
    )


def _require_none_before(connection: Connection) -> None:
    row = connection.execute(sa.text(sql("organizations/organizations_before"))).one()
    if not row.ids:
        return
    if row.is_under_policies:
        raise NoOrganizationsError(
            f"The database user {row.reader} sees no organization in public.api_credentials, although there were some"
            f" ({_some(row.ids)}). Row-level security of the table may hide them. Run `create policy cliniko_pipeline"
            f" on public.api_credentials to {row.reader} using (true)` as the table's owner, or, if a restrictive"
            f" policy applies, `alter role {row.reader} bypassrls` as a superuser."
        )
    raise NoOrganizationsError(
        "There are no Cliniko credentials in public.api_credentials any more, although there were some organizations"
        f" ({_some(row.ids)}). Restore the rows, or remove each organization with `cliniko-pipeline organizations"
        " remove ID`."
    )


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:MAX_IDS_SHOWN])
    return shown if len(ids) <= MAX_IDS_SHOWN else f"{shown} and {len(ids) - MAX_IDS_SHOWN} more"


def _update(connection: Connection, organization_id: str, assignment: str, **values: Any) -> None:
    statement = sa.text(
        f"update public.api_credentials set {assignment}, updated_at = now()"
        " where organization_id = :organization_id and service_name = :service"
    )
    if values:
        statement = statement.bindparams(sa.bindparam("value", type_=JSONB))
    connection.execute(statement, {"organization_id": organization_id, "service": SERVICE, **values})
