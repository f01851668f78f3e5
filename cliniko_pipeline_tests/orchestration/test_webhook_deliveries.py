"""Who wants to know of ended syncs is told, once for each, whatever the target does: over real HTTP."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.orchestration import webhook_sending, webhook_telling
from cliniko_pipeline.orchestration.sensors import webhook_deliveries
from cliniko_pipeline.orchestration.webhook_sending import Answer, Destination, post, require_usable
from cliniko_pipeline.orchestration.webhook_telling import GONE, send_due
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.postgres import webhook_deliveries as stored
from cliniko_pipeline.postgres.webhook_deliveries import Delivery
from cliniko_pipeline.sync_options import WHOLE_SYNC
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.signatures import new_secret
from cliniko_pipeline_tests.support.webhook_targets import WebhookTarget, closed_port, opened_target


@pytest.fixture
def target() -> Iterator[WebhookTarget]:
    with opened_target() as opened:
        opened.secret = new_secret()
        yield opened


def tell(deployment: Deployment, target: WebhookTarget, organization_id: str = "alpha", url: str = "") -> None:
    runtime = deployment.pipeline.runtime
    text = Destination(url or target.url, target.secret).as_text()
    with runtime.database.operator() as connection:
        stored.set_target(connection, organization_id, runtime.vault.encrypt_text(text))


def tick(deployment: Deployment) -> str:
    context = dg.build_sensor_context(instance=deployment.pipeline.instance, resources=deployment.resources)
    return webhook_deliveries.evaluate_tick(context).skip_message or ""


def execute(deployment: Deployment, statement: str, **values: object) -> None:
    with deployment.pipeline.database.operator() as connection:
        connection.execute(sa.text(statement), values)


def time_passes(deployment: Deployment, time: str) -> None:
    execute(
        deployment,
        "update cliniko.webhook_deliveries set send_at = send_at - cast(:time as interval)",
        time=time,
    )


def deliveries(deployment: Deployment, organization_id: str = "alpha") -> list[Delivery]:
    with deployment.pipeline.database.operator() as connection:
        return stored.deliveries(connection, organization_id, 100)


def note_run(deployment: Deployment, run_id: str, status: str, began: timedelta = timedelta(0)) -> None:
    """A whole run that began so long ago and, unless it is running, has just ended."""
    ended = None if status == "running" else datetime.now(UTC)
    with deployment.pipeline.database.organization("alpha") as connection:
        connection.execute(
            sa.text(
                "insert into cliniko.sync_runs (organization_id, run_id, planned, status, started_at, finished_at)"
                " values ('alpha', :run_id, :planned, :status, now() - cast(:began as interval), :ended)"
                " on conflict (organization_id, run_id) do update set status = excluded.status,"
                " finished_at = excluded.finished_at"
            ),
            {"run_id": run_id, "planned": sorted(WHOLE_SYNC), "status": status, "began": began, "ended": ended},
        )


def test_each_ended_sync_is_told_once_signed_and_without_a_patients_data(
    deployment: Deployment, target: WebhookTarget
) -> None:
    tell(deployment, target)
    assert deployment.sync("alpha").success
    deployment.accounts["alpha"].revoked = True
    assert not deployment.sync("alpha").success
    deployment.sync("beta")
    for _ in range(3):
        tick(deployment)
    succeeded, failed = target.verified()
    assert (succeeded["type"], failed["type"]) == ("sync.succeeded", "sync.failed")
    assert set(succeeded["data"]["counts"]) == WHOLE_SYNC
    assert succeeded["data"]["error"] is None
    assert "401" in failed["data"]["error"]
    runs = [row["run_id"] for row in deployment.pipeline.rows("alpha", "cliniko.sync_runs")]
    assert {each["data"]["sync_id"] for each in (succeeded, failed)} == set(runs)
    assert target.ids == [f"sync_{succeeded['data']['sync_id']}", f"sync_{failed['data']['sync_id']}"]
    assert [each.is_taken for each in deliveries(deployment)] == [True, True]
    # The library refuses what another secret has signed: the verification above can fail.
    target.secret = new_secret()
    with pytest.raises(Exception, match="No matching signature"):
        target.verified()


def test_a_target_set_now_is_not_told_of_what_ended_before_but_of_what_goes_on(
    deployment: Deployment, target: WebhookTarget
) -> None:
    assert deployment.sync("alpha").success
    note_run(deployment, "going-on", "running", timedelta(hours=3))
    tell(deployment, target)
    tick(deployment)
    assert target.received == []
    note_run(deployment, "going-on", "succeeded")
    tick(deployment)
    assert [each["data"]["sync_id"] for each in target.verified()] == ["going-on"]


def test_a_part_of_a_sync_is_not_told(deployment: Deployment, target: WebhookTarget) -> None:
    tell(deployment, target)
    assert deployment.pipeline.materialize("alpha", "cliniko/patients", "cliniko/appointments").success
    tick(deployment)
    assert target.received == []


def test_a_run_is_told_when_it_is_over_however_it_stood_before_and_none_behind_it_is_lost(
    deployment: Deployment, target: WebhookTarget
) -> None:
    tell(deployment, target)
    run = dg.DagsterRun(job_name="cliniko_sync", status=dg.DagsterRunStatus.STARTED)
    deployment.pipeline.instance.add_run(run)
    note_run(deployment, run.run_id, "failed", timedelta(hours=2))
    note_run(deployment, "later", "succeeded", timedelta(hours=1))
    note_run(deployment, "never-ends", "running", timedelta(hours=30))
    execute(deployment, "update cliniko.webhook_targets set looked_until = now() - interval '40 hours'")
    tick(deployment)
    tick(deployment)
    assert [each["data"]["sync_id"] for each in target.verified()] == ["later"]
    note_run(deployment, run.run_id, "succeeded")
    deployment.pipeline.instance.report_run_canceled(run)
    tick(deployment)
    assert [each["type"] for each in target.verified()] == ["sync.succeeded", "sync.succeeded"]
    with deployment.pipeline.database.operator() as connection:
        assert datetime.now(UTC) - stored.target(connection, "alpha").looked_until < timedelta(minutes=12)


def test_a_run_is_told_as_it_ended_though_it_goes_on_while_it_is_looked_at(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(deployment, target)
    note_run(deployment, "tried again", "failed")

    def ends_meanwhile(run_id: str) -> None:
        note_run(deployment, run_id, "succeeded")

    monkeypatch.setattr(deployment.pipeline.instance, "get_run_by_id", ends_meanwhile)
    tick(deployment)
    assert [each["data"]["status"] for each in target.verified()] == ["succeeded"]


def test_more_runs_than_are_looked_at_at_a_time_are_all_told(deployment: Deployment, target: WebhookTarget) -> None:
    tell(deployment, target)
    for number in range(230):
        note_run(deployment, f"run-{number}", "succeeded", timedelta(minutes=300 - number))
    for _ in range(4):
        tick(deployment)
    assert len(set(target.ids)) == len(target.ids) == 230


def test_a_target_that_is_down_is_asked_again_later_with_the_same_id_and_at_last_no_more(
    deployment: Deployment, target: WebhookTarget
) -> None:
    tell(deployment, target)
    target.status = 503
    assert deployment.sync("alpha").success
    waits: list[float] = []
    for _ in range(12):
        began = datetime.now(UTC)
        tick(deployment)
        (delivery,) = deliveries(deployment)
        if delivery.send_at is None:
            break
        waits.append(round((delivery.send_at - began).total_seconds()))
        tick(deployment)  # not before its time
        time_passes(deployment, f"{waits[-1] + 1} seconds")
    assert len(target.received) == 10
    assert len(set(target.ids)) == 1
    assert [round(each / 60) for each in waits[1:]] == [5, 30, 120, 300, 600, 840, 1200, 1440]
    assert waits[0] == pytest.approx(5, abs=1)
    assert (delivery.is_taken, delivery.outcome) == (False, "HTTP 503")
    assert delivery.ended_at is not None
    assert len({headers["webhook-timestamp"] for headers, _ in target.received}) >= 1
    target.verified()


def test_a_target_that_comes_back_is_told_what_it_missed(deployment: Deployment, target: WebhookTarget) -> None:
    tell(deployment, target)
    target.status = 500
    assert deployment.sync("alpha").success
    assert deployment.sync("alpha").success
    tick(deployment)
    assert len(target.received) == 1, "the second is not tried where the first has just failed"
    target.status = 204
    time_passes(deployment, "10 seconds")
    tick(deployment)
    assert len(set(target.ids)) == 2
    assert all(each.is_taken for each in deliveries(deployment))


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 429])
def test_redirects_are_not_followed_and_no_success(target: WebhookTarget, status: int) -> None:
    target.status = status
    answer = post(Destination(target.url, target.secret), "id", "{}")
    assert (answer.is_taken, answer.outcome) == (False, f"HTTP {status}")
    assert len(target.received) == 1


def test_a_target_that_is_gone_gets_nothing_more_until_it_is_set_anew(
    deployment: Deployment, target: WebhookTarget
) -> None:
    tell(deployment, target)
    target.status = 410
    for _ in range(2):
        assert deployment.sync("alpha").success
    tick(deployment)
    time_passes(deployment, "1 day")
    tick(deployment)
    assert len(target.received) == 1
    with deployment.pipeline.database.operator() as connection:
        found = stored.target(connection, "alpha")
    assert found.disabled_at is not None
    assert found.disabled_reason == GONE
    assert [(each.send_at, each.is_taken) for each in deliveries(deployment)] == [(None, False)] * 2
    assert deployment.sync("alpha").success
    tick(deployment)
    assert len(deliveries(deployment)) == 2
    target.status = 200
    tell(deployment, target)
    assert deployment.sync("alpha").success
    tick(deployment)
    assert len(target.received) == 2


def test_a_target_that_is_set_anew_while_the_old_one_says_it_is_gone_stays_and_is_told(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_target() as old:
        old.status, old.secret = 410, target.secret
        tell(deployment, old)
        assert deployment.sync("alpha").success

        def post_and_meanwhile_set_anew(to: Destination, message_id: str, body: str) -> Answer:
            answer = post(to, message_id, body)
            tell(deployment, target)
            return answer

        monkeypatch.setattr(webhook_telling, "post", post_and_meanwhile_set_anew)
        tick(deployment)
        monkeypatch.undo()
        assert len(old.received) == 1
    with deployment.pipeline.database.operator() as connection:
        assert stored.target(connection, "alpha").disabled_at is None
    time_passes(deployment, "1 minute")
    tick(deployment)
    assert len(target.verified()) == 1


def test_a_body_is_not_waited_for_and_an_endless_answer_is_given_up(
    target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    assert post(Destination(target.url, target.secret), "id", "{}").is_taken
    assert time.monotonic() - began < 2
    monkeypatch.setattr(webhook_sending, "WHOLE_SECONDS", 1)
    target.drips = True
    answer = post(Destination(target.url, target.secret), "id", "{}")
    assert (answer.status, answer.is_taken) == (None, False)
    assert time.monotonic() - began < 4


def test_what_cannot_be_reached_is_told_in_words_without_the_address(target: WebhookTarget) -> None:
    closed = Destination(f"http://127.0.0.1:{closed_port()}/secret-path", target.secret)
    assert post(closed, "id", "{}").outcome == "the connection was refused"
    no_tls = Destination(target.url.replace("http://", "https://"), target.secret)
    assert post(no_tls, "id", "{}").outcome == "no TLS connection"
    assert "secret-path" not in repr(closed)
    assert target.secret not in repr(closed)
    assert closed.label.startswith("http://127.0.0.1:")
    assert "secret-path" not in closed.label


def test_one_slow_target_does_not_keep_another_from_being_told(
    deployment: Deployment, target: WebhookTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sending, "WHOLE_SECONDS", 1)
    with opened_target() as slow:
        slow.drips, slow.secret = True, target.secret
        tell(deployment, slow, "alpha")
        tell(deployment, target, "beta")
        for name in ("alpha", "alpha", "beta"):
            assert deployment.sync(name).success
        tick(deployment)
        assert len(slow.received) == 1
        assert len(target.received) == 1


def test_a_target_that_is_down_with_much_to_be_told_does_not_keep_another_from_being_told(
    deployment: Deployment, target: WebhookTarget
) -> None:
    tell(deployment, target, "alpha", f"http://127.0.0.1:{closed_port()}")
    tell(deployment, target, "beta")
    execute(
        deployment,
        "insert into cliniko.webhook_deliveries (organization_id, run_id, body, send_at)"
        " select 'alpha', n, '{}', now() - interval '1 hour' from generate_series(1, 150) as n",
    )
    assert deployment.sync("beta").success
    assert "1 told, 1 to be tried again" in tick(deployment)
    assert [each["data"]["organization_id"] for each in target.verified()] == ["beta"]
    time_passes(deployment, "1 second")
    assert "0 told, 0 to be tried again" in tick(deployment), "nor is what it did not take asked about one by one"
    tell(deployment, target, "alpha")
    time_passes(deployment, "5 minutes")
    for _ in range(2):
        tick(deployment)
    assert len(target.received) == 151


def test_of_two_daemons_at_once_one_sends(deployment: Deployment, target: WebhookTarget) -> None:
    tell(deployment, target)
    for _ in range(2):
        assert deployment.sync("alpha").success
    target.status = 503
    tick(deployment)
    target.received.clear()
    target.status = 200
    time_passes(deployment, "10 seconds")
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda _: send_due(deployment.pipeline.runtime), range(4)))
    assert sum(each.taken for each in told) == len(target.received) == len(set(target.ids)) == 2


def test_a_target_that_no_key_opens_is_not_forgotten(deployment: Deployment, target: WebhookTarget) -> None:
    tell(deployment, target)
    assert deployment.sync("alpha").success
    execute(deployment, "update cliniko.webhook_targets set encrypted = '{}'")
    assert "1 to be tried again" in tick(deployment)
    assert "decrypted" in str(deliveries(deployment)[0].outcome)


def test_what_was_told_long_ago_is_forgotten_and_not_told_again(deployment: Deployment, target: WebhookTarget) -> None:
    tell(deployment, target)
    note_run(deployment, "long-ago", "succeeded", timedelta(hours=20))
    tick(deployment)
    execute(deployment, "update cliniko.webhook_deliveries set ended_at = ended_at - interval '31 days'")
    for _ in range(2):
        tick(deployment)
    assert deliveries(deployment) == []
    assert len(target.received) == 1


def test_with_the_organization_go_its_target_and_what_was_to_be_told(
    deployment: Deployment, target: WebhookTarget
) -> None:
    for name in ("alpha", "beta"):
        tell(deployment, target, name)
        assert deployment.sync(name).success
    target.status = 503
    tick(deployment)
    organizations.remove(deployment.pipeline.database, "alpha")
    assert deliveries(deployment) == []
    with deployment.pipeline.database.operator() as connection:
        assert [each.organization_id for each in stored.targets(connection)] == ["beta"]
    assert len(deliveries(deployment, "beta")) == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/a?token=b",
        "https://hooks.example.org:8443",
        "http://127.0.0.1:8080/x",
        "http://localhost/",
        "http://[::1]:9/",
    ],
)
def test_a_url_is_taken_that_nobody_on_the_way_can_read(url: str) -> None:
    require_usable(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/",
        "http://localhost.example.org/",
        "http://10.0.0.1/",
        "https://user:password@hooks.example.org/",
        "https://user@hooks.example.org/",
        "ftp://hooks.example.org/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "hooks.example.org",
        "",
        "https://hooks.example.org/a b",
        "https://hooks.example.org/\r\nX: y",
        "https://höoks.example.org/",
        "https://hooks.example.org:port/",
        "https://hooks.example.org:0/",
        "https://[::1/",
        "https://hooks.example.org/" + "x" * 2048,
    ],
)
def test_any_other_url_is_refused_without_being_shown(url: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        require_usable(url)
    assert "example.org/" not in str(caught.value).replace("https://hooks.example.org/cliniko", "")
