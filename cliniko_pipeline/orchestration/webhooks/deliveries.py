"""Tells targets of syncs that have ended: puts deliveries down, then sends what is due.

A delivery is put down once for a run, and goes when the target has taken it: a process killed in between sends it again
at worst, under the same id.
"""

import time
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from cliniko_pipeline.errors import CredentialsError
from cliniko_pipeline.orchestration.plans.webhooks import delay_after, ended
from cliniko_pipeline.orchestration.webhooks.posting import EXCHANGE_SECONDS, Answer, Destination, post
from cliniko_pipeline.postgres.operator_tables import webhook_deliveries
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import DueDelivery, EndedRun, Target
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SYNC_ASSETS

SECONDS_TO_SEND = 30.0
"""A sensor has sixty; what is left is sent by the next tick."""

LOOKED_AT_AGAIN = timedelta(minutes=10)
"""How far a target's own place may lag behind: to note it costs a row each time."""

RUNNING = "running"
GONE = "The target has answered 410 Gone: it wants nothing any more."


@dataclass(frozen=True)
class Told:
    """How many deliveries were taken, were not and are tried again, and were given up."""

    taken: int = 0
    delayed: int = 0
    given_up: int = 0


def put_down(runtime: Runtime, instance: dg.DagsterInstance) -> int:
    """Puts down what is to be told of runs that have ended, and returns how many these are."""
    with runtime.database.operator() as connection:
        open_targets = [each for each in webhook_deliveries.targets(connection) if each.disabled_at is None]
    return sum(_put_down(runtime, instance, each) for each in open_targets)


def send_due(runtime: Runtime, clock_limit: float = SECONDS_TO_SEND) -> Told:
    """Sends what is due; a target that does not take one is left alone until the next time."""
    deadline = time.monotonic() + clock_limit - EXCHANGE_SECONDS
    told = Told()
    failing: set[str] = set()
    with runtime.database.operator() as turn:
        if not webhook_deliveries.take_turn(turn):
            return told
        for each in webhook_deliveries.due_deliveries(turn):
            if each.organization_id in failing:
                continue
            if time.monotonic() > deadline:
                break
            answer = _sent(runtime, each)
            with runtime.database.operator() as connection:
                is_disabled = answer.is_gone and webhook_deliveries.disable_target(connection, each, GONE)
                delay = None if answer.is_taken or is_disabled else delay_after(each.attempts + 1)
                webhook_deliveries.note_attempt(connection, each, answer.outcome, is_taken=answer.is_taken, delay=delay)
            if not answer.is_taken:
                failing.add(each.organization_id)
            told = Told(
                told.taken + answer.is_taken,
                told.delayed + (delay is not None),
                told.given_up + (not answer.is_taken and delay is None),
            )
    return told


def forget_old(runtime: Runtime) -> None:
    """What became of deliveries of long ago."""
    with runtime.database.operator() as connection:
        webhook_deliveries.forget_deliveries(connection)


def message_id(run_id: str) -> str:
    """What a delivery is recognized by, however often it is sent."""
    return f"sync_{run_id}"


def _put_down(runtime: Runtime, instance: dg.DagsterInstance, to: Target) -> int:
    with runtime.database.organization(to.organization_id) as connection:
        found = webhook_deliveries.ended_runs(connection, SYNC_ASSETS, to.looked_until, to.set_at)
    if not found and runtime.now() - to.looked_until < LOOKED_AT_AGAIN:
        return 0
    with runtime.database.operator() as connection:
        known = webhook_deliveries.put_down_before(connection, to, [each.run_id for each in found])
    new = [each for each in found if each.run_id not in known]
    over = {each.run_id for each in new if each.status != RUNNING and _is_over(instance, each)}
    if over:
        # As it is now that it is over: it may have gone on after it was read.
        with runtime.database.organization(to.organization_id) as connection:
            found = webhook_deliveries.ended_runs(connection, SYNC_ASSETS, to.looked_until, to.set_at)
        new = [each for each in found if each.run_id not in known]
    final = [each for each in new if each.run_id in over]
    still_open = [each.started_at for each in new if each not in final and not each.is_given_up]
    if not webhook_deliveries.is_all(found):
        still_open.append(found[-1].started_at)
    with runtime.database.operator() as connection:
        added = sum(
            webhook_deliveries.add_delivery(connection, to, each.run_id, ended(each, to.organization_id))
            for each in final
        )
        webhook_deliveries.note_looked_until(connection, to, min(still_open, default=None), LOOKED_AT_AGAIN)
    return added


def _is_over(instance: dg.DagsterInstance, run: EndedRun) -> bool:
    """One that has failed may go on with what does not hang on the failure."""
    known = instance.get_run_by_id(run.run_id)
    return known is None or known.is_finished


def _sent(runtime: Runtime, delivery: DueDelivery) -> Answer:
    try:
        destination = Destination.from_text(runtime.vault.decrypt_text(delivery.encrypted))
    except CredentialsError:
        return Answer(None, "the target cannot be decrypted: set it anew")
    return post(destination, message_id(delivery.run_id), delivery.body, runtime.now())
