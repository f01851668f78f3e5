"""Tests of deliveries of ended syncs to webhook targets, over real HTTP. The target belongs to alpha by default."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.orchestration.plans.webhooks import DELAYS
from cliniko_pipeline.orchestration.retention.pruning import Prune
from cliniko_pipeline.orchestration.sensors import webhook_deliveries
from cliniko_pipeline.orchestration.webhooks import deliveries as webhook_deliveries_module
from cliniko_pipeline.orchestration.webhooks import posting
from cliniko_pipeline.orchestration.webhooks.deliveries import GONE, send_due_deliveries
from cliniko_pipeline.orchestration.webhooks.posting import Answer, Destination, post, require_usable
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.operator_tables import webhook_deliveries as stored
from cliniko_pipeline.postgres.operator_tables.webhook_deliveries import Delivery
from cliniko_pipeline.sync_options import SYNC_ASSETS
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.signatures import new_secret
from cliniko_pipeline_tests.support.webhook_targets import WebhookTarget, closed_port, opened_target


@pytest.fixture
def server() -> Iterator[WebhookTarget]:
    """Yield a server that is not yet the target of an organization."""
    with opened_target() as opened:
        opened.secret = new_secret()
        yield opened


@pytest.fixture
def target(deployment: Deployment, server: WebhookTarget) -> WebhookTarget:
    set_target(deployment, server)
    return server


def set_target(deployment: Deployment, target: WebhookTarget, organization_id: str = "alpha", url: str = "") -> None:
    runtime = deployment.pipeline.runtime
    text = Destination(url or target.url, target.secret).as_text()
    with runtime.database.operator() as connection:
        stored.set_target(connection, organization_id, runtime.vault.encrypt_text(text))


def stored_target(deployment: Deployment) -> stored.Target:
    with deployment.database.operator() as connection:
        return stored.target(connection, "alpha")


def tick(deployment: Deployment) -> str:
    return deployment.evaluate(webhook_deliveries).skip_message or ""


def let_pass(deployment: Deployment, time: str) -> None:
    deployment.execute("update cliniko.webhook_deliveries set send_at = send_at - cast(:time as interval)", time=time)


def deliveries(deployment: Deployment) -> list[Delivery]:
    with deployment.database.operator() as connection:
        return stored.deliveries(connection, "alpha", 100)


def note_run(
    deployment: Deployment, run_id: str, status: str = "succeeded", hours: float = 0, organization_id: str = "alpha"
) -> None:
    """Store a complete sync that started this many hours ago. Unless it is running, it has just ended."""
    deployment.execute(
        "insert into cliniko.sync_runs (organization_id, run_id, planned, status, started_at, finished_at)"
        " values (:organization_id, :run_id, :planned, :status, now() - :hours * interval '1 hour', :ended)"
        " on conflict (organization_id, run_id) do update set status = excluded.status,"
        " finished_at = excluded.finished_at",
        organization_id=organization_id,
        run_id=run_id,
        planned=sorted(SYNC_ASSETS),
        status=status,
        hours=hours,
        ended=None if status == "running" else datetime.now(UTC),
    )


def test_delivery_has_a_valid_signature_and_the_result(deployment: Deployment, target: WebhookTarget) -> None:
    """One delivery is sent per complete sync, with its counts and reasons."""
    assert deployment.pipeline.materialize("alpha", "cliniko/patients").success
    run_ids = [deployment.sync("alpha").run_id]
    deployment.accounts["alpha"].revoked = True
    run_ids.append(deployment.sync("alpha").run_id)
    note_run(deployment, "of-beta", organization_id="beta")
    for _ in range(3):
        tick(deployment)
    assert target.ids == [f"sync_{run_id}" for run_id in run_ids]
    messages = target.verified()
    assert [message["type"] for message in messages] == ["sync.succeeded", "sync.failed"]
    succeeded, failed = [message["data"] for message in messages]
    assert [succeeded["sync_id"], failed["sync_id"]] == run_ids
    assert (set(succeeded["counts"]), succeeded["error"]) == (SYNC_ASSETS, None)
    assert "401" in failed["error"]
    assert [delivery.is_taken for delivery in deliveries(deployment)] == [True, True]


def test_new_target_gets_only_syncs_that_end_later(deployment: Deployment, server: WebhookTarget) -> None:
    note_run(deployment, "ended")
    note_run(deployment, "running", "running", hours=3)
    set_target(deployment, server)
    tick(deployment)
    assert server.received == []
    note_run(deployment, "running")
    tick(deployment)
    assert [message["data"]["sync_id"] for message in server.verified()] == ["running"]


def test_delivery_is_sent_when_dagsters_run_has_ended(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed sync may continue until Dagster's run has ended.

    Later syncs are delivered earlier, and no sync is skipped.
    """
    run = deployment.add_run(dg.DagsterRunStatus.STARTED, {})
    note_run(deployment, run.run_id, "failed", hours=2)
    note_run(deployment, "later", hours=1)
    note_run(deployment, "never-ends", "running", hours=30)
    deployment.execute("update cliniko.webhook_targets set looked_until = now() - interval '40 hours'")
    tick(deployment)
    tick(deployment)
    assert [message["data"]["sync_id"] for message in target.verified()] == ["later"]
    note_run(deployment, run.run_id)
    deployment.instance.report_run_canceled(run)
    before = datetime.now(UTC)
    tick(deployment)
    assert [message["type"] for message in target.verified()] == ["sync.succeeded", "sync.succeeded"]
    assert stored_target(deployment).looked_until > before - timedelta(minutes=12)
    note_run(deployment, "retried", "failed")
    monkeypatch.setattr(deployment.instance, "get_run_by_id", lambda run_id: note_run(deployment, run_id))
    tick(deployment)
    assert target.verified()[-1]["data"]["status"] == "succeeded", "the state is read after the run's end"


def test_more_runs_than_a_batch_are_all_delivered(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BATCH_SIZE", 5)
    for number in range(12):
        note_run(deployment, f"run-{number}", hours=14 - number)
    for _ in range(4):
        tick(deployment)
    assert len(set(target.ids)) == len(target.ids) == 12


def test_delivery_is_retried_with_the_same_id_for_days(deployment: Deployment, target: WebhookTarget) -> None:
    target.status = 503
    note_run(deployment, "run")
    for delay in DELAYS:
        earliest = datetime.now(UTC)
        tick(deployment)
        latest = datetime.now(UTC)
        tick(deployment)  # the delivery is not due yet
        (delivery,) = deliveries(deployment)
        assert delivery.send_at is not None
        assert earliest + delay <= delivery.send_at <= latest + delay
        let_pass(deployment, f"{delay.total_seconds()} seconds")
    tick(deployment)
    (delivery,) = deliveries(deployment)
    assert (delivery.send_at, delivery.is_taken, delivery.outcome) == (None, False, "HTTP 503")
    assert delivery.ended_at is not None
    assert len(target.verified()) == 10
    assert set(target.ids) == {"sync_run"}


def test_target_that_recovers_gets_each_delivery_once(deployment: Deployment, target: WebhookTarget) -> None:
    """Concurrent daemons send the deliveries."""
    target.status = 500
    note_run(deployment, "first", hours=1)
    note_run(deployment, "second")
    tick(deployment)
    assert len(target.received) == 1, "the second is not tried after the first has failed"
    target.received.clear()
    target.status = 204
    let_pass(deployment, "10 minutes")
    with ThreadPoolExecutor(4) as threads:
        sent = list(threads.map(lambda _: send_due_deliveries(deployment.pipeline.runtime), range(4)))
    assert sum(result.taken for result in sent) == 2
    assert sorted(target.ids) == ["sync_first", "sync_second"]
    assert all(delivery.is_taken for delivery in deliveries(deployment))


@pytest.mark.parametrize(("status", "is_taken"), [(200, True), (302, False), (400, False)])
def test_status_alone_is_read_and_decides(server: WebhookTarget, status: int, is_taken: bool) -> None:
    """The target never sends the rest of its body, so reading the body would time out."""
    server.status = status
    answer = post(Destination(server.url, server.secret), "id", "{}", datetime.now(UTC))
    assert (answer, answer.is_taken) == (Answer(status, f"HTTP {status}"), is_taken)
    assert len(server.received) == 1, "redirects are not followed"


def test_status_410_disables_the_target_until_set_again(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post_while_replaced(to: Destination, message_id: str, body: str, now: datetime) -> Answer:
        answer = post(to, message_id, body, now)
        set_target(deployment, target)
        return answer

    target.status = 410
    note_run(deployment, "first", hours=1)
    with monkeypatch.context() as patched:
        patched.setattr(webhook_deliveries_module, "post", post_while_replaced)
        tick(deployment)
    assert stored_target(deployment).disabled_at is None, "another target answered"
    let_pass(deployment, "1 minute")
    note_run(deployment, "second")
    tick(deployment)
    note_run(deployment, "third")
    let_pass(deployment, "1 day")
    tick(deployment)
    assert target.ids == ["sync_first", "sync_first"]
    assert stored_target(deployment).disabled_at is not None
    assert stored_target(deployment).disabled_reason == GONE
    assert [(delivery.send_at, delivery.is_taken) for delivery in deliveries(deployment)] == [(None, False)] * 2
    target.status = 200
    set_target(deployment, target)
    note_run(deployment, "fourth")
    tick(deployment)
    assert target.ids[2:] == ["sync_fourth"]


def test_slow_target_times_out_and_delays_no_other(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "EXCHANGE_SECONDS", 1)
    with opened_target() as slow:
        slow.drips, slow.secret = True, target.secret
        set_target(deployment, slow, "alpha")
        set_target(deployment, target, "beta")
        for run_id in ("first", "second"):
            note_run(deployment, run_id)
        note_run(deployment, "of-beta", organization_id="beta")
        tick(deployment)
    assert len(target.received) == 1
    attempts = {delivery.outcome: delivery.attempts for delivery in deliveries(deployment)}
    assert attempts == {"no answer within 1 s": 1, None: 0}


def test_unreachable_target_is_reported_without_its_url(server: WebhookTarget) -> None:
    closed = Destination(f"http://127.0.0.1:{closed_port()}/secret-path", server.secret)
    assert post(closed, "id", "{}", datetime.now(UTC)).outcome == "the connection was refused"
    no_tls = Destination(server.url.replace("http://", "https://"), server.secret)
    assert post(no_tls, "id", "{}", datetime.now(UTC)).outcome == "no TLS connection"
    assert closed.label.startswith("http://127.0.0.1:")
    for secret in ("secret-path", server.secret):
        assert secret not in repr(closed) + closed.label


def test_backlog_of_a_target_delays_no_other(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BATCH_SIZE", 4)
    set_target(deployment, target, "alpha", f"http://127.0.0.1:{closed_port()}")
    set_target(deployment, target, "beta")
    deployment.execute(
        "insert into cliniko.webhook_deliveries (organization_id, run_id, body, send_at)"
        " select 'alpha', n, '{}', now() - interval '1 hour' from generate_series(1, 6) as n"
    )
    note_run(deployment, "of-beta", organization_id="beta")
    assert "1 taken, 1 to retry" in tick(deployment)
    assert [message["data"]["organization_id"] for message in target.verified()] == ["beta"]
    let_pass(deployment, "1 second")
    assert "0 taken, 0 to retry" in tick(deployment), "the rest of the backlog waits, too"
    set_target(deployment, target, "alpha")
    let_pass(deployment, "5 minutes")
    for _ in range(2):
        tick(deployment)
    assert len(target.received) == 7


def test_target_without_a_usable_key_is_retried(deployment: Deployment, target: WebhookTarget) -> None:
    note_run(deployment, "run")
    deployment.execute("update cliniko.webhook_targets set encrypted = '{}'")
    assert "1 to retry" in tick(deployment)
    assert "decrypted" in str(deliveries(deployment)[0].outcome)


def test_old_delivery_is_forgotten_and_not_repeated(deployment: Deployment, target: WebhookTarget) -> None:
    """The deliveries of a removed organization are deleted with its target."""
    note_run(deployment, "run", hours=20)
    tick(deployment)
    deployment.execute("update cliniko.webhook_deliveries set ended_at = ended_at - interval '31 days'")
    Prune(deployment.pipeline.runtime, deployment.instance).run()
    assert deliveries(deployment) == []
    tick(deployment)
    assert deliveries(deployment) == []
    assert len(target.received) == 1

    set_target(deployment, target, "beta")
    for name in ("alpha", "beta"):
        note_run(deployment, name, organization_id=name)
    tick(deployment)
    organizations.remove(deployment.database, "alpha")
    assert deployment.execute("select organization_id from cliniko.webhook_targets") == ["beta"]
    assert deployment.execute("select organization_id from cliniko.webhook_deliveries") == ["beta"]


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:9"])
def test_https_or_loopback_url_is_accepted(host: str) -> None:
    require_usable(f"http://{host}/x")
    require_usable("https://hooks.example.org/a?token=b")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/",
        "http://localhost.example.org/",
        "https://user:password@hooks.example.org/",
        "ftp://hooks.example.org/",
        "https://",
        "https://hooks.example.org/\r\nX: y",
        "https://höoks.example.org/",
        "https://hooks.example.org:port/",
        "https://hooks.example.org:0/",
        "https://hooks.example.org/" + "x" * 2048,
    ],
)
def test_other_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        require_usable(url)
    assert "example.org/" not in str(caught.value).replace("https://hooks.example.org/cliniko", "")
