"""Tells the operator what is wrong: decides by the plans, puts notices down, sends what waits.

A notice is put down in the transaction that decides it, for each channel, and goes when the channel has taken it: one
whose channel is down waits and is tried again, and a process killed in between sends one again at worst.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import NoOrganizationsError
from cliniko_pipeline.orchestration.alerts.channels import channels, send
from cliniko_pipeline.orchestration.alerts.messages import notices
from cliniko_pipeline.orchestration.checks.active_patients import FRESHNESS
from cliniko_pipeline.orchestration.plans.alerts import ALL_ORGANIZATIONS, MISSING, Problem, plan_alerts, problems
from cliniko_pipeline.orchestration.plans.due_syncs import freshness
from cliniko_pipeline.orchestration.schedule_settings import default_schedule
from cliniko_pipeline.postgres.operator_tables import alerts, organizations, scheduling
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, failed_checks, note_checks
from cliniko_pipeline.runtime import Runtime

ACTIVE_PATIENTS = "active_patients"
SECONDS_TO_SEND = 30.0
"""A sensor has sixty; what is left is sent by the next tick."""


@dataclass(frozen=True)
class Sent:
    """How many notices were taken, and how many were not and are tried again; which channels did not take them."""

    taken: int
    waiting: int
    failing: tuple[str, ...]


def changed_freshness(runtime: Runtime, now: datetime) -> list[CheckResult]:
    """Notes which organizations have become older than promised, or are no longer, and returns these."""
    settings = runtime.settings
    with runtime.database.operator() as connection:
        noted = {each.organization_id for each in failed_checks(connection) if each.name == FRESHNESS}
        changed = [
            CheckResult(each.organization_id, ACTIVE_PATIENTS, FRESHNESS, fresh.holds, fresh.remark, run_id=None)
            for each in scheduling.schedulings(connection)
            for fresh in [freshness(each, default_schedule(settings), settings.fresh_within, now)]
            if fresh.holds == (each.organization_id in noted)
        ]
        note_checks(connection, changed)
    return changed


def decide(runtime: Runtime, now: datetime | None = None) -> int:
    """Puts down what is to be told, and returns how much that is. Of two processes one at a time decides."""
    now = now or runtime.now()
    settings = runtime.settings
    repeat_after = timedelta(hours=settings.alert_repeat_hours) if settings.alert_repeat_hours else None
    with runtime.database.operator() as connection:
        alerts.take_turn(connection)
        known = alerts.open_alerts(connection)
        found = scheduling.schedulings(connection)
        stale = {
            each.organization_id
            for each in found
            if not freshness(each, default_schedule(settings), settings.fresh_within, now).holds
        }
        # The result of that check may be older than the sync that has just ended.
        failed = [each for each in failed_checks(connection) if each.name != FRESHNESS or each.organization_id in stale]
        names, missing = _names(connection)
        if missing:
            # Nothing is known of any single organization.
            known = [each for each in known if each.organization_id == ALL_ORGANIZATIONS]
        plan = plan_alerts(
            [*missing, *problems(found, failed, settings.alert_after_failures, FRESHNESS)],
            known,
            watched={ALL_ORGANIZATIONS} | {each.organization_id for each in found if each.is_active},
            now=now,
            repeat_after=repeat_after,
            recovering={each.organization_id for each in found if each.failure_reason is not None},
        )
        told = notices(plan, names, settings.ui_url, now)
        alerts.add_notices(connection, [each.digest for each in channels(settings.alert_urls)], told)
        alerts.save_alerts(connection, plan.kept)
        alerts.delete_alerts(connection, (*plan.recovered, *plan.forgotten))
    return len(told)


def _names(connection: Connection) -> tuple[dict[str, str], list[Problem]]:
    """Return the organizations' names by id, and the problem that none is found where there were some."""
    try:
        return {each.id: each.name for each in organizations.organizations(connection)}, []
    except NoOrganizationsError as error:
        return {}, [Problem(ALL_ORGANIZATIONS, "organizations", MISSING, str(error), run_id=None)]


def send_waiting(runtime: Runtime) -> Sent:
    """Sends what waits; a channel that does not take one is left alone until the next time."""
    known = {channel.digest: channel for channel in channels(runtime.settings.alert_urls)}
    started = time.monotonic()
    taken = 0
    failing: dict[str, str] = {}
    with runtime.database.operator() as turn:
        alerts.take_turn(turn)
        waiting = alerts.waiting_notices(turn)
        for each in waiting:
            channel = known.get(each.channel)
            if each.channel in failing or time.monotonic() - started > SECONDS_TO_SEND:
                continue
            is_over = channel is None or send(channel, each.notice)
            with runtime.database.operator() as connection:
                if is_over:
                    alerts.delete_notice(connection, each.id)
                    taken += channel is not None
                else:
                    alerts.delay_notice(connection, each.id)
            if channel is not None and not is_over:
                failing[each.channel] = channel.label
    return Sent(taken, len(waiting) - taken, tuple(failing.values()))
