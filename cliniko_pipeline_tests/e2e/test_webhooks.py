"""Webhooks with the real service, daemon and commands: from an accepted webhook to the row, and back to who is told.

A burst, and what is killed in the middle of one, takes minutes: `make test-webhooks` does it, which sets
CLINIKO_TEST_WEBHOOKS.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres import scheduling, webhooks
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.hostile_accounts import individual_appointment
from cliniko_pipeline_tests.support.processes import CommandLine, Running, processes_of, tracebacks
from cliniko_pipeline_tests.support.signatures import add_secret, send
from cliniko_pipeline_tests.support.waiting import wait_until
from cliniko_pipeline_tests.support.webhook_targets import opened_target

long = pytest.mark.skipif("CLINIKO_TEST_WEBHOOKS" not in os.environ, reason="takes long: make test-webhooks")

BURST = 1000
ORGANIZATIONS = 20
SECONDS_FROM_WEBHOOK_TO_ROW = 30


class Deployment:
    """Clinics that the schedule leaves alone, and what the operator starts."""

    def __init__(self, environ: dict[str, str], folder: Path, clinics: Clinics, stack: ExitStack) -> None:
        self.home = Path(environ["CLINIKO_PIPELINE_HOME"])
        self.command = CommandLine(environ, folder)
        self.clinics = clinics
        self.accounts: dict[str, Account] = {}
        self.secrets: dict[str, str] = {}
        self._changes: dict[str, int] = {}
        self._stack = stack
        self._runtime = stack.enter_context(open_runtime(load_settings(environ)))

    def add(self, name: str) -> None:
        self.accounts[name] = self.clinics.add(name)
        self.secrets[name], _ = add_secret(self._runtime, name)
        with self.clinics.database.operator() as connection:
            scheduling.set_schedule(connection, name, is_on=False)

    def ui(self) -> Running:
        """Daemon, webserver and code server; they end with the test, whatever happens."""
        running = self._stack.enter_context(self.command.start("ui", "--port", str(free_port())))
        self._stack.callback(_end, running)
        return running

    def api(self, port: int) -> tuple[Running, str]:
        """The service, once it answers, and its address."""
        running = self._stack.enter_context(self.command.start("api", "--port", str(port)))
        self._stack.callback(_end, running)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.get(f"{url}/openapi.json").status_code == 200
            return False

        running.wait_until(answers, "the service does not answer")
        return running, url

    def change(self, name: str) -> None:
        """The active patient of the clinic has one more appointment, of yesterday."""
        self._changes[name] = number = self._changes.get(name, 0) + 1
        now = datetime.now(UTC)
        self.accounts[name].put(
            "individual_appointments",
            individual_appointment(
                str(1000 + number), "1", _wire(now - timedelta(days=1)), created_at=_wire(now), updated_at=_wire(now)
            ),
        )

    def changes(self) -> dict[str, int]:
        return dict(self._changes)

    def stored(self, name: str) -> int:
        """How many of these the row knows."""
        with self.clinics.database.organization(name) as connection:
            counts = connection.exec_driver_sql("select recent_appointment_count from public.active_patients")
            return counts.scalar_one_or_none() or 0

    def pending(self) -> dict[str, int]:
        with self.clinics.database.operator() as connection:
            return {name: each.events for name, each in webhooks.pending_events(connection).items()}

    def is_settled(self) -> bool:
        """Nothing waits, and nothing goes on that could still fail."""
        states = {state for name in self.accounts for state in self.clinics.dagster_runs(name)}
        return not self.pending() and states <= {"SUCCESS", "FAILURE", "CANCELED"}

    def events(self) -> int:
        with self.clinics.database.operator() as connection:
            return connection.exec_driver_sql("select count(*) from cliniko.webhook_events").scalar_one()

    def processes(self, words: str) -> list[int]:
        return [number for number, command in processes_of(self.home).items() if words in command]


@pytest.fixture
def deployment(database_url: URL, tmp_path: Path) -> Iterator[Deployment]:
    once = {"CLINIKO_SYNC_EVERY_MINUTES": "1440", "CLINIKO_FULL_SYNC_AT": "off"}
    environ = environment(database_url, tmp_path / "home") | once
    with ExitStack() as stack:
        clinics = stack.enter_context(opened_clinics(environ))
        yield Deployment(environ, tmp_path, clinics, stack)


def test_from_an_accepted_webhook_to_the_row_it_takes_seconds_and_the_target_is_told(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.add("alpha")
    with opened_target() as target:
        service, url = deployment.api(free_port())
        running = deployment.ui()
        assert deployment.command("sync", "alpha").returncode == 0
        told = deployment.command("webhooks", "out", "set", "alpha", target.url)
        assert told.returncode == 0, told.stderr
        target.secret = told.stdout.strip()
        assert deployment.stored("alpha") == 0
        deployment.change("alpha")
        began = time.monotonic()
        assert send(url, "alpha", deployment.secrets["alpha"]).status_code == 202
        running.wait_until(lambda: deployment.stored("alpha") == 1, "it was not synced")
        took = time.monotonic() - began
        with capsys.disabled():
            sys.stdout.write(f"\nFrom an accepted webhook to the row: {took:.1f} s\n")
        assert took < SECONDS_FROM_WEBHOOK_TO_ROW
        running.wait_until(target.verified, "nobody was told")
        running.wait_until(deployment.is_settled, "it does not end")
    (message,) = target.verified()
    assert message["type"] == "sync.succeeded"
    assert message["data"]["organization_id"] == "alpha"
    assert deployment.clinics.dagster_runs("alpha") == ["SUCCESS", "SUCCESS"]
    assert tracebacks(running.output + service.output) == []


@long
def test_a_burst_leads_to_two_runs_an_organization_at_most_and_every_change_is_stored(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    names = _open_many(deployment)
    _, url = deployment.api(free_port())
    running = deployment.ui()
    _wait_for_sensors(deployment, running)
    began = time.monotonic()
    _burst(deployment, url, names, accepted := [])
    sent = time.monotonic() - began
    assert len(accepted) == BURST
    running.wait_until(deployment.is_settled, "they are not synced", 300)
    took = time.monotonic() - began
    runs = {name: deployment.clinics.dagster_runs(name) for name in names}
    number = sum(map(len, runs.values()))
    with capsys.disabled():
        sys.stdout.write(f"\n{BURST} webhooks in {sent:.1f} s, all synced after {took:.1f} s by {number} runs\n")
    assert {name: deployment.stored(name) for name in names} == deployment.changes()
    assert {state for states in runs.values() for state in states} == {"SUCCESS"}
    assert number <= 2 * ORGANIZATIONS


@long
def test_what_was_accepted_is_synced_though_service_and_daemon_are_killed(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    names = _open_many(deployment)
    port = free_port()
    service, url = deployment.api(port)
    running = deployment.ui()
    _wait_for_sensors(deployment, running)
    accepted: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(_burst, deployment, url, names, accepted, pause=0.6)
        wait_until(lambda: len(accepted) > 100, "nothing is accepted")
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait(30)
        before = len(accepted)
        deployment.api(port)
        wait_until(lambda: any(deployment.clinics.dagster_runs(name) for name in names), "no run began")
        (daemon,) = deployment.processes("dagster._daemon")
        os.kill(daemon, signal.SIGKILL)
        assert running.wait(90) == 1
        meanwhile = len(accepted)
        assert before < meanwhile < BURST, "nothing was killed in the middle"
        running = deployment.ui()
        sending.result(120)
    assert len(accepted) == BURST
    assert deployment.events() == BURST, "one that was answered was not kept"
    began = time.monotonic()
    running.wait_until(deployment.is_settled, "they are not synced", 600)
    with capsys.disabled():
        runs = sum(len(deployment.clinics.dagster_runs(name)) for name in names)
        took = time.monotonic() - began
        sys.stdout.write(
            f"\nThe service was killed after {before} webhooks, the daemon after {meanwhile}; all {BURST} synced"
            f" {took:.1f} s after the last, by {runs} runs\n"
        )
    assert {name: deployment.stored(name) for name in names} == deployment.changes()


def _open_many(deployment: Deployment) -> list[str]:
    names = [f"clinic-{number}" for number in range(ORGANIZATIONS)]
    for name in names:
        deployment.add(name)
    return names


def _wait_for_sensors(deployment: Deployment, running: Running) -> None:
    """Until the daemon looks."""
    ticks = "select count(*) from dagster.job_ticks where tick_body::jsonb ->> 'job_name' = 'webhook_syncs'"

    def looked() -> bool:
        with deployment.clinics.database.operator() as connection:
            exists = connection.exec_driver_sql("select to_regclass('dagster.job_ticks')").scalar_one()
            return exists is not None and connection.exec_driver_sql(ticks).scalar_one() > 0

    running.wait_until(looked, "the sensor does not look", 90)


def _burst(deployment: Deployment, url: str, names: Sequence[str], taken: list[str], pause: float = 0.0) -> None:
    """Changes and announces each, and says whose were accepted."""

    def is_accepted(name: str, message_id: str) -> bool:
        try:
            return send(url, name, deployment.secrets[name], message_id=message_id).status_code == 202
        except httpx.HTTPError:
            return False

    # One of an organization at a time, as a relay sends, which tries again until it is accepted.
    def announce_all(name: str) -> None:
        for _ in range(BURST // len(names)):
            deployment.change(name)
            message_id = uuid4().hex
            while not is_accepted(name, message_id):
                time.sleep(0.2)
            taken.append(name)
            time.sleep(pause)

    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(announce_all, names))


def _end(running: Running) -> None:
    if running.process.poll() is None:
        running.interrupt()
        running.wait(90)


def _wire(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"
