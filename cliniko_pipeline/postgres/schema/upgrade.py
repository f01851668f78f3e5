"""Brings a database's schema up to date and tells whether it is.

Two kinds of change: versioned steps (Alembic, in `migrations/versions`) for what holds data; and the functions under
`sql/functions`, the role and the policies, which are made anew whenever their text changed. One transaction: all of it,
or nothing.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from threading import Lock

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import (
    LOCK_NOT_AVAILABLE,
    LOCK_TIMEOUT_SECONDS,
    Database,
    advisory_key,
    sql,
)
from cliniko_pipeline.postgres.schema import contacts_filter as filters
from cliniko_pipeline.postgres.schema import identity, isolation
from cliniko_pipeline.postgres.schema.application_tables import (
    require_no_unknown_obligations,
    require_own_objects,
    require_privileges,
    require_usable_types,
    views_to_review,
)
from cliniko_pipeline.postgres.schema.inventory import (
    ensure_keys,
    missing_objects,
    require_own_schema,
    require_own_tables,
)
from cliniko_pipeline.postgres.schema.isolation import (
    ISOLATION,
    ensure_organization_role,
    isolate,
    organization_role,
    require_own_policies,
    require_powerless_role,
    retire_other_roles,
    strangers,
    unbound_user,
    unisolated_tables,
)
from cliniko_pipeline.postgres.server.driver_errors import already_set_up
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, WATCHED

APPLICATION_TABLES = {
    "organizations": ("id", "name"),
    "api_credentials": (
        "id",
        "organization_id",
        "service_name",
        "credentials_encrypted",
        "is_active",
        "last_validated_at",
        "created_by",
        "updated_at",
    ),
    "contacts": ("id", "organization_id", "cliniko_patient_id", "name", "email"),
}
"""The application's tables in schema public and the columns of them that the pipeline needs."""

TABLE_LOCK_TIMEOUT_SECONDS = 5
"""How long a migration waits for a table, and whoever comes after it waits with it."""

# Alembic keeps the migration that runs in variables of its modules.
_ALEMBIC = Lock()

# In the order of their dependencies.
FUNCTIONS = (
    "casefold",
    "name_key",
    "email_key",
    "instant",
    "persons",
    "stored_records",
    "require_visible_contacts",
    "present_contacts_query",
    "contacts_query",
    "refuse_contacts_filter",
    "organization_contacts",
    "contacts_fingerprint",
    "contact_absence",
    "note_change",
    "note_update",
    "take_requests",
)

_MIGRATIONS = "cliniko_pipeline.postgres.migrations"

WATCH = "isolation/watch"
SHOWN = 5
"""So many missing objects are named."""


@dataclass(frozen=True)
class Migration:
    """What a migration did.

    Attributes:
        before: the version before; None: none.
        after: the version now.
        changed: whether there was anything to do.
        closed_to_readers: whether active_patients was there already, with rows, and open: who reads it must now say
            whose rows.
        warnings: what is left to the operator, in words.
        made_again: what was missing of this version.
        filter_changed: whether other contacts count from now on.
    """

    before: str | None
    after: str
    changed: bool
    closed_to_readers: bool = False
    warnings: tuple[str, ...] = ()
    made_again: tuple[str, ...] = ()
    filter_changed: bool = False


@already_set_up()
def migrate(
    database: Database,
    *,
    create_application_tables: bool = False,
    adopts: bool = False,
    contacts_filter: str | None = None,
) -> Migration:
    """Brings the schema up to date; safe to repeat and to run twice at once.

    `create_application_tables` makes organizations, api_credentials and contacts where they are missing: right for the
    embedded database, which no application shares.

    The first migration notes which database this is; `adopts` notes it again, for a copy that is to work on its own.

    `contacts_filter` is the operator's condition that contacts must meet; None: all count.

    Raises DatabaseSetupError where one of the application's tables or columns is missing, naming it, or where the
    database user lacks a privilege, SettingsError where `contacts_filter` is no condition over contacts,
    DatabaseUnavailableError where others use the tables; then nothing was changed.
    """
    database.require_supported_version()
    with database.operator() as connection:
        # Another migration may take long; the tables' users must not queue up behind this one.
        _limit_waits(connection, LOCK_TIMEOUT_SECONDS)
        connection.execute(
            sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("cliniko_pipeline.migrate")}
        )
        _limit_waits(connection, TABLE_LOCK_TIMEOUT_SECONDS)
        if create_application_tables:
            connection.execute(sa.text(sql("schema/application_tables")))
        _require_application_tables(connection)
        require_own_objects(connection)
        require_powerless_role(connection)
        require_own_schema(connection)
        require_own_policies(connection)
        _require_known_version(connection)
        filters.require_valid(connection, contacts_filter)
        before, after = _current_version(connection), expected_version()
        missing = _missing_objects(connection) if before == after else []
        changed = before != after or bool(missing or unisolated_tables(connection))
        if changed:
            require_privileges(connection, migrates=True)
        closes = changed and _is_open_with_rows(connection)
        warnings: list[str] = []
        if changed:
            with _told_of_other_users():
                warnings += _upgrade(connection)
                warnings += retire_other_roles(connection)
        warnings += views_to_review(connection)
        identity.adopt(connection, is_forced=adopts)
        filter_changed = filters.store(connection, contacts_filter)
        warnings += filter(None, [strangers(connection)])
        return Migration(before, after, changed, closes, tuple(warnings), tuple(missing), filter_changed)


def require_current(database: Database) -> None:
    """Raises DatabaseSetupError where the schema is not this version's, or an application table is missing."""
    with database.operator() as connection:
        _require_application_tables(connection)
        require_powerless_role(connection)
        _require_known_version(connection)
        found = _current_version(connection)
        missing = _missing_objects(connection) if found == expected_version() else []
    if missing:
        raise DatabaseSetupError(
            f"The database lacks {', '.join(missing[:SHOWN])}{' and more' if len(missing) > SHOWN else ''}:"
            " `cliniko-pipeline migrate` makes that again."
        )
    if found != expected_version():
        state = "has no pipeline schema yet" if found is None else "has the schema of another version of the pipeline"
        raise DatabaseSetupError(f"The database {state}: run `cliniko-pipeline migrate`.")


def require_isolation(database: Database) -> None:
    """Raises DatabaseSetupError where organizations are not kept apart, or the database user cannot enter the context
    of one. Needs a schema that is current.
    """
    with database.operator() as connection:
        role = organization_role(connection)
        user, may_switch = connection.execute(sa.text(sql("roles/may_switch")), {"role": role}).one()
        unisolated = unisolated_tables(connection)
        others = strangers(connection)
        require_own_policies(connection)
    if unisolated:
        raise DatabaseSetupError(
            f"The policies and grants that keep organizations apart are not there for {', '.join(unisolated)}:"
            " `cliniko-pipeline migrate` mends that."
        )
    if not may_switch:
        raise DatabaseSetupError(
            f"The database user may not switch to the role {role}: run"
            f" `grant {role} to {user}` as a superuser, or as whoever ran `cliniko-pipeline migrate`."
        )
    if others:
        raise DatabaseSetupError(others)
    with database.organization("doctor") as connection:
        found = connection.execute(
            sa.text("select cast(current_user as text), current_setting('app.organization_id')")
        ).one()
    if tuple(found) != (role, "doctor"):
        raise DatabaseSetupError(
            "What a transaction sets does not reach its next statement: connect without a pooler of statements"
            " between the pipeline and PostgreSQL."
        )


def require_visible_contacts(database: Database) -> None:
    """Raise DatabaseSetupError where policies hide contacts from the pipeline. Needs a schema that is current."""
    with database.organization("doctor") as connection:
        connection.execute(sa.text("select from cliniko.organization_contacts()"))


def risks(database: Database) -> list[str]:
    """Return, in words, what weakens the isolation of organizations without breaking it."""
    with database.operator() as connection:
        return [*filter(None, [unbound_user(connection)])]


def dump_hint(database: Database) -> str | None:
    """Return, in words, which role dumps the database; None: the database user does."""
    with database.operator() as connection:
        return isolation.dump_hint(connection)


def expected_version() -> str:
    """The last migration's revision and a digest of the functions and policies, e.g. `0001+3f2a...`."""
    texts = "\x1f".join(sql(name) for name in (*(f"functions/{name}" for name in FUNCTIONS), *ISOLATION, WATCH))
    return f"{_revisions()[-1]}+{sha256(texts.encode()).hexdigest()[:12]}"


def _missing_objects(connection: Connection) -> list[str]:
    require_own_tables(connection)
    return missing_objects(connection, FUNCTIONS, organization_role(connection))


def _current_version(connection: Connection) -> str | None:
    # Kept as the schema's comment: the migrations' version alone does not tell the functions' and policies'.
    return connection.execute(
        sa.text("select obj_description(to_regnamespace('cliniko'), 'pg_namespace')")
    ).scalar_one_or_none()


def _limit_waits(connection: Connection, seconds: int) -> None:
    connection.execute(sa.text("select set_config('lock_timeout', :limit, true)"), {"limit": f"{seconds}s"})


def _is_open_with_rows(connection: Connection) -> bool:
    table = f"{ACTIVE_PATIENTS.schema}.{ACTIVE_PATIENTS.name}"
    is_open = connection.execute(
        sa.text("select not (relrowsecurity and relforcerowsecurity) from pg_class where oid = to_regclass(:table)"),
        {"table": table},
    ).scalar_one_or_none()
    return bool(is_open) and connection.execute(sa.text(f"select exists (select from {table})")).scalar_one()


@contextmanager
def _told_of_other_users() -> Generator[None, None, None]:
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise DatabaseUnavailableError(
            f"Others use the tables that the migration changes (public.{ACTIVE_PATIENTS.name}, above all) and did not"
            f" let go of them within {TABLE_LOCK_TIMEOUT_SECONDS} seconds; nothing was changed. Try again when no"
            " sync and no long transaction of the application runs."
        ) from None


def _require_known_version(connection: Connection) -> None:
    """Raises DatabaseSetupError where another version of the pipeline, with migrations of its own, was here."""
    if connection.execute(sa.text("select to_regclass('cliniko.schema_version')")).scalar_one() is None:
        return
    found = set(connection.execute(sa.text("select version_num from cliniko.schema_version")).scalars())
    if unknown := sorted(found - set(_revisions())):
        raise DatabaseSetupError(
            f"The database has the schema of a newer version of the pipeline ({', '.join(unknown)}):"
            " install that version, or point DATABASE_URL at another database."
        )


def _upgrade(connection: Connection) -> list[str]:
    connection.execute(sa.text("create schema if not exists cliniko"))
    ensure_organization_role(connection)
    _run_migrations(connection)
    connection.exec_driver_sql(sql("schema/active_patients_table"))
    ensure_keys(connection)
    left = isolate(connection)
    for name in FUNCTIONS:
        connection.exec_driver_sql(sql(f"functions/{name}"))
    for table in WATCHED:
        connection.exec_driver_sql(sql(WATCH).format(table=table.qualified))
    connection.exec_driver_sql(
        "revoke execute on all functions in schema cliniko from public;"
        f" grant execute on all functions in schema cliniko to {organization_role(connection)}"
    )
    connection.exec_driver_sql(f"comment on schema cliniko is '{expected_version()}'")
    return left


@cache
def _revisions() -> list[str]:
    """Return the revisions of all migrations, in order: what their files' names begin with."""
    names = (each.name for each in resources.files(_MIGRATIONS).joinpath("versions").iterdir())
    return sorted(name[:4] for name in names if re.fullmatch(r"\d{4}_\w+\.py", name))


def _run_migrations(connection: Connection) -> None:
    # Its import takes a third as long as all that `doctor` does.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(resources.files(_MIGRATIONS)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _ALEMBIC:
        command.upgrade(config, "head")


def _require_application_tables(connection: Connection) -> None:
    rows = connection.execute(
        sa.text(sql("schema/public_columns")), {"names": [*APPLICATION_TABLES, ACTIVE_PATIENTS.name]}
    )
    found = {row.table_name: row for row in rows}
    for table, needed in APPLICATION_TABLES.items():
        if table not in found:
            raise DatabaseSetupError(
                f"The table public.{table} is missing: point DATABASE_URL at the application's database, or create the"
                " table there (docs/database.md lists its columns)."
            )
        _require_columns(table, needed, found[table].column_names)
    require_usable_types(
        {name: dict(zip(row.column_names, row.column_types, strict=True)) for name, row in found.items()}
    )
    require_privileges(connection, migrates=False)
    if not connection.execute(sa.text(sql("writing/conflict_target"))).scalar_one():
        raise DatabaseSetupError(
            "The table public.api_credentials has no unique constraint by which credentials are found again: run"
            " `create unique index on public.api_credentials (organization_id, service_name)`, after removing rows that"
            " are there twice."
        )
    if ACTIVE_PATIENTS.name in found:
        existing = found[ACTIVE_PATIENTS.name]
        if not existing.is_table:
            raise DatabaseSetupError(
                f"public.{ACTIVE_PATIENTS.name} is a view: the pipeline writes a table of that name; rename the view."
            )
        needed = ("id", "organization_id", *ACTIVE_PATIENTS.written, *ACTIVE_PATIENTS.stamps)
        _require_columns(ACTIVE_PATIENTS.name, needed, existing.column_names)
        require_no_unknown_obligations(connection)


def _require_columns(table: str, needed: Sequence[str], found: Sequence[str]) -> None:
    missing = [column for column in needed if column not in found]
    if missing:
        raise DatabaseSetupError(
            f"The table public.{table} lacks {', '.join(missing)}: add what is missing"
            " (docs/database.md lists its columns)."
        )
