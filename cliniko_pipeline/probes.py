"""Probes, which find out by a few requests whether an organization needs a sync.

A probe asks Cliniko for the number of records that changed since the last sync, and the database whether the stored
rows are still right. It changes no row of tenant data and starts no Dagster run.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import sqlalchemy as sa

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.exchange.throttle import digest_of
from cliniko_pipeline.cliniko.exchange.transport import CurlTransport, Limits
from cliniko_pipeline.cliniko.records import (
    APPOINTMENT_TYPES,
    ATTENDEES,
    GROUP_APPOINTMENTS,
    INDIVIDUAL_APPOINTMENTS,
    PATIENTS,
    PRACTITIONERS,
    Resource,
)
from cliniko_pipeline.errors import ClinikoPipelineError, TransientError
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling, sync_runs
from cliniko_pipeline.postgres.operator_tables.request_budgets import SharedRequestBudget
from cliniko_pipeline.postgres.schema.identity import require_own
from cliniko_pipeline.postgres.writing import computed_tables, crawls, derivations
from cliniko_pipeline.postgres.writing.appointments import has_groups
from cliniko_pipeline.postgres.writing.crawls import CrawlState
from cliniko_pipeline.record_counts import compare
from cliniko_pipeline.runtime import Runtime

PROBES_AT_ONCE = 20
LIMITS = Limits(connect_seconds=5.0, silent_seconds=10.0, total_seconds=10.0)
"""A response has one record, so these limits are shorter than those of a sync."""

COUNTED: tuple[Resource[Any], ...] = (INDIVIDUAL_APPOINTMENTS, PATIENTS, GROUP_APPOINTMENTS, ATTENDEES)
"""The lists that every incremental sync reads. The one that changes most often comes first."""
READ: tuple[Resource[Any], ...] = (*COUNTED, APPOINTMENT_TYPES, PRACTITIONERS)
"""The lists whose last crawl must be complete."""


@dataclass(frozen=True)
class Unchanged:
    """A sync would change nothing. The stored rows are right for the instant `at`."""

    at: datetime


@dataclass(frozen=True)
class NeedsRun:
    """A run may change something, or the probe could not find out."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """Cliniko did not answer. A later probe may succeed."""

    reason: str


@dataclass(frozen=True)
class Postponed:
    """There was no time, or no request left in the organization's budget."""


Verdict = Unchanged | NeedsRun | Failed | Postponed


def probe_and_note(
    runtime: Runtime, organization_ids: Sequence[str], *, seconds: float, requested_at: datetime | None = None
) -> dict[str, Verdict]:
    """Probe the organizations as `probe` does, and store in their schedulings which are unchanged and which failed.

    Both count as syncs that were requested at `requested_at`, or now.
    """
    if not organization_ids:
        return {}
    with runtime.database.operator() as connection:
        seen = {state.organization_id: state for state in scheduling.schedulings(connection)}
    verdicts = probe(runtime, organization_ids, seconds=seconds)
    now = runtime.now()
    with runtime.database.operator() as connection:
        unchanged = {id_: found.at for id_, found in verdicts.items() if isinstance(found, Unchanged)}
        failed = {id_: found.reason for id_, found in verdicts.items() if isinstance(found, Failed)}
        scheduling.note_requested(connection, dict.fromkeys([*unchanged, *failed], False), requested_at or now)
        scheduling.note_verified(connection, unchanged, seen)
        for id_, reason in failed.items():
            scheduling.note_failure(connection, id_, reason=reason, run_id=None, started_at=now, is_permanent=False)
    return verdicts


def probe(
    runtime: Runtime, organization_ids: Sequence[str], *, seconds: float, at: datetime | None = None
) -> dict[str, Verdict]:
    """Probe the organizations, many at once; return the verdicts by id.

    After `seconds`, no request is sent. The stored rows are judged by the instant `at`, or by the database's clock.
    Raise DatabaseCopyError, DatabaseUnavailableError, DatabaseSetupError or SettingsError.
    """
    return _judge_all(runtime, organization_ids, seconds, partial(_judge_rows, at=at))


def compare_counts(runtime: Runtime, organization_ids: Sequence[str], *, seconds: float) -> dict[str, Verdict]:
    """Compare the organizations' numbers of records with Cliniko's, as `probe` probes them."""
    return _judge_all(runtime, organization_ids, seconds, _judge_counts)


@dataclass(frozen=True)
class _Account:
    """An organization to judge, with its encrypted credentials."""

    runtime: Runtime
    organization_id: str
    credentials: object
    transport: CurlTransport
    deadline: float

    def require_time(self) -> None:
        if self.runtime.elapsed() >= self.deadline:
            raise _PostponedError

    def client(self, requests: int) -> ClinikoClient:
        """Return a client that takes `requests` from the budget at once, and does not wait."""
        runtime = self.runtime
        credentials = runtime.vault.decrypt(self.credentials)
        budget = SharedRequestBudget(
            runtime.database,
            digest_of(credentials.api_key),
            runtime.settings.requests_per_minute,
            sleep=_refuse_to_wait,
            per_statement=requests,
        )
        return runtime.probe_client(self.organization_id, credentials, self.transport, budget)


class _PostponedError(Exception):
    """There is no time left, or no request in the organization's budget."""


def _refuse_to_wait(_seconds: float) -> NoReturn:
    raise _PostponedError


def _judge_all(
    runtime: Runtime, organization_ids: Sequence[str], seconds: float, judge: Callable[[_Account], Verdict]
) -> dict[str, Verdict]:
    require_own(runtime.database)
    with runtime.database.operator() as connection:
        credentials = organizations.credentials_of(connection, organization_ids)
    transport, deadline = CurlTransport(LIMITS), runtime.elapsed() + seconds
    accounts = [_Account(runtime, id_, credentials.get(id_), transport, deadline) for id_ in organization_ids]
    try:
        with ThreadPoolExecutor(PROBES_AT_ONCE, thread_name_prefix="cliniko-probe") as threads:
            verdicts = threads.map(partial(_verdict, judge), accounts)
            return dict(zip(organization_ids, verdicts, strict=True))
    finally:
        transport.close()


def _verdict(judge: Callable[[_Account], Verdict], account: _Account) -> Verdict:
    try:
        account.require_time()
        return judge(account)
    except _PostponedError:
        return Postponed()
    except TransientError as error:
        return Failed(str(error))
    except ClinikoPipelineError as error:
        # The run fails with this error, too, and then pauses the organization or alerts the operator.
        return NeedsRun(str(error))


def _judge_rows(account: _Account, *, at: datetime | None) -> Verdict:
    runtime = account.runtime
    with runtime.database.organization(account.organization_id) as connection:
        judged_at: datetime = at or connection.execute(sa.text("select now()")).scalar_one().astimezone(UTC)
        if sync_runs.last_status(connection) != "succeeded":
            # The rows may be right nevertheless, but only a run records a success and its checks.
            return NeedsRun("The last run has not succeeded.")
        states = crawls.read_states(connection)
        if (reason := _reason_to_crawl(states)) is not None:
            return NeedsRun(reason)
        computed = [
            computed_tables.contact_mapping(),
            computed_tables.active_patients(judged_at, runtime.rules),
        ]
        if not derivations.are_right(connection, computed, judged_at):
            return NeedsRun("The contacts, the stored records, the settings or the recent appointments have changed.")
        counted = [resource for resource in COUNTED if resource != ATTENDEES or has_groups(connection)]
    with account.client(len(counted)) as client:
        for resource in counted:
            account.require_time()
            state = states[resource.name]
            client.refusals.remember(resource.name, state.refused_fields)
            if client.total_entries(resource, changed_since=state.cursor):
                return NeedsRun(f"Cliniko has changed {resource.name}.")
    return Unchanged(judged_at)


def _judge_counts(account: _Account) -> Verdict:
    runtime = account.runtime
    with account.client(len(COUNTED)) as client:
        for resource in COUNTED:
            account.require_time()
            comparison = compare(runtime.database, account.organization_id, client, resource)
            if not comparison.passed:
                return NeedsRun(f"{resource.name}: {comparison.remark}")
    return Unchanged(runtime.now())


def _reason_to_crawl(states: Mapping[str, CrawlState]) -> str | None:
    """Return why the changes in Cliniko cannot be counted, or None if they can be."""
    for resource in READ:
        state = states.get(resource.name)
        if state is None or not state.is_complete:
            return f"The last crawl of {resource.name} is not complete."
        if state.needs_full is not None:
            return f"The next crawl of {resource.name} is full: {state.needs_full}"
        if resource not in COUNTED:
            continue
        if state.cursor is None:
            return f"It is not known when the last crawl of {resource.name} began."
        if "filter updated_at" in state.refused_fields:
            return f"Cliniko refuses to filter {resource.name} by updated_at."
    return None
