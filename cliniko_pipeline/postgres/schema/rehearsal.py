"""The rehearsal of a sync: its database accesses, in transactions that are rolled back.

The steps call a sync's functions under a sync's roles, so a failing step shows what a sync cannot do. The steps use an
organization that does not exist. Only the step for `public.active_patients` uses an existing contact, because the
application may have foreign keys on that table. The rehearsal leaves only gaps in sequences behind.
"""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from cliniko_pipeline.errors import DatabaseSetupError, DatabaseUnavailableError, DataError
from cliniko_pipeline.postgres.engine import Database, advisory_key, forget_created, sql, statement
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.schema.rehearsed_steps import (
    Step,
    StepFailedError,
    contact_step,
    operator_steps,
    organization_steps,
)
from cliniko_pipeline.postgres.server.driver_errors import BUSY, already_set_up, state_of

LOCK_TIMEOUT_SECONDS = 2
"""How long the rehearsal waits for a table or row that another transaction has locked."""
STATEMENT_TIMEOUT_SECONDS = 30
SHOWN = 5
"""The maximum number of causes in the error message, and of steps per cause."""


@dataclass(frozen=True)
class Finding:
    """A failed step of a sync, with its reason. With `is_busy`, another transaction blocked it."""

    step: str
    reason: str
    is_busy: bool = False

    def __str__(self) -> str:
        could = "Another transaction blocked the test whether a sync can" if self.is_busy else "A sync cannot"
        return f"{could} {self.step}: {self.reason}"


@dataclass(frozen=True)
class _Contact:
    id: UUID
    organization_id: str


class _UndoneError(Exception):
    """The exception that makes a transaction roll back."""


def rehearse(database: Database) -> list[Finding]:
    """Return the steps of a sync that would fail, or an empty list if a sync would succeed.

    The schema must be current. Raises DatabaseUnavailableError if the database cannot be used at all.
    """
    organization_id = str(uuid4())
    findings: list[Finding] = []
    with _undone(database.operator()) as connection:
        findings += _failures(database, connection, operator_steps(organization_id))
        contact = _existing_contact(connection)
    with _undone(database.organization(organization_id)) as connection:
        findings += _failures(database, connection, organization_steps())
    if contact is not None:
        with _undone(database.organization(contact.organization_id)) as connection:
            findings += _failures(database, connection, [contact_step(contact.id)])
    return findings + _rehearse_lock(database, organization_id)


def require_rehearsed(database: Database) -> list[Finding]:
    """Rehearse a sync; return the steps that other transactions blocked.

    Raises DatabaseSetupError, with the failed steps and their reasons, if a sync would fail.
    """
    findings = rehearse(database)
    failed: dict[str, list[str]] = {}  # Grouped by reason, since one reason may make many steps fail.
    for each in findings:
        if not each.is_busy:
            failed.setdefault(each.reason, []).append(each.step)
    if failed:
        causes = [str(Finding(_first(steps, ", ", " and more"), reason)) for reason, steps in failed.items()]
        raise DatabaseSetupError(_first(causes, " ", " Other steps fail as well."))
    return findings


def _first(texts: Sequence[str], separator: str, more: str) -> str:
    return separator.join(texts[:SHOWN]) + (more if len(texts) > SHOWN else "")


def rehearse_addition(database: Database, organization_id: str, name: str) -> None:
    """Store credentials of the organization and roll back; raise DatabaseSetupError if that fails."""

    def save(connection: Connection) -> None:
        organizations.save(connection, organization_id, name, {"encrypted_data": ""}, validated=False)

    with _undone(database.operator()) as connection:
        for found in _failures(database, connection, [Step("be set up", save)]):
            raise DatabaseSetupError(f"The credentials of '{organization_id}' could not be stored: {found.reason}")


@contextmanager
def _undone(transaction: AbstractContextManager[Connection]) -> Generator[Connection]:
    with suppress(_UndoneError), transaction as connection:
        connection.execute(
            sa.text("select set_config('lock_timeout', :lock, true), set_config('statement_timeout', :whole, true)"),
            {"lock": f"{LOCK_TIMEOUT_SECONDS}s", "whole": f"{STATEMENT_TIMEOUT_SECONDS}s"},
        )
        yield connection
        raise _UndoneError


def _failures(database: Database, connection: Connection, steps: Sequence[Step]) -> list[Finding]:
    role = str(connection.execute(sa.text("select quote_ident(current_user)")).scalar_one())
    with already_set_up():
        return [found for step in steps for found in _failure(database, connection, step, role)]


def _failure(database: Database, connection: Connection, step: Step, role: str) -> Generator[Finding]:
    """Carry out the step; yield a finding if it fails."""
    try:
        with connection.begin_nested():
            step.act(connection)
            # The rollback would skip constraints that are deferred to the commit.
            connection.exec_driver_sql("set constraints all immediate")
    except (StepFailedError, DataError, DatabaseSetupError) as failed:
        yield Finding(step.name, str(failed))
    except (SQLAlchemyError, psycopg.Error) as error:
        found = database.translated(error, role)
        is_busy = state_of(error) in BUSY
        if isinstance(found, DatabaseUnavailableError) and not is_busy:
            raise  # The database cannot be used, so every other step would fail, too.
        forget_created(connection)
        yield Finding(step.name, str(found), is_busy)


def _existing_contact(connection: Connection) -> _Contact | None:
    """Return a visible contact, preferably of an organization with credentials, or None."""
    try:
        with connection.begin_nested():
            row = connection.execute(sa.text(sql("schema/existing_contact"))).one_or_none()
    except SQLAlchemyError:
        return None  # Other steps read the contacts, too, and report the error.
    return None if row is None else _Contact(row.id, row.organization_id)


def _rehearse_lock(database: Database, organization_id: str) -> list[Finding]:
    """Hold the organization lock while another connection has transactions; return what fails."""
    step = "keep an organization's lock"
    key = {"key": advisory_key("organization", organization_id)}
    try:
        with database.organization_lock(organization_id) as require_lock:
            with database.operator_statement() as other:
                is_free = other.execute(statement("select pg_try_advisory_lock(:key)"), key).scalar_one()
                if is_free:
                    other.execute(statement("select pg_advisory_unlock(:key)"), key)
            require_lock()
    except DatabaseUnavailableError as error:
        return [Finding(step, str(error))]
    if is_free:
        return [
            Finding(
                step,
                "another transaction got the same advisory lock: a pooler gives each transaction another session."
                " Use the pooler's session mode, or a direct connection.",
            )
        ]
    return []
