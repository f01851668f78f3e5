"""The migration of a database to this version's schema, and the checks of the schema.

Versioned Alembic steps in `migrations/versions` change tables. Functions, triggers, policies and grants are created
again when their texts have changed. A migration is one transaction.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
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
    require_application_tables,
    require_own_objects,
    require_privileges,
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

TABLE_LOCK_TIMEOUT_SECONDS = 5
"""How long a migration waits for a table. Later transactions on the table wait, too."""

# Alembic stores the running migration in global variables, so one migration per process runs at a time.
_ALEMBIC = Lock()

# The files of functions under `sql/`, in the order of their dependencies.
FUNCTIONS = (
    "functions/casefold",
    "functions/name_key",
    "functions/email_key",
    "functions/instant",
    "functions/persons",
    "functions/stored_records",
    "contacts/require_visible_contacts",
    "contacts/present_contacts_query",
    "contacts/contacts_query",
    "contacts/refuse_contacts_filter",
    "contacts/organization_contacts",
    "contacts/contacts_fingerprint",
    "contacts/contact_absence",
    "functions/note_change",
    "functions/note_update",
    "request_budgets/take_requests",
)

_MIGRATIONS = "cliniko_pipeline.postgres.migrations"

WATCH = "isolation/watch"
MAX_NAMED = 5
"""The maximum number of missing objects that an error message lists."""


@dataclass(frozen=True)
class Migration:
    """The outcome of a migration.

    Attributes:
        before: the version before the migration; None if the database had no schema of the pipeline.
        after: the version after the migration.
        changed: whether the migration changed the schema.
        closed_to_readers: whether active_patients had rows before it got row-level security. Readers of the table must
            now set the organization.
        warnings: problems that the operator must review.
        made_again: missing objects of this version that were created again.
        filter_changed: whether the contacts filter changed.
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
    """Migrate the database to this version's schema. Calls may be repeated and concurrent.

    After an error nothing is changed.

    Args:
        database: the database.
        create_application_tables: whether to create missing application tables, as in the embedded database.
        adopts: whether to replace the stored identity, so that a copy of a database can sync independently.
        contacts_filter: the operator's condition for contacts; None for all contacts.

    Raises:
        DatabaseSetupError: an application table or column is missing, or the database user lacks a privilege.
        SettingsError: `contacts_filter` is invalid.
        DatabaseUnavailableError: other transactions lock the tables for too long.
    """
    database.require_supported_version()
    with database.operator() as connection:
        # The wait for another migration may be long. The later waits for tables must be short, because other
        # transactions on these tables wait, too.
        _limit_waits(connection, LOCK_TIMEOUT_SECONDS)
        connection.execute(
            sa.text("select pg_advisory_xact_lock(:key)"), {"key": advisory_key("cliniko_pipeline.migrate")}
        )
        _limit_waits(connection, TABLE_LOCK_TIMEOUT_SECONDS)
        if create_application_tables:
            connection.execute(sa.text(sql("schema/application_tables")))
        require_application_tables(connection)
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
            with _translated_lock_timeouts():
                warnings += _upgrade(connection)
                warnings += retire_other_roles(connection)
        warnings += views_to_review(connection)
        identity.adopt(connection, is_forced=adopts)
        filter_changed = filters.store(connection, contacts_filter)
        warnings += filter(None, [strangers(connection)])
        return Migration(before, after, changed, closes, tuple(warnings), tuple(missing), filter_changed)


def require_current(database: Database) -> None:
    """Raise DatabaseSetupError if the schema differs from this version's, or a table is unusable."""
    with database.operator() as connection:
        require_application_tables(connection)
        require_powerless_role(connection)
        _require_known_version(connection)
        found = _current_version(connection)
        missing = _missing_objects(connection) if found == expected_version() else []
    if missing:
        raise DatabaseSetupError(
            f"The database lacks {', '.join(missing[:MAX_NAMED])}{' and more' if len(missing) > MAX_NAMED else ''}:"
            " `cliniko-pipeline migrate` creates missing objects again."
        )
    if found != expected_version():
        state = "has no pipeline schema yet" if found is None else "has the schema of another version of the pipeline"
        raise DatabaseSetupError(f"The database {state}: run `cliniko-pipeline migrate`.")


def require_isolation(database: Database) -> None:
    """Raise DatabaseSetupError if organizations are not isolated, or the organization context fails.

    The schema must be current.
    """
    with database.operator() as connection:
        role = organization_role(connection)
        user, may_switch = connection.execute(sa.text(sql("roles/may_switch")), {"role": role}).one()
        unisolated = unisolated_tables(connection)
        others = strangers(connection)
        require_own_policies(connection)
    if unisolated:
        raise DatabaseSetupError(
            f"The policies or grants that keep organizations apart are missing on {', '.join(unisolated)}:"
            " `cliniko-pipeline migrate` creates them again."
        )
    if not may_switch:
        raise DatabaseSetupError(
            f"The database user may not switch to the role {role}: run"
            f" `grant {role} to {user}` as a superuser, or as the user that ran `cliniko-pipeline migrate`."
        )
    if others:
        raise DatabaseSetupError(others)
    with database.organization("doctor") as connection:
        found = connection.execute(
            sa.text("select cast(current_user as text), current_setting('app.organization_id')")
        ).one()
    if tuple(found) != (role, "doctor"):
        raise DatabaseSetupError(
            "A transaction's settings do not reach its next statement: connect without a pooler in statement mode"
            " between the pipeline and PostgreSQL."
        )


def require_visible_contacts(database: Database) -> None:
    """Raise DatabaseSetupError if policies hide contacts. The schema must be current."""
    with database.organization("doctor") as connection:
        connection.execute(sa.text("select from cliniko.organization_contacts()"))


def risks(database: Database) -> list[str]:
    """Return warnings about weak isolation of organizations."""
    with database.operator() as connection:
        return [*filter(None, [unbound_user(connection)])]


def dump_hint(database: Database) -> str | None:
    """Return a hint about roles that can dump the database; None if the database user can."""
    with database.operator() as connection:
        return isolation.dump_hint(connection)


def expected_version() -> str:
    """Return the last revision and a digest of functions and policies, e.g. `0001+3f2a...`."""
    texts = "\x1f".join(sql(name) for name in (*FUNCTIONS, *ISOLATION, WATCH))
    return f"{_revisions()[-1]}+{sha256(texts.encode()).hexdigest()[:12]}"


def _missing_objects(connection: Connection) -> list[str]:
    require_own_tables(connection)
    return missing_objects(connection, FUNCTIONS, organization_role(connection))


def _current_version(connection: Connection) -> str | None:
    # The version is stored in the schema's comment, because Alembic's version does not cover functions and policies.
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
def _translated_lock_timeouts() -> Generator[None, None, None]:
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise DatabaseUnavailableError(
            f"Other transactions hold tables that the migration changes (most likely public.{ACTIVE_PATIENTS.name}) for"
            f" more than {TABLE_LOCK_TIMEOUT_SECONDS} seconds; nothing was changed. Try again when no sync and no long"
            " transaction of the application runs."
        ) from None


def _require_known_version(connection: Connection) -> None:
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
    warnings = isolate(connection)
    for name in FUNCTIONS:
        connection.exec_driver_sql(sql(name))
    for table in WATCHED:
        connection.exec_driver_sql(sql(WATCH).format(table=table.qualified))
    connection.exec_driver_sql(
        "revoke execute on all functions in schema cliniko from public;"
        f" grant execute on all functions in schema cliniko to {organization_role(connection)}"
    )
    connection.exec_driver_sql(f"comment on schema cliniko is '{expected_version()}'")
    return warnings


@cache
def _revisions() -> list[str]:
    """Return the revisions of all migrations in order, which are the numbers of their files."""
    files = Path(str(resources.files(_MIGRATIONS))).joinpath("versions").rglob("*.py")
    return sorted(file.name[:4] for file in files if re.fullmatch(r"\d{4}_\w+\.py", file.name))


def _run_migrations(connection: Connection) -> None:
    # Imported only here, because the import takes a third of the time of `doctor`.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(resources.files(_MIGRATIONS)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("recursive_version_locations", "true")
    config.attributes["connection"] = connection
    with _ALEMBIC:
        command.upgrade(config, "head")
