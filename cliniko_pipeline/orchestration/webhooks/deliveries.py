"""Webhook deliveries, one for each ended sync of all assets.

A delivery is enqueued, then posted until the target accepts it or the delivery is given up. If the process is killed
after posting a delivery and before storing the result, the delivery is posted again with the same id.
"""

import time
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from cliniko_pipeline.errors import CredentialsError
from cliniko_pipeline.orchestration.plans.webhooks import delay_after, sync_message
from cliniko_pipeline.orchestration.webhooks.posting import EXCHANGE_SECONDS, Answer, Destination, post
from cliniko_pipeline.postgres.operator_tables import webhook_deliveries
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import DueDelivery, Target
from cliniko_pipeline.runtime import Runtime

SENDING_SECONDS = 30.0
"""The time for sending in one tick. Dagster ends a tick after 60 s. The next tick sends the rest."""

MAX_CHECKPOINT_LAG = timedelta(minutes=10)
"""`looked_until` of a target is updated only if it lags by more than this, because each update writes a row."""

RUNNING = "running"
GONE = "The target has answered 410 Gone: it accepts no further deliveries."


@dataclass(frozen=True)
class SentDeliveries:
    """The numbers of deliveries that were accepted, will be retried, and were given up."""

    taken: int = 0
    delayed: int = 0
    given_up: int = 0


def enqueue_deliveries(runtime: Runtime, instance: dg.DagsterInstance) -> int:
    """Enqueue a delivery for each ended sync that has none; return the number of new deliveries."""
    with runtime.database.operator() as connection:
        targets = [target for target in webhook_deliveries.targets(connection) if target.disabled_at is None]
    return sum(_enqueue(runtime, instance, target) for target in targets)


def send_due_deliveries(runtime: Runtime) -> SentDeliveries:
    """Post the due deliveries, unless another process is posting.

    If a post fails, post nothing else to the same target in this call.
    """
    deadline = time.monotonic() + SENDING_SECONDS - EXCHANGE_SECONDS
    sent = SentDeliveries()
    failing: set[str] = set()
    with runtime.database.operator() as locked:
        if not webhook_deliveries.try_lock(locked):
            return sent
        for delivery in webhook_deliveries.due_deliveries(locked):
            if delivery.organization_id in failing:
                continue
            if time.monotonic() > deadline:
                break
            answer = _post(runtime, delivery)
            with runtime.database.operator() as connection:
                is_disabled = answer.is_gone and webhook_deliveries.disable_target(connection, delivery, GONE)
                delay = None if answer.is_taken or is_disabled else delay_after(delivery.attempts + 1)
                webhook_deliveries.note_attempt(
                    connection, delivery, answer.outcome, is_taken=answer.is_taken, delay=delay
                )
            if not answer.is_taken:
                failing.add(delivery.organization_id)
            sent = SentDeliveries(
                sent.taken + answer.is_taken,
                sent.delayed + (delay is not None),
                sent.given_up + (not answer.is_taken and delay is None),
            )
    return sent


def _enqueue(runtime: Runtime, instance: dg.DagsterInstance, target: Target) -> int:
    syncs = _read_syncs(runtime, target)
    if not syncs and runtime.now() - target.looked_until < MAX_CHECKPOINT_LAG:
        return 0
    with runtime.database.operator() as connection:
        enqueued = webhook_deliveries.enqueued_run_ids(connection, target, [sync.run_id for sync in syncs])
    ended = {
        sync.run_id
        for sync in syncs
        if sync.run_id not in enqueued and sync.status != RUNNING and _has_ended(instance, sync.run_id)
    }
    if ended:
        # Read the syncs again, because a run may have changed its row after the first read, before the run ended.
        syncs = _read_syncs(runtime, target)
    unfinished = [sync.started_at for sync in syncs if sync.run_id not in enqueued | ended and not sync.is_given_up]
    if webhook_deliveries.is_full_batch(syncs):
        unfinished.append(syncs[-1].started_at)
    with runtime.database.operator() as connection:
        added = sum(
            webhook_deliveries.add_delivery(connection, target, sync.run_id, sync_message(sync, target.organization_id))
            for sync in syncs
            if sync.run_id in ended
        )
        webhook_deliveries.advance_looked_until(connection, target, min(unfinished, default=None), MAX_CHECKPOINT_LAG)
    return added


def _read_syncs(runtime: Runtime, target: Target) -> list[webhook_deliveries.CompleteSync]:
    with runtime.database.organization(target.organization_id) as connection:
        return webhook_deliveries.complete_syncs(connection, target.looked_until, target.set_at)


def _has_ended(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether the run has ended in Dagster.

    The stored status is not enough. When an asset fails, the run continues with assets that do not depend on it.
    """
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


def _post(runtime: Runtime, delivery: DueDelivery) -> Answer:
    try:
        destination = Destination.from_text(runtime.vault.decrypt_text(delivery.encrypted))
    except CredentialsError:
        return Answer(None, "the target cannot be decrypted: set it again with `cliniko-pipeline webhooks out set`")
    return post(destination, f"sync_{delivery.run_id}", delivery.body, runtime.now())
