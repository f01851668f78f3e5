"""The organization role and the policies that keep organizations apart, and what they need to hold.

Every database has an organization role of its own. Roles belong to the server: one role for all databases would let
the pipeline's user of one database enter the organizations of another.
"""

from collections.abc import Sequence

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
    "roles/grant_table",
    "roles/grant_sequence",
)
"""The texts of which a change makes every policy and grant anew."""


def organization_role(connection: Connection) -> str:
    """Return the name of the role that statements on tenant data of this database run as."""
    return connection.execute(sa.text(sql("roles/organization_role_name"))).scalar_one()


def ensure_organization_role(connection: Connection) -> None:
    """Create the role unless it is there, and let the database user switch to it.

    Raises DatabaseSetupError with the commands for somebody who may, where the database user may not.
    """
    role = organization_role(connection)
    user, may_switch = connection.execute(sa.text(sql("roles/may_switch")), {"role": role}).one()
    needed: list[str] = []
    if connection.execute(sa.text(sql("roles/role_powers")), {"role": role}).one_or_none() is None:
        needed.append(f"create role {role} nologin nobypassrls noinherit")
        may_switch = False
    if not may_switch:
        needed.append(f"grant {role} to {user}")
    try:
        with connection.begin_nested():
            for each in needed:
                connection.exec_driver_sql(each)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        raise DatabaseSetupError(
            f"The database user {user} lacks a privilege: it may not make the role {role}, which keeps organizations"
            f" apart, or not switch to it. Run `{'; '.join(needed)}` as a superuser or with CREATEROLE, then"
            " `cliniko-pipeline migrate` again."
        ) from None
    # Staging tables are temporary ones.
    database = connection.execute(sa.text("select quote_ident(current_database())")).scalar_one()
    connection.exec_driver_sql(f"grant temporary on database {database} to {role}")


def isolate(connection: Connection) -> list[str]:
    """Put every tenant table, those of the operator's own assets included, under row-level security.

    A table of the application is never touched, though it has a policy of the same name. Return, in words, what looks
    like the pipeline's own but may not be. Raises DatabaseSetupError where a partition cannot be protected.
    """
    left: list[str] = []
    for table in connection.execute(sa.text(sql("isolation/unmarked_tables")), {"names": list(TENANT_TABLES)}).all():
        mark = f"comment on policy organization_isolation on {table.name} is 'cliniko_pipeline'"
        if table.is_made_for_an_asset:
            connection.exec_driver_sql(mark)
        else:
            left.append(
                f"{table.name} has the pipeline's policies, which an earlier version may have put on a table of your"
                f" application: it is left as it is. Where an asset writes it, run `{mark}` and `cliniko-pipeline"
                f" migrate` again; otherwise `drop policy organization_boundary on {table.name}; alter table"
                f" {table.name} no force row level security`."
            )
    for schema, table in isolated_tables(connection):
        isolate_table(connection, schema, table)
    for part in connection.execute(sa.text(sql("isolation/partitions")), {"names": list(TENANT_TABLES)}).all():
        if part.is_foreign:
            raise DatabaseSetupError(
                f"{part.name} is a partition on another server: row-level security cannot keep organizations apart in"
                f" it. Detach it from public.{ACTIVE_PATIENTS.name}, or make it an ordinary table."
            )
        _protect(connection, part.name)
    connection.execute(sa.text(sql("roles/grant_sequence").format(role=organization_role(connection))))
    return left


def isolated_tables(connection: Connection) -> list[tuple[str, str]]:
    """Return schema and table, both quoted for SQL, of all that the pipeline keeps apart by organization."""
    own = {(table.partition(".")[0].strip('"'), table) for table in TENANT_TABLES}
    operators = {(row.schema, row.name) for row in connection.execute(sa.text(sql("isolation/isolated_tables")))}
    unquoted = {table.replace('"', "") for _, table in own}
    return sorted(own | {(schema, name) for schema, name in operators if name not in unquoted})


def isolate_table(connection: Connection, schema: str, table: str) -> None:
    """Put a table under row-level security and grant it to the organization role. Both names are quoted for SQL."""
    _protect(connection, table)
    role = organization_role(connection)
    connection.exec_driver_sql(sql("roles/grant_table").format(schema=schema, table=table, role=role))


def require_own_policies(connection: Connection) -> None:
    """Raise DatabaseSetupError where a policy of the application's has a name that the pipeline needs on that table."""
    parts = connection.execute(sa.text(sql("isolation/partitions")), {"names": list(TENANT_TABLES)})
    names = [*TENANT_TABLES, *(part.name for part in parts)]
    foreign = connection.execute(sa.text(sql("isolation/foreign_policies")), {"names": names}).all()
    if foreign:
        renaming = [f"alter policy {each.name} on {each.table} rename to application_{each.name}" for each in foreign]
        raise DatabaseSetupError(
            f"The policy {', '.join(f'{each.name} of {each.table}' for each in foreign)} is not the pipeline's, which"
            f" needs the name. Rename it, as the table's owner: `{'; '.join(renaming)}`."
        )


def _protect(connection: Connection, table: str) -> None:
    condition = connection.execute(sa.text(sql("isolation/organization_condition")), {"table": table}).scalar_one()
    role = organization_role(connection)
    connection.exec_driver_sql(sql("isolation/isolate").format(table=table, condition=condition, role=role))


def unisolated_tables(connection: Connection) -> list[str]:
    """Return the tables that the policies do not close, or that the organization role cannot use."""
    parts = connection.execute(sa.text(sql("isolation/partitions")), {"names": list(TENANT_TABLES)})
    parameters = {
        "names": [table for _, table in isolated_tables(connection)],
        "parts": [part.name for part in parts],
        "role": organization_role(connection),
    }
    return list(connection.execute(sa.text(sql("isolation/unisolated_tables")), parameters).scalars())


def require_powerless_role(connection: Connection) -> None:
    """Raise DatabaseSetupError where the organization role may do more than it needs: somebody changed it."""
    name = organization_role(connection)
    role = connection.execute(sa.text(sql("roles/role_powers")), {"role": name}).one_or_none()
    if role is None:
        return  # made by the migration
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
            f"The role {name}, which keeps organizations apart, {' and '.join(powers)}: run"
            f" `{'; '.join(mend)}` as a superuser, after making sure that no other program uses the role."
        )


def strangers(connection: Connection) -> str | None:
    """Say who may enter every organization without being a user of the pipeline; None: nobody."""
    name = organization_role(connection)
    members = list(connection.execute(sa.text(sql("roles/role_members")), {"role": name}).scalars())
    if not members:
        return None
    return (
        f"{', '.join(members)} may switch to the role {name}, and so read and write every organization's patients: run"
        f" `{'; '.join(f'revoke {name} from {member}' for member in members)}`."
    )


def unbound_user(connection: Connection) -> str | None:
    """Say that the database user stands above row-level security; None: it does not."""
    user = connection.execute(sa.text(sql("roles/user_powers"))).one()
    powers = [*(["is a superuser"] if user.rolsuper else []), *(["has BYPASSRLS"] if user.rolbypassrls else [])]
    if not powers:
        return None
    return (
        f"The database user {user.name} {' and '.join(powers)}: row-level security does not hold it outside of an"
        " organization's context. Make a user without these rights the owner of the tables (docs/database.md,"
        ' "Change the database user"), and put it into DATABASE_URL.'
    )


def dump_hint(connection: Connection) -> str | None:
    """Say which role dumps the database; None: the database user does."""
    user = connection.execute(sa.text(sql("roles/dumping_roles")), {"table": ACTIVE_PATIENTS.qualified}).one()
    if user.may_dump:
        return None
    remedy = (
        f"dump as {' or '.join(user.others)}, or as a superuser."
        if user.others
        else "dump as a superuser, or as a role for it:"
        " `create role clinic_backup login bypassrls in role pg_read_all_data password '...'`."
    )
    return f"pg_dump as {user.name} fails under row-level security: {remedy}"


def retire_other_roles(connection: Connection) -> list[str]:
    """Take from organization roles of other databases what they may in this one; return what is left to the operator.

    There are such grants in a copy of another database, and in one that an earlier version of the pipeline migrated:
    then all databases of the server shared a role. What the operator granted such a role passes to this database's own.
    A role that no database needs any more is dropped.
    """
    own = organization_role(connection)
    left: list[str] = []
    grants = connection.execute(sa.text(sql("roles/other_grants")), {"role": own}).all()
    for grant in grants:
        statements = [f"revoke all on {grant.object} from {grant.role}"]
        if not grant.is_own:
            statements.insert(0, f"grant {grant.privileges.lower()} on {grant.object} to {own}")
        if not _is_done(connection, statements):
            left.append(
                f"The role {grant.role} is not this database's organization role any more, but has rights on"
                f" {grant.object}: run `{'; '.join(statements)}` as the owner."
            )
    policies = connection.execute(sa.text(sql("isolation/other_policies")), {"role": own}).all()
    left += [
        f"The policy {policy.policy} of {policy.object} names the role {policy.role}: run"
        f" `alter policy {policy.policy} on {policy.object} to {own}`, with its other roles, as the table's owner."
        for policy in policies
    ]
    names = sorted({row.role for row in (*grants, *policies)})
    for role in connection.execute(sa.text(sql("roles/abandoned_roles")), {"names": names}):
        if role.is_used:
            left.append(
                f"The role {role.name}, which earlier versions of the pipeline shared among all databases of a server,"
                " still has rights: run `cliniko-pipeline migrate` for the other databases, too."
            )
        elif not _is_done(connection, [f"drop role {role.name}"]):
            left.append(f"Nothing uses the role {role.name} any more: run `drop role {role.name}` as a superuser.")
    return left


def _is_done(connection: Connection, statements: Sequence[str]) -> bool:
    """Execute the statements; return whether the database user has the right to."""
    try:
        with connection.begin_nested():
            for each in statements:
                connection.exec_driver_sql(each)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        return False
    return True
