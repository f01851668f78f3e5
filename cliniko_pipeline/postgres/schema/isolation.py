"""The organization role and the policies that keep organizations apart.

Roles belong to the server, so each database has its own organization role. If databases shared a role, the database
user of one database could read the organizations of another database.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.engine import INSUFFICIENT_PRIVILEGE, sql
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, TENANT_TABLES

ISOLATION = (
    "roles/organization_role_name",
    "isolation/organization_condition",
    "isolation/isolate",
    "roles/grant_sequence",
)
"""The SQL files of policies and grants. `migrate` creates policies and grants again when a file changes."""


def organization_role(connection: Connection) -> str:
    """Return the name of this database's organization role, which accesses tenant data."""
    return connection.execute(sa.text(sql("roles/organization_role_name"))).scalar_one()


def ensure_organization_role(connection: Connection) -> None:
    """Create the organization role if it is missing, and let the database user switch to it.

    Raise DatabaseSetupError, with the commands for a superuser, if the database user lacks a privilege.
    """
    role = organization_role(connection)
    user, may_switch = connection.execute(sa.text(sql("roles/may_switch")), {"role": role}).one()
    statements: list[str] = []
    if connection.execute(sa.text(sql("roles/role_powers")), {"role": role}).one_or_none() is None:
        statements.append(f"create role {role} nologin nobypassrls noinherit")
        may_switch = False
    if not may_switch:
        statements.append(f"grant {role} to {user}")
    if not _has_executed(connection, statements):
        raise DatabaseSetupError(
            f"The database user {user} lacks a privilege to create the role {role}, which keeps organizations apart, or"
            f" to switch to this role. Run `{'; '.join(statements)}` as a superuser or as a role with CREATEROLE, then"
            " run `cliniko-pipeline migrate` again."
        )
    # The organization role creates temporary staging tables.
    database = connection.execute(sa.text("select quote_ident(current_database())")).scalar_one()
    connection.exec_driver_sql(f"grant temporary on database {database} to {role}")


def isolate(connection: Connection) -> list[str]:
    """Put all tenant tables under row-level security, including those of the operator's own assets.

    Return warnings about tables that may belong to the application although they have the pipeline's policies. These
    tables are not changed. Raise DatabaseSetupError if a partition cannot be protected.
    """
    warnings: list[str] = []
    for table in connection.execute(sa.text(sql("isolation/unmarked_tables")), {"names": list(TENANT_TABLES)}).all():
        mark = f"comment on policy organization_isolation on {table.name} is 'cliniko_pipeline'"
        if table.is_made_for_an_asset:
            connection.exec_driver_sql(mark)
        else:
            warnings.append(
                f"{table.name} has the pipeline's policies, but may be a table of your application, so it was not"
                f" changed. If an asset writes it, run `{mark}` and `cliniko-pipeline migrate` again. Otherwise run"
                f" `drop policy organization_boundary on {table.name}; alter table {table.name} no force row level"
                " security`."
            )
    for schema, table in isolated_tables(connection):
        isolate_table(connection, schema, table)
    for part in _partitions(connection):
        if part.is_foreign:
            raise DatabaseSetupError(
                f"{part.name} is a partition on another server, where row-level security cannot keep organizations"
                f" apart. Detach it from public.{ACTIVE_PATIENTS.name}, or make it an ordinary table."
            )
        _protect(connection, part.name)
    connection.execute(sa.text(sql("roles/grant_sequence").format(role=organization_role(connection))))
    return warnings


def isolated_tables(connection: Connection) -> list[tuple[str, str]]:
    """Return (schema, table), both quoted for SQL, of all tables that the pipeline isolates."""
    own = {(table.partition(".")[0].strip('"'), table) for table in TENANT_TABLES}
    operators = {(row.schema, row.name) for row in connection.execute(sa.text(sql("isolation/isolated_tables")))}
    unquoted = {table.replace('"', "") for _, table in own}
    return sorted(own | {(schema, name) for schema, name in operators if name not in unquoted})


def isolate_table(connection: Connection, schema: str, table: str) -> None:
    """Isolate a table and grant it to the organization role. Both names are quoted for SQL."""
    _protect(connection, table)
    role = organization_role(connection)
    connection.exec_driver_sql(
        f"grant usage on schema {schema} to {role}; grant select, insert, update, delete on {table} to {role}"
    )


def require_own_policies(connection: Connection) -> None:
    """Raise DatabaseSetupError if an application's policy has a name that the pipeline needs."""
    names = [*TENANT_TABLES, *(part.name for part in _partitions(connection))]
    foreign = connection.execute(sa.text(sql("isolation/foreign_policies")), {"names": names}).all()
    if foreign:
        policies = ", ".join(f"{policy.name} of {policy.table}" for policy in foreign)
        renaming = "; ".join(
            f"alter policy {policy.name} on {policy.table} rename to application_{policy.name}" for policy in foreign
        )
        raise DatabaseSetupError(
            f"The policy {policies} does not belong to the pipeline, which needs this name. Rename the policy as the"
            f" table's owner: `{renaming}`."
        )


def _partitions(connection: Connection) -> Sequence[sa.Row[Any]]:
    return connection.execute(sa.text(sql("isolation/partitions")), {"names": list(TENANT_TABLES)}).all()


def _protect(connection: Connection, table: str) -> None:
    condition = connection.execute(sa.text(sql("isolation/organization_condition")), {"table": table}).scalar_one()
    role = organization_role(connection)
    connection.exec_driver_sql(sql("isolation/isolate").format(table=table, condition=condition, role=role))


def unisolated_tables(connection: Connection) -> list[str]:
    """Return the tables without complete policies or without grants to the organization role."""
    parameters = {
        "names": [table for _, table in isolated_tables(connection)],
        "parts": [part.name for part in _partitions(connection)],
        "role": organization_role(connection),
    }
    return list(connection.execute(sa.text(sql("isolation/unisolated_tables")), parameters).scalars())


def require_powerless_role(connection: Connection) -> None:
    """Raise DatabaseSetupError if the organization role has more powers than it needs."""
    name = organization_role(connection)
    role = connection.execute(sa.text(sql("roles/role_powers")), {"role": name}).one_or_none()
    if role is None:
        return  # The migration creates the role.
    powers = [
        *(["is a superuser"] if role.rolsuper else []),
        *(["bypasses row-level security"] if role.rolbypassrls else []),
        *(["may log in"] if role.rolcanlogin else []),
        *(["is a member of " + ", ".join(role.memberships)] if role.memberships else []),
    ]
    if powers:
        mend = [f"alter role {name} nosuperuser nobypassrls nologin"]
        mend += [f"revoke {other} from {name}" for other in role.memberships]
        raise DatabaseSetupError(
            f"The role {name}, which must keep organizations apart, {' and '.join(powers)}: run"
            f" `{'; '.join(mend)}` as a superuser. First make sure that no other program uses the role."
        )


def strangers(connection: Connection) -> str | None:
    """Return a warning about unexpected members of the organization role, if there are any."""
    name = organization_role(connection)
    members = list(connection.execute(sa.text(sql("roles/role_members")), {"role": name}).scalars())
    if not members:
        return None
    return (
        f"{', '.join(members)} may switch to the role {name} and can read and write every organization's patients: run"
        f" `{'; '.join(f'revoke {name} from {member}' for member in members)}`."
    )


def unbound_user(connection: Connection) -> str | None:
    """Return a warning if the database user bypasses row-level security, else None."""
    query = "select rolsuper, rolbypassrls, quote_ident(rolname) as name from pg_roles where rolname = session_user"
    user = connection.execute(sa.text(query)).one()
    powers = [*(["is a superuser"] if user.rolsuper else []), *(["has BYPASSRLS"] if user.rolbypassrls else [])]
    if not powers:
        return None
    return (
        f"The database user {user.name} {' and '.join(powers)}: row-level security does not apply to it outside of an"
        " organization context. Make a user without these powers the owner of the tables (docs/database.md,"
        ' "Change the database user"), and put it into DATABASE_URL.'
    )


def dump_hint(connection: Connection) -> str | None:
    """Return a hint about roles that can dump the database; None if the database user can."""
    user = connection.execute(sa.text(sql("roles/dumping_roles")), {"table": ACTIVE_PATIENTS.qualified}).one()
    if user.may_dump:
        return None
    remedy = (
        f"dump as {' or '.join(user.others)}, or as a superuser."
        if user.others
        else "dump as a superuser, or create a role for dumps:"
        " `create role clinic_backup login bypassrls in role pg_read_all_data password '...'`."
    )
    return f"pg_dump as {user.name} fails under row-level security: {remedy}"


def retire_other_roles(connection: Connection) -> list[str]:
    """Revoke privileges that other databases' organization roles have in this database.

    Other roles have privileges in a copied database. In earlier versions, all databases of a server shared one role.
    This database's role gets the privileges that the operator granted to the other roles. Unused roles are dropped.
    Return warnings if a superuser or an owner must act.
    """
    own = organization_role(connection)
    warnings: list[str] = []
    grants = connection.execute(sa.text(sql("roles/other_grants")), {"role": own}).all()
    for grant in grants:
        statements = [f"revoke all on {grant.object} from {grant.role}"]
        if not grant.is_own:
            statements.insert(0, f"grant {grant.privileges.lower()} on {grant.object} to {own}")
        if not _has_executed(connection, statements):
            warnings.append(
                f"The role {grant.role} is not this database's organization role, but has privileges on"
                f" {grant.object}: run `{'; '.join(statements)}` as the owner."
            )
    policies = connection.execute(sa.text(sql("isolation/other_policies")), {"role": own}).all()
    warnings += [
        f"The policy {policy.policy} of {policy.object} is for {policy.role}, which is not this database's organization"
        f" role. As the table's owner, run `alter policy {policy.policy} on {policy.object} to {own}`, followed by the"
        " policy's other roles."
        for policy in policies
    ]
    names = sorted({row.role for row in (*grants, *policies)})
    for role in connection.execute(sa.text(sql("roles/abandoned_roles")), {"names": names}):
        if role.is_used:
            warnings.append(
                f"The role {role.name}, which all databases of the server shared, still has privileges: run"
                " `cliniko-pipeline migrate` for the other databases, too."
            )
        elif not _has_executed(connection, [f"drop role {role.name}"]):
            warnings.append(f"The role {role.name} is unused: run `drop role {role.name}` as a superuser.")
    return warnings


def _has_executed(connection: Connection, statements: Sequence[str]) -> bool:
    """Execute the statements; if the database user lacks a privilege, roll back and return False."""
    try:
        with connection.begin_nested():
            for statement in statements:
                connection.exec_driver_sql(statement)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        return False
    return True
