"""The delivery of alerts. Messages about problems are queued for each channel, then sent.

The transaction that saves an alert also queues the messages about it. A message is deleted after its channel has
accepted it. If the process is killed before the deletion, the message is sent again.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import NoOrganizationsError
from cliniko_pipeline.orchestration.alerts.channels import channels, send
from cliniko_pipeline.orchestration.alerts.messages import build_messages
from cliniko_pipeline.orchestration.checks.active_patients import FRESHNESS
from cliniko_pipeline.orchestration.plans.alerts import (
    ALL_ORGANIZATIONS,
    MISSING,
    Problem,
    find_problems,
    plan_alerts,
)
from cliniko_pipeline.orchestration.plans.due_syncs import freshness
from cliniko_pipeline.orchestration.schedule_settings import default_schedule
from cliniko_pipeline.postgres.operator_tables import alerts, organizations, scheduling
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, failed_checks, note_checks
from cliniko_pipeline.runtime import Runtime

ACTIVE_PATIENTS = "active_patients"
SENDING_SECONDS = 30.0
"""The time for sending in one tick. Dagster ends a tick after 60 s. The next tick sends the rest."""


@dataclass(frozen=True)
class SentMessages:
    """The numbers of accepted and waiting messages, and the labels of the failing channels."""

    taken: int
    waiting: int
    failing: tuple[str, ...]


def note_freshness(runtime: Runtime, now: datetime) -> list[CheckResult]:
    """Store the freshness results that have changed; return these results."""
    settings = runtime.settings
    with runtime.database.operator() as connection:
        stale = {check.organization_id for check in failed_checks(connection) if check.name == FRESHNESS}
        changed = [
            CheckResult(state.organization_id, ACTIVE_PATIENTS, FRESHNESS, fresh.holds, fresh.remark, run_id=None)
            for state in scheduling.schedulings(connection)
            for fresh in [freshness(state, default_schedule(settings), settings.fresh_within, now)]
            if fresh.holds == (state.organization_id in stale)
        ]
        note_checks(connection, changed)
    return changed


def plan_messages(runtime: Runtime, now: datetime | None = None) -> int:
    """Queue messages about new, repeated and solved problems; return their number."""
    now = now or runtime.now()
    settings = runtime.settings
    repeat_after = timedelta(hours=settings.alert_repeat_hours) if settings.alert_repeat_hours else None
    with runtime.database.operator() as connection:
        alerts.lock(connection)
        open_alerts = alerts.open_alerts(connection)
        states = scheduling.schedulings(connection)
        stale = {
            state.organization_id
            for state in states
            if not freshness(state, default_schedule(settings), settings.fresh_within, now).holds
        }
        # The stored result of a freshness check is outdated if a sync has succeeded since.
        failed = [
            check for check in failed_checks(connection) if check.name != FRESHNESS or check.organization_id in stale
        ]
        names, missing = _names(connection)
        if missing:
            # The state of single organizations is unknown, so their alerts must stay as they are.
            open_alerts = [alert for alert in open_alerts if alert.organization_id == ALL_ORGANIZATIONS]
        plan = plan_alerts(
            [*missing, *find_problems(states, failed, settings.alert_after_failures, FRESHNESS)],
            open_alerts,
            watched={ALL_ORGANIZATIONS} | {state.organization_id for state in states if state.is_active},
            now=now,
            repeat_after=repeat_after,
            recovering={state.organization_id for state in states if state.failure_reason is not None},
        )
        messages = build_messages(plan, names, settings.ui_url, now)
        alerts.add_messages(connection, [channel.digest for channel in channels(settings.alert_urls)], messages)
        alerts.save_alerts(connection, plan.kept)
        alerts.delete_alerts(connection, (*plan.recovered, *plan.forgotten))
    return len(messages)


def _names(connection: Connection) -> tuple[dict[str, str], list[Problem]]:
    """Return the organizations' names by id, or a problem if all organizations have disappeared."""
    try:
        return {found.id: found.name for found in organizations.organizations(connection)}, []
    except NoOrganizationsError as error:
        return {}, [Problem(ALL_ORGANIZATIONS, "organizations", MISSING, str(error), run_id=None)]


def send_messages(runtime: Runtime) -> SentMessages:
    """Send the due messages. If a channel fails, send nothing else to it in this call."""
    known = {channel.digest: channel for channel in channels(runtime.settings.alert_urls)}
    started = time.monotonic()
    taken = 0
    failing: dict[str, str] = {}
    with runtime.database.operator() as locked:
        alerts.lock(locked)
        due = alerts.due_messages(locked)
        for queued in due:
            channel = known.get(queued.channel)
            if queued.channel in failing or time.monotonic() - started > SENDING_SECONDS:
                continue
            is_done = channel is None or send(channel, queued.message)
            with runtime.database.operator() as connection:
                if is_done:
                    alerts.delete_message(connection, queued.id)
                    taken += channel is not None
                else:
                    alerts.delay_message(connection, queued.id)
            if channel is not None and not is_done:
                failing[queued.channel] = channel.label
    return SentMessages(taken, len(due) - taken, tuple(failing.values()))
