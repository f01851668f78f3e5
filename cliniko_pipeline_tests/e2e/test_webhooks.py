"""Tests of webhook events with the real service, daemon and commands, including bursts and kills."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.operator_tables import scheduling, webhooks
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.accounts import add_appointment
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.processes import CommandLine, Running, processes_of, tracebacks
from cliniko_pipeline_tests.support.signatures import add_secret, send
from cliniko_pipeline_tests.support.waiting import wait_until
from cliniko_pipeline_tests.support.webhook_targets import opened_target

pytestmark = pytest.mark.slow

CLINICS = 8
WEBHOOKS_OF_EACH = 50
ALL_WEBHOOKS = CLINICS * WEBHOOKS_OF_EACH
ALL_SYNCS = 600
"""Seconds for all syncs of eight clinics, one run after the other on a small machine."""


class WebhookDeployment:
    """Clinics with webhook secrets and without scheduled syncs, and the processes that the operator starts."""

    def __init__(self, environ: dict[str, str], folder: Path, clinics: Clinics, stack: ExitStack) -> None:
        self.home = Path(environ["CLINIKO_PIPELINE_HOME"])
        self.command = CommandLine(environ, folder)
        self.clinics = clinics
        self.accounts: dict[str, Account] = {}
        self.secrets: dict[str, str] = {}
        self.changes = Counter[str]()
        self._stack = stack
        self._runtime = stack.enter_context(open_runtime(load_settings(environ)))

    def add(self, *names: str) -> None:
        for name in names:
            self.accounts[name] = self.clinics.add(name)
            self.secrets[name], _ = add_secret(self._runtime, name)
            with self.clinics.database.operator() as connection:
                scheduling.set_schedule(connection, name, is_on=False)

    def start(self, *arguments: str) -> Running:
        """Start a command that is ended with the test, whatever happens."""
        running = self._stack.enter_context(self.command.start(*arguments))
        self._stack.callback(lambda: running.process.poll() is not None or (running.interrupt(), running.wait(90)))
        return running

    def start_ui(self) -> Running:
        """Start the daemon, webserver and code server. Return when the sensor for webhooks has ticked."""
        running = self.start("ui", "--port", str(free_port()))
        ticks = "select count(*) from dagster.job_ticks where tick_body::jsonb ->> 'job_name' = 'webhook_syncs'"

        def has_ticked() -> bool:
            with self.clinics.database.operator() as connection:
                exists = connection.exec_driver_sql("select to_regclass('dagster.job_ticks')").scalar_one()
                return exists is not None and connection.exec_driver_sql(ticks).scalar_one() > 0

        running.wait_until(has_ticked, "the sensor does not look", 120)
        return running

    def start_api(self, port: int) -> tuple[Running, str]:
        """Start the service. Return it and its address when it responds."""
        running = self.start("api", "--port", str(port))
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.get(f"{url}/healthz", trust_env=False, verify=False).is_success
            return False

        running.wait_until(answers, "the service does not answer")
        return running, url

    def change(self, name: str) -> None:
        """Give the clinic's active patient another appointment."""
        self.changes[name] += 1
        add_appointment(self.accounts[name], self.changes[name])

    def send(self, url: str, name: str, message_id: str | None = None) -> int:
        return send(url, name, self.secrets[name], message_id=message_id).status_code

    def stored(self, name: str) -> int:
        """Return the number of changes that the row of the active patient includes."""
        with self.clinics.database.organization(name) as connection:
            counts = connection.exec_driver_sql("select recent_appointment_count from public.active_patients")
            return counts.scalar_one_or_none() or 0

    def received(self) -> int:
        with self.clinics.database.operator() as connection:
            return connection.exec_driver_sql("select count(*) from cliniko.webhook_events").scalar_one()

    def is_settled(self) -> bool:
        """Return whether no webhook event waits for a sync and no run is unfinished."""
        states = {state for name in self.accounts for state in self.clinics.dagster_runs(name)}
        with self.clinics.database.operator() as connection:
            return not webhooks.pending_events(connection) and states <= {"SUCCESS", "FAILURE", "CANCELED"}

    def wait_until_settled(self, running: Running) -> None:
        running.wait_until(self.is_settled, "the webhooks are not synced", ALL_SYNCS)
        assert {name: self.stored(name) for name in self.accounts} == dict(self.changes)

    def daemon(self) -> int:
        (process,) = (each for each, command in processes_of(self.home).items() if "dagster._daemon" in command)
        return process


@pytest.fixture
def deployment(database_url: URL, tmp_path: Path) -> Iterator[WebhookDeployment]:
    variables = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
    environ = environment(database_url, tmp_path / "home") | variables
    with ExitStack() as stack:
        clinics = stack.enter_context(opened_clinics(environ))
        yield WebhookDeployment(environ, tmp_path, clinics, stack)


class Burst:
    """Changes in all clinics, each sent as a relay does.

    A clinic sends one event at a time, and repeats the event until it is accepted. It stops at `pauses_at` accepted
    events until `pass_pause` is called.
    """

    def __init__(self, deployment: WebhookDeployment, url: str, *pauses_at: int) -> None:
        self.accepted = Counter[str]()
        self._deployment = deployment
        self._url = url
        self._resumed = {count: Event() for count in pauses_at}

    def send(self) -> None:
        with ThreadPoolExecutor(len(self._deployment.accounts)) as threads:
            list(threads.map(self._send_all, self._deployment.accounts))

    def _send_all(self, name: str) -> None:
        for number in range(WEBHOOKS_OF_EACH):
            if number in self._resumed:
                self._resumed[number].wait()
            self._deployment.change(name)
            message_id = uuid4().hex
            wait_until(lambda message_id=message_id: self._is_accepted(name, message_id), "the webhook is not accepted")
            self.accepted[name] += 1

    def _is_accepted(self, name: str, message_id: str) -> bool:
        try:
            return self._deployment.send(self._url, name, message_id) == 202
        except httpx.HTTPError:
            return False

    def pass_pause(self, count: int) -> None:
        """Wait until every clinic has reached its pause. Then let all clinics continue."""
        wait_until(
            lambda: all(self.accepted[name] == count for name in self._deployment.accounts),
            lambda: f"accepted are only {self.accepted}",
        )
        self._resumed[count].set()


def test_webhook_leads_to_the_row_and_to_the_target(deployment: WebhookDeployment) -> None:
    deployment.add("alpha")
    with opened_target() as target:
        service, url = deployment.start_api(free_port())
        running = deployment.start("ui", "--port", str(free_port()))
        assert deployment.command("sync", "alpha").returncode == 0
        added = deployment.command("webhooks", "out", "set", "alpha", target.url)
        assert added.returncode == 0, added.stderr
        target.secret = added.stdout.strip()
        assert deployment.stored("alpha") == 0
        deployment.change("alpha")
        assert deployment.send(url, "alpha") == 202
        running.wait_until(lambda: deployment.stored("alpha") == 1, "the webhook was not synced", 120)
        running.wait_until(target.verified, "the target received nothing", 120)
        running.wait_until(deployment.is_settled, "the sync does not end")
    (message,) = target.verified()
    assert message["type"] == "sync.succeeded"
    assert message["data"]["organization_id"] == "alpha"
    assert deployment.clinics.dagster_runs("alpha") == ["SUCCESS", "SUCCESS"]
    assert tracebacks(running.output + service.output) == []


def test_webhooks_survive_killed_service_and_daemon(deployment: WebhookDeployment) -> None:
    """Eight clinics send four hundred webhook events. Every accepted event is synced."""
    deployment.add(*(f"clinic-{number}" for number in range(CLINICS)))
    port = free_port()
    service, url = deployment.start_api(port)
    running = deployment.start_ui()
    burst = Burst(deployment, url, 10, 30)
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(burst.send)
        burst.pass_pause(10)
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait(30)
        deployment.start_api(port)
        wait_until(lambda: any(map(deployment.clinics.dagster_runs, deployment.accounts)), "no run began")
        burst.pass_pause(30)
        os.kill(deployment.daemon(), signal.SIGKILL)
        assert running.wait(120) == 1
        running = deployment.start_ui()
        sending.result(120)
    assert burst.accepted.total() == deployment.received() == ALL_WEBHOOKS
    deployment.wait_until_settled(running)
