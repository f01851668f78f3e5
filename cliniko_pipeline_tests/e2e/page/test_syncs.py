"""Tests of syncs on the page of `cliniko-pipeline ui`, which are requested, followed, reloaded and cancelled."""

import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from cliniko_pipeline.sandbox.accounts.demo import demo_organizations
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline_tests.support.accounts import held
from cliniko_pipeline_tests.support.browsers import DagsterUI, answers, browser_program, opened_ui
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.demo_clinics import add_demo_clinic
from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.pages import DESK, SURF, complaints, log_in
from cliniko_pipeline_tests.support.processes import CommandLine, Running, processes_of, tracebacks
from cliniko_pipeline_tests.support.services import token
from cliniko_pipeline_tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PAGES_BEFORE_THE_HOLD = 40
"""Pages that are served before the hold, which are those of all patients and some individual appointments."""


def test_sync_is_followed_through_broken_connections(environ: dict[str, str], tmp_path: Path, pictures: Path) -> None:
    browser_program()  # fails without a browser, before anything is started
    del environ["API_DAGSTER_URL"]  # so that the default is used, which is the address of the UI
    port, api_port = free_port(), free_port()
    with opened_clinics(environ) as clinics:
        for organization in demo_organizations(datetime.now(UTC)):
            add_demo_clinic(clinics, organization)
        # The latency leaves time for stored progress, because progress is stored at most once a second.
        clinics.sandbox.faults = Faults(latency_ms=300)
        with CommandLine(environ, tmp_path).start("ui", "--port", str(port), "--api-port", str(api_port)) as running:
            try:
                address = _address(running)
                assert address == f"http://127.0.0.1:{api_port}"
                with opened_ui(address, pictures) as ui:
                    running.wait_until(lambda: answers(f"http://127.0.0.1:{port}"), "the UI never answered", 120)
                    _assert_sync_is_followed(ui, clinics, port)
                    _assert_full_sync_is_confirmed_and_cancelled(ui, clinics)
                    assert complaints(ui, {503}) == []
                _assert_dagster_ends_with_the_api(running, tmp_path)
            finally:
                if running.process.poll() is None:
                    running.interrupt(signal.SIGTERM)
                    running.wait(60)
        assert tracebacks(running.output) == []
    wait_until(lambda: not processes_of(tmp_path), lambda: f"processes still run: {processes_of(tmp_path)}")


def _assert_sync_is_followed(ui: DagsterUI, clinics: Clinics, port: int) -> None:
    page = ui.page
    page.set_viewport_size(DESK)
    tokens = _break_the_first_two_streams(page)
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url) if "active-patients-trend" in request.url else None)
    log_in(ui, token(clinics.database, "read", "sync", organizations=[SURF, "old-mill-physio"]))
    expect(page.get_by_text("2 organizations: 2 stale.")).to_be_visible()
    page.get_by_role("link", name="Surf Rehab").click()
    panel = page.locator(".sync")
    with held(clinics.sandbox.accounts[SURF], after=PAGES_BEFORE_THE_HOLD):
        # The launch fails until Dagster has loaded the code location, and the page retries.
        page.get_by_role("button", name="Sync now").click()
        expect(page.get_by_role("heading", name="sync is running")).to_be_focused()
        expect(panel).to_contain_text(re.compile(r"Individual appointments: [\d,]+ of 6,\d\d\d records"))
        expect(panel.locator("[aria-live=polite]")).to_have_text("Reading individual appointments.")
        assert 0 < panel.get_by_role("progressbar").evaluate("bar => bar.position") < 1
        expect(panel).to_contain_text(re.compile(r"\d+ requests to Cliniko"))
        expect(page.get_by_role("button", name="Sync now")).to_be_disabled()
    clinics.sandbox.faults = Faults()
    expect(page.get_by_role("heading", name="The sync has succeeded")).to_be_focused()
    assert len(tokens) >= 3
    assert all(header.startswith("Bearer clinikopipeline_") for header in tokens)
    # The page has reloaded everything exactly once.
    expect(page.get_by_role("region", name="Active patients over time").get_by_role("img")).to_be_visible()
    assert len(loaded) == 2
    active = clinics.active(SURF)
    assert active > 100
    expect(panel).to_contain_text(f"{active} active patients")
    expect(page.get_by_role("definition").first).to_have_text(str(active))
    expect(page.get_by_role("region", name="Last syncs").get_by_role("row").nth(1)).to_contain_text("✓ succeeded")
    expect(panel.get_by_role("link", name="Run in Dagster")).to_have_attribute(
        "href", re.compile(rf"^http://127\.0\.0\.1:{port}/runs/[0-9a-f-]{{36}}$")
    )
    page.get_by_role("link", name="All organizations").click()
    expect(page.get_by_text("2 organizations: 1 stale, 1 fresh.")).to_be_visible()


def _break_the_first_two_streams(page: Page) -> list[str]:
    """Break the first two streams of events. Return a list that collects the token of every stream."""
    tokens: list[str] = []

    def break_twice(route: Route) -> None:
        tokens.append(route.request.headers["authorization"])
        if len(tokens) == 1:
            route.abort("connectionreset")
        elif len(tokens) == 2:
            route.fulfill(status=200, content_type="text/event-stream", body=": ping\n\nevent: sync\nda")
        else:
            route.continue_()

    page.route("**/v1/syncs/*/events", break_twice)
    return tokens


def _assert_full_sync_is_confirmed_and_cancelled(ui: DagsterUI, clinics: Clinics) -> None:
    page = ui.page
    page.get_by_role("link", name="Surf Rehab").click()
    dialog = page.get_by_role("dialog")
    page.get_by_role("button", name="Full sync").click()
    expect(dialog).to_contain_text("marks records that were deleted in Cliniko")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Full sync")).to_be_focused()
    assert clinics.dagster_runs(SURF) == ["SUCCESS"], "nothing was launched without the confirmation"
    page.get_by_role("button", name="Full sync").click()
    clinics.sandbox.faults = Faults(latency_ms=300)
    with held(clinics.sandbox.accounts[SURF], after=PAGES_BEFORE_THE_HOLD):
        dialog.get_by_role("button", name="Start full sync").click()
        expect(page.get_by_role("heading", name="sync is running")).to_be_focused()
        # A reloaded page follows the sync too.
        page.reload()
        expect(page.get_by_role("heading", name="A full sync is running")).to_be_visible()
        expect(page.locator(".sync")).to_contain_text(re.compile(r"[\d,]+ of [\d,]+ records"))
        page.get_by_role("button", name="Cancel").click()
        wait_until(lambda: clinics.dagster_runs(SURF)[-1] in {"CANCELING", "CANCELED"}, "nothing was cancelled")
    clinics.sandbox.faults = Faults()
    expect(page.get_by_role("heading", name="The sync was cancelled")).to_be_visible()
    expect(page.get_by_role("button", name="Sync now")).to_be_enabled()
    assert clinics.dagster_runs(SURF) == ["SUCCESS", "CANCELED"]


def _assert_dagster_ends_with_the_api(running: Running, folder: Path) -> None:
    (service,) = (number for number, command in processes_of(folder).items() if " api --host" in command)
    os.kill(service, signal.SIGKILL)
    assert running.wait(60) == 1
    assert "The API has ended by itself, or was killed" in running.output


def _address(running: Running) -> str:
    running.wait_for("Page: ", 60)
    (address,) = re.findall(r"Page: (http://127\.0\.0\.1:\d+) \(log in with a token", running.output)
    running.wait_for("The API and its page", 60)
    return address
