"""The page in a real browser, on the real service: by mouse, by keyboard, on a phone, and where something is wrong.

CLINIKO_TEST_PICTURES names a folder for the screenshots (`make screenshots`: those of the documentation).
"""

import csv
import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, Route, ViewportSize, expect
from sqlalchemy.engine import URL

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.postgres import api_tokens, organizations
from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.sandbox.demo import DemoOrganization, demo_organizations
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline_tests.support.api_servers import served
from cliniko_pipeline_tests.support.browsers import DagsterUI, answers, browser_program, opened_ui
from cliniko_pipeline_tests.support.clinics import Clinics, opened_clinics
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, opened_pipeline
from cliniko_pipeline_tests.support.processes import CommandLine, Running, processes_of, tracebacks
from cliniko_pipeline_tests.support.waiting import wait_until

SURF = "surf-rehab"
DESK: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>\u202e&lt;b&gt;'
FOCUSED = "[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]"
CALLED_AS_ITS_COLUMN = "cell => getComputedStyle(cell, '::before').content === JSON.stringify(cell.dataset.title)"
TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
STATES_OF_MANY = (
    "update cliniko.scheduling set succeeded_at = now() - interval '3 days' where organization_id = 'clinic-221'",
    "update cliniko.scheduling set failures = 3 where organization_id = 'clinic-220'",
    """
    update cliniko.scheduling
    set paused_at = now(), pause_reason = 'No.', paused_credentials = (
        select md5(credentials_encrypted::text) from public.api_credentials where organization_id = 'clinic-219'
    ) where organization_id = 'clinic-219'
    """,
    "update public.api_credentials set is_active = false where organization_id = 'clinic-218'",
    """
    insert into cliniko.check_results (organization_id, asset, name, holds, remark) values
    ('clinic-217', 'active_patients', 'is_not_older_than_promised', false, 'Old.'),
    ('clinic-216', 'contact_mapping', 'no_contact_is_used_twice', false, 'Twice.')
    """,
)
ALL_ASSETS = ["cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"]
PAST = (180, 184, 183, 188, 192, 191, 195, 202, 206, 204, 210, 213, 218, 217)
"""Active patients on the days of a made-up past."""


@pytest.fixture
def environ(database_url: URL, tmp_path: Path) -> dict[str, str]:
    # What runs here was requested on the page.
    by_hand = {"CLINIKO_SYNC_EVERY_MINUTES": "0", "CLINIKO_FULL_SYNC_AT": "off"}
    nowhere = {"API_DAGSTER_URL": f"http://127.0.0.1:{free_port()}"}
    return environment(database_url, tmp_path / "home") | by_hand | nowhere


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("CLINIKO_TEST_PICTURES") or tmp_path / "pictures").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def pipeline(environ: dict[str, str]) -> Iterator[PipelineUnderTest]:
    with opened_pipeline(environ) as opened:
        yield opened


@pytest.fixture
def refused() -> set[int]:
    """Statuses that a test means to be answered with; the browser complains of each."""
    return set()


@pytest.fixture
def ui(pipeline: PipelineUnderTest, pictures: Path, refused: set[int]) -> Iterator[DagsterUI]:
    """A tab on the service. Nothing of it may have complained in the end."""
    with served(pipeline.runtime) as address, opened_ui(address, pictures) as opened:
        opened.page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        yield opened
        assert _complaints(opened, refused) == []


def test_it_is_used_by_keyboard_alone_from_a_wrong_token_to_the_log_out(
    ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]
) -> None:
    page = ui.page
    _add(pipeline.database, SURF, "Surf Rehab")
    ui.open(f"/#/organizations/{SURF}")
    expect(page).to_have_title("Log in · Cliniko pipeline")
    expect(page.get_by_label("Token")).to_be_focused()
    expect(page.get_by_label("Token")).to_have_attribute("type", "password")
    page.keyboard.type("clinikopipeline_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This token is not good")
    refused.add(401)
    # The wrong one is marked, so that what is typed takes its place.
    page.keyboard.type(_token(pipeline.database, ["read"], [SURF]))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page).to_have_title("Surf Rehab · Cliniko pipeline")

    _tab_to(page, "All organizations", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Organizations")).to_be_focused()
    expect(page.get_by_role("link", name="Surf Rehab")).to_be_visible()
    _tab_to(page, "Surf Rehab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Surf Rehab")).to_be_focused()
    page.go_back()
    expect(page.get_by_role("heading", name="Organizations")).to_be_focused()

    page.evaluate("document.activeElement.blur()")
    page.evaluate("getSelection().removeAllRanges()")
    page.reload()  # the token is this tab's
    expect(page.get_by_role("link", name="Surf Rehab")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    _tab_to(page, "Log out", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Token")).to_be_focused()
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0
    expect(page.get_by_text("Surf Rehab")).to_have_count(0)


def test_hostile_names_are_text_and_nothing_else(ui: DagsterUI, pipeline: PipelineUnderTest) -> None:
    page = ui.page
    hostile_id = 'x"><svg onload=alert(1)> é%2e'
    _add(pipeline.database, hostile_id, HOSTILE)
    with pipeline.database.organization(hostile_id) as connection:
        connection.exec_driver_sql(
            "insert into cliniko.sync_runs (organization_id, run_id, planned, status, finished_at, error, assets)"
            " values (%s, %s, %s, 'failed', now(), %s, '{}')",
            (hostile_id, str(uuid4()), ALL_ASSETS, f"It broke: {HOSTILE}"),
        )
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    _log_in(ui, _token(pipeline.database, ["read"], None))
    link = page.get_by_role("link", name=HOSTILE)
    expect(link).to_have_text(HOSTILE)
    expect(page.get_by_text(hostile_id, exact=True)).to_be_visible()
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    expect(page.get_by_role("listitem")).to_contain_text(
        ["It was not synced yet", f"The last sync failed. It broke: {HOSTILE}"]
    )
    expect(page.get_by_role("cell").filter(has_text=HOSTILE)).to_be_visible()
    assert page.title() == f"{' '.join(HOSTILE.split())} · Cliniko pipeline"
    assert page.locator("main :is(img, script, svg[onload], b, iframe)").count() == 0
    assert asked == []


def test_another_organizations_address_tells_the_problem_and_the_page_goes_on(
    ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]
) -> None:
    page = ui.page
    _add(pipeline.database, "mine", "Mine")
    _add(pipeline.database, "theirs", "Their name")
    _log_in(ui, _token(pipeline.database, ["read"], ["mine"]))
    expect(page.get_by_role("link", name="Mine")).to_be_visible()
    expect(page.get_by_text("1 organization: 1 stale.")).to_be_visible()
    ui.open("/#/organizations/theirs")
    expect(page.get_by_role("alert")).to_contain_text("There is nothing here that this token may see.")
    expect(page.get_by_role("button", name="Sync now")).to_be_hidden()
    expect(page.get_by_text("Their name")).to_have_count(0)
    refused.add(404)
    page.get_by_role("link", name="All organizations").click()
    expect(page.get_by_role("link", name="Mine")).to_be_visible()
    for nowhere in ("/#/nowhere", "/#/organizations/%E0%A4%A"):
        ui.open(nowhere)
        expect(page.get_by_role("heading", name="There is nothing at this address")).to_be_visible()


def test_many_organizations_are_paged_searched_and_stand_in_the_order_of_need(
    ui: DagsterUI, pipeline: PipelineUnderTest
) -> None:
    page = ui.page
    now = datetime.now(UTC)
    with pipeline.database.operator() as connection:
        for number in range(230):
            _save(connection, f"clinic-{number:03}", f"Clinic {number:03}")
        fresh = sa.text("insert into cliniko.scheduling (organization_id, succeeded_at) values (:id, :at)")
        connection.execute(fresh, [{"id": f"clinic-{number:03}", "at": now} for number in range(225)])
        long_ago = {"at": now - timedelta(days=3)}
        connection.execute(
            sa.text("update cliniko.scheduling set succeeded_at = :at where organization_id = 'clinic-221'"), long_ago
        )
        for statement in STATES_OF_MANY:
            connection.exec_driver_sql(statement)
    _log_in(ui, _token(pipeline.database, ["read"], None))
    # 225 were ever synced; of them two are old, and three stand otherwise. Two pages of the API.
    expect(page.get_by_text("230 organizations: 1 failing, 1 paused, 7 stale, 220 fresh, 1 disabled.")).to_be_visible()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(100)
    expect(rows.nth(0)).to_contain_text("Clinic 220")
    expect(rows.nth(0)).to_contain_text("✕ failing 3 syncs in a row")
    expect(rows.nth(1)).to_contain_text("‖ paused")
    expect(rows.nth(2)).to_contain_text("! stale")
    expect(page.get_by_role("row").filter(has_text="Clinic 221").get_by_role("time")).to_have_attribute(
        "title", re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$")
    )
    expect(page.get_by_role("row").filter(has_text="Clinic 221")).to_contain_text("3 days ago")
    page.get_by_role("button", name="Show 100 more").click()
    expect(rows).to_have_count(200)
    expect(rows.nth(100).get_by_role("link")).to_be_focused()
    page.get_by_role("button", name="Show 30 more").click()
    expect(rows).to_have_count(230)
    expect(rows.nth(229)).to_contain_text("disabled")

    page.get_by_label("Search by name or id").fill("CLINIC-21")
    expect(rows).to_have_count(10)
    expect(rows.filter(has_text="Clinic 217")).to_contain_text("! stale")
    expect(rows.filter(has_text="Clinic 216")).to_contain_text("✓ fresh 1 check not held")
    page.get_by_label("Search by name or id").fill("nothing of that name")
    expect(page.get_by_text("No organization is called that.")).to_be_visible()
    _assert_it_fits_a_phone(page, lambda: page.get_by_label("Search by name or id").fill(""))


def test_an_organization_is_shown_as_it_is_stored(
    ui: DagsterUI, pipeline: PipelineUnderTest, tmp_path: Path, pictures: Path
) -> None:
    page = ui.page
    demo = demo_organizations(datetime.now(UTC))
    _sync(pipeline, demo[0])
    _remember_a_past(pipeline.database, demo[0].id)
    for other in demo[1:]:
        _add(pipeline.database, other.id, other.name)
    assert demo[0].id == SURF
    _set_up_a_neighbourhood(pipeline.database, [other.id for other in demo[1:]])
    stored = pipeline.rows(SURF, "public.active_patients")
    page.set_viewport_size(DESK)
    _log_in(ui, _token(pipeline.database, ["read"], None))
    expect(page.get_by_role("row").filter(has_text="Surf Rehab")).to_contain_text("✓ fresh")
    expect(page.get_by_text("3 organizations: 1 failing, 1 stale, 1 fresh.")).to_be_visible()
    ui.picture("page-overview")
    page.get_by_role("link", name="Surf Rehab").click()

    tile = page.get_by_role("definition").first
    expect(tile).to_have_text(str(len(stored)))
    expect(page.get_by_text("Nothing to look at.")).to_be_visible()
    _assert_the_charts_tell_what_is_stored(page, pipeline, stored)
    _assert_the_list_is_sorted_paged_and_filtered(page, stored)
    _assert_the_file_holds_all(page, stored, tmp_path)
    _assert_people_without_a_contact_are_listed(page, pipeline)
    syncs = page.get_by_role("region", name="Last syncs")
    expect(syncs.get_by_role("row").nth(1)).to_contain_text("✓ succeeded")
    link = syncs.get_by_role("link", name="Dagster").first
    expect(link).to_have_attribute("href", re.compile(r"^http://127\.0\.0\.1:3000/runs/[0-9a-f-]{36}$"))
    expect(link).to_have_attribute("rel", "noopener noreferrer")

    page.evaluate("window.scrollTo(0, 0)")
    ui.picture("page-organization")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 23, 29)"
    page.emulate_media(color_scheme="light")
    _assert_it_fits_a_phone(page, page.reload)
    page.get_by_role("region", name="Active patients over time").get_by_role("img").wait_for()
    ui.picture("page-phone")


def test_a_chart_of_few_says_that_it_is_of_few_and_a_chart_of_none_draws_nothing(
    ui: DagsterUI, pipeline: PipelineUnderTest
) -> None:
    page = ui.page
    small = demo_organizations(datetime.now(UTC))[1]
    _sync(pipeline, small)
    _add(pipeline.database, "new", "New here")
    # As if the first pages held little of all: the service is asked for pages of five.
    page.route(
        "**/active-patients?*limit=1000*",
        lambda route: route.continue_(url=route.request.url.replace("limit=1000", "limit=5")),
    )
    _log_in(ui, _token(pipeline.database, ["read"], None))
    page.get_by_role("link", name=small.name).click()
    charts = page.get_by_role("region", name="Recent appointments")
    expect(charts).to_contain_text("Only the 10 active patients who came last")
    assert sum(_bars(charts).values()) == 10
    over_time = page.get_by_role("region", name="Active patients over time")
    expect(over_time.get_by_role("img", name=re.compile("one day so far"))).to_be_visible()
    assert over_time.locator("circle").count() == 1
    assert over_time.locator("line.line, line.gap").count() == 0
    ui.open("/#/organizations/new")
    expect(over_time).to_contain_text("No sync has ended yet")
    expect(charts).to_contain_text("No active patients")
    expect(page.get_by_role("region", name="Last syncs")).to_contain_text("It was not synced yet.")


def test_a_token_that_asks_too_much_waits_and_goes_on(
    ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]
) -> None:
    page = ui.page
    _add(pipeline.database, SURF, "Surf Rehab")
    _log_in(ui, _token(pipeline.database, ["read"], [SURF], requests_per_minute=4))
    page.get_by_role("link", name="Surf Rehab").click()
    notice = page.locator("#waiting")
    expect(notice).to_contain_text("This token has sent as many requests as it may in a minute")
    expect(notice).to_contain_text(re.compile(r"Trying again in (60|5\d) s\."))
    refused.add(429)
    with pipeline.database.operator() as connection:
        connection.exec_driver_sql("update cliniko.api_tokens set requests_per_minute = 1000")
    page.get_by_role("button", name="Try now").click()
    expect(notice).to_be_hidden()
    expect(page.get_by_role("region", name="People without a contact")).to_contain_text("Nobody.")


def test_what_the_token_or_dagster_refuses_is_told_and_a_token_that_is_revoked_leads_to_the_login(
    ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]
) -> None:
    page = ui.page
    _add(pipeline.database, SURF, "Surf Rehab")
    _log_in(ui, _token(pipeline.database, ["read"], [SURF]))
    page.get_by_role("link", name="Surf Rehab").click()
    page.get_by_role("button", name="Sync now").click()
    expect(page.get_by_role("alert")).to_contain_text("The token's scopes do not include this")
    expect(page.get_by_role("button", name="Sync now")).to_be_disabled()
    expect(page.get_by_role("button", name="Full sync")).to_be_disabled()
    expect(page.get_by_text("This token may look, and not request syncs")).to_be_visible()
    refused.add(403)

    page.get_by_role("button", name="Log out").click()
    keys: list[str] = []
    page.on(
        "request",
        lambda request: keys.append(request.headers.get("idempotency-key", "")) if request.method == "POST" else None,
    )
    _log_in(ui, _token(pipeline.database, ["read", "sync"], [SURF]))
    page.get_by_role("button", name="Sync now").click()
    expect(page.locator("#waiting")).to_contain_text("Dagster cannot be reached at present")
    expect(page.locator("#waiting")).to_contain_text(re.compile(r"Trying again in (10|\d) s\."))
    # Everything else is there all the same.
    expect(page.get_by_role("region", name="Last syncs")).to_contain_text("It was not synced yet.")
    with page.expect_request(lambda request: request.method == "POST"):
        page.get_by_role("button", name="Try now").click()
    assert len(keys) == 2
    assert keys[0] != ""
    assert len(set(keys)) == 1  # it can be sent again without a second sync
    refused.add(503)
    page.get_by_role("link", name="All organizations").click()
    expect(page.get_by_role("heading", name="Organizations")).to_be_visible()
    expect(page.locator("#waiting")).to_be_hidden()

    with pipeline.database.operator() as connection:
        connection.exec_driver_sql("update cliniko.api_tokens set revoked_at = now()")
    page.get_by_role("link", name="Surf Rehab").click()
    expect(page.get_by_role("alert")).to_contain_text("This token is not good, or no longer")
    assert page.evaluate("sessionStorage.length") == 0
    refused.add(401)


def test_a_sync_is_requested_followed_through_broken_connections_and_told_of_in_the_end(
    environ: dict[str, str], tmp_path: Path, pictures: Path
) -> None:
    browser_program()  # before anything is started for it
    del environ["API_DAGSTER_URL"]  # this is the UI's own address here
    port, api_port = free_port(), free_port()
    with opened_clinics(environ) as clinics:
        demo = demo_organizations(datetime.now(UTC))
        for each in demo:
            _open(clinics, each)
        clinics.sandbox.faults = Faults(latency_ms=200)
        with CommandLine(environ, tmp_path).start("ui", "--port", str(port), "--api-port", str(api_port)) as running:
            try:
                address = _address(running)
                assert address == f"http://127.0.0.1:{api_port}"
                with opened_ui(address, pictures) as ui:
                    running.wait_until(lambda: answers(f"http://127.0.0.1:{port}"), "the UI never answered", 120)
                    _assert_a_sync_is_followed(ui, clinics, port, running)
                    _assert_another_is_seen_from_its_middle_and_cancelled(ui, clinics, running)
                    assert _complaints(ui, {503}) == []
                _assert_dagster_does_not_go_on_alone(running, tmp_path)
            finally:
                if running.process.poll() is None:
                    running.interrupt(signal.SIGTERM)
                    running.wait(60)
        assert tracebacks(running.output) == []
    wait_until(lambda: not processes_of(tmp_path), f"they never ended: {processes_of(tmp_path)}")


def _assert_a_sync_is_followed(ui: DagsterUI, clinics: Clinics, port: int, running: Running) -> None:
    page = ui.page
    page.set_viewport_size(DESK)
    broken: list[str] = []

    def break_twice(route: Route) -> None:
        broken.append(route.request.headers["authorization"])
        if len(broken) == 1:
            route.abort("connectionreset")
        elif len(broken) == 2:
            route.fulfill(status=200, content_type="text/event-stream", body=": ping\n\nevent: sync\nda")
        else:
            route.continue_()

    page.route("**/v1/syncs/*/events", break_twice)
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url) if "active-patients-trend" in request.url else None)
    _log_in(ui, _token(clinics.database, ["read", "sync"], [SURF, "old-mill-physio"]))
    expect(page.get_by_text("2 organizations: 2 stale.")).to_be_visible()
    page.get_by_role("link", name="Surf Rehab").click()
    # Until Dagster has loaded the code, a sync cannot be launched, and the page tries again by itself.
    page.get_by_role("button", name="Sync now").click()
    panel = page.locator(".sync")
    expect(page.get_by_role("heading", name="sync is going on")).to_be_focused(timeout=60_000)
    expect(panel).to_contain_text(re.compile(r"Individual appointments: [\d,]+ of 6,\d\d\d records"), timeout=60_000)
    expect(panel.locator("[aria-live=polite]")).to_have_text("Individual appointments are read.")
    bar = panel.get_by_role("progressbar")
    assert 0 < bar.evaluate("bar => bar.position") < 1
    expect(panel).to_contain_text(re.compile(r"\d+ requests to Cliniko"))
    expect(page.get_by_role("button", name="Sync now")).to_be_disabled()
    expect(page.get_by_role("heading", name="The sync has succeeded")).to_be_focused(timeout=60_000)
    assert len(broken) == 3
    assert all(each.startswith("Bearer clinikopipeline_") for each in broken)
    # Everything was loaded again, once.
    expect(page.get_by_role("region", name="Active patients over time").get_by_role("img")).to_be_visible()
    assert len(loaded) == 2
    active = clinics.active(SURF)
    assert active > 100
    expect(panel).to_contain_text(f"{active} active patients")
    expect(page.get_by_role("definition").first).to_have_text(str(active))
    expect(page.get_by_role("region", name="Last syncs").get_by_role("row").nth(1)).to_contain_text("✓ succeeded")
    expect(panel.get_by_role("link", name="The run in Dagster")).to_have_attribute(
        "href", re.compile(rf"^http://127\.0\.0\.1:{port}/runs/[0-9a-f-]{{36}}$")
    )
    page.get_by_role("link", name="All organizations").click()
    expect(page.get_by_text("2 organizations: 1 stale, 1 fresh.")).to_be_visible()


def _assert_another_is_seen_from_its_middle_and_cancelled(ui: DagsterUI, clinics: Clinics, running: Running) -> None:
    page = ui.page
    page.get_by_role("link", name="Surf Rehab").click()
    dialog = page.get_by_role("dialog")
    page.get_by_role("button", name="Full sync").click()
    expect(dialog).to_contain_text("what Cliniko no longer has is marked as deleted")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Full sync")).to_be_focused()
    assert clinics.dagster_runs(SURF) == ["SUCCESS"]  # no is no
    page.get_by_role("button", name="Full sync").click()
    dialog.get_by_role("button", name="Yes, sync everything").click()
    expect(page.get_by_role("heading", name="sync is going on")).to_be_focused()
    # Whoever comes later sees it too.
    page.reload()
    expect(page.get_by_role("heading", name="A full sync is going on")).to_be_visible(timeout=30_000)
    expect(page.locator(".sync")).to_contain_text(re.compile(r"[\d,]+ of [\d,]+ records"), timeout=60_000)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="The sync was cancelled")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name="Sync now")).to_be_enabled()
    assert clinics.dagster_runs(SURF) == ["SUCCESS", "CANCELED"]


def _assert_dagster_does_not_go_on_alone(running: Running, folder: Path) -> None:
    (service,) = (number for number, command in processes_of(folder).items() if " api --host" in command)
    os.kill(service, signal.SIGKILL)
    assert running.wait(60) == 1
    assert "The API has ended by itself, or was killed" in running.output


def _assert_the_charts_tell_what_is_stored(page: Page, pipeline: PipelineUnderTest, stored: list[dict]) -> None:
    spread = page.get_by_role("region", name="Recent appointments")
    expect(spread).to_contain_text("All active patients")
    expected: dict[str, int] = {}
    for row in stored:
        kind = "10+" if row["recent_appointment_count"] >= 10 else str(row["recent_appointment_count"])
        expected[kind] = expected.get(kind, 0) + 1
    assert {label: count for label, count in _bars(spread).items() if count} == expected

    over_time = page.get_by_role("region", name="Active patients over time")
    days = _rows_of_the_table(over_time)
    # Two weeks with a sync each day, a gap before and behind the second, then today's.
    assert len(days) == over_time.locator("circle").count() == 15
    assert next(iter(days.values())) == len(stored)
    assert over_time.locator("line.line").count() + over_time.locator("line.gap").count() == 14
    assert over_time.locator("line.gap").count() == 2
    image = over_time.get_by_role("img")
    expect(image).to_have_attribute("aria-label", re.compile(rf"lowest 180, .*last {len(stored)}\.$"))
    assert image.evaluate("svg => svg.clientWidth === svg.parentElement.clientWidth")


def _assert_the_list_is_sorted_paged_and_filtered(page: Page, stored: list[dict]) -> None:
    patients = page.get_by_role("region", name="Active patients", exact=True)
    contacts = patients.get_by_role("rowheader")
    recent = patients.locator("td[data-title=Recent]")
    page.get_by_label("Sort by").select_option("Most recent appointments")
    expect(patients.locator("[aria-busy]")).to_have_count(0)
    counts = sorted((row["recent_appointment_count"] for row in stored), reverse=True)
    expect(recent).to_have_text([str(count) for count in counts[:25]])
    first = contacts.all_inner_texts()
    patients.get_by_role("button", name="Next page").press("Enter")
    expect(recent).to_have_text([str(count) for count in counts[25:50]])
    expect(patients.get_by_role("button", name="Next page")).to_be_focused()
    assert not set(first) & set(contacts.all_inner_texts())
    patients.get_by_role("button", name="Previous page").click()
    expect(contacts).to_have_text(first)
    patients.get_by_label("Show").select_option("Without one")
    without = [row for row in stored if row["upcoming_appointment_count"] == 0]
    assert 0 < len(without) < len(stored)
    expect(patients.locator("td[data-title=Upcoming]")).to_have_text(["0"] * min(len(without), 25))


def _assert_the_file_holds_all(page: Page, stored: list[dict], tmp_path: Path) -> None:
    patients = page.get_by_role("region", name="Active patients", exact=True)
    patients.get_by_label("Show").select_option("All")
    # In pages of a hundred: they become one file, with one head.
    page.route(
        "**/active-patients?*limit=1000*",
        lambda route: route.continue_(url=route.request.url.replace("limit=1000", "limit=100")),
    )
    with page.expect_download() as download:
        patients.get_by_role("button", name="Download CSV").click()
    page.unroute("**/active-patients?*limit=1000*")
    assert download.value.suggested_filename == f"active-patients-{SURF}.csv"
    download.value.save_as(tmp_path / "saved.csv")
    with (tmp_path / "saved.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(stored) > 200
    assert {row["contact_id"]: int(row["total_appointment_count"]) for row in rows} == {
        str(row["contact_id"]): row["total_appointment_count"] for row in stored
    }
    expect(patients.get_by_text("The file is made.")).to_be_visible()


def _assert_people_without_a_contact_are_listed(page: Page, pipeline: PipelineUnderTest) -> None:
    people = page.get_by_role("region", name="People without a contact")
    mapped = pipeline.contact_mapping(SURF)
    ambiguous = sorted((patient for patient, match in mapped.items() if match.status == "ambiguous"), key=int)
    people.get_by_label("Show").select_option("ambiguous")
    expect(people.get_by_role("rowheader")).to_have_text(ambiguous[:25])
    expect(people.locator("td[data-title^=Contacts]").first).to_have_text(re.compile(r"^\d+ contacts?$"))


def _assert_it_fits_a_phone(page: Page, show) -> None:
    page.set_viewport_size(PHONE)
    show()
    page.get_by_role("cell").first.wait_for()
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.evaluate(TOO_WIDE) is False
    # What the columns are called stands beside each value.
    assert page.get_by_role("cell").first.evaluate(CALLED_AS_ITS_COLUMN)
    assert page.locator("main").evaluate("main => main.getBoundingClientRect().right <= innerWidth")


def _bars(chart) -> dict[str, int]:
    return _rows_of_the_table(chart)


def _rows_of_the_table(chart) -> dict[str, int]:
    """The table that stands in for a chart."""
    chart.get_by_text("The same as a table").click()
    rows = chart.locator("details tbody tr").all()
    found = {row.locator("th").inner_text(): int(row.locator("td").inner_text().replace(",", "")) for row in rows}
    chart.get_by_text("The same as a table").click()
    return found


def _tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """By the key alone; where the focus is can be seen."""
    expect(page.locator("[aria-busy]")).to_have_count(0)
    passed: list[str] = []
    for _ in range(6):
        page.keyboard.press(key)
        text, outline = page.evaluate(FOCUSED)
        if text == name:
            assert outline == "solid"
            return
        passed.append(text)
    pytest.fail(f"{key} does not lead to {name!r} but to {passed}")


def _log_in(ui: DagsterUI, token: str) -> None:
    if ui.page.url == "about:blank":
        ui.open("/")
    ui.page.get_by_label("Token").fill(token)
    ui.page.get_by_role("button", name="Log in").click()
    expect(ui.page.get_by_role("button", name="Log out")).to_be_visible()


def _complaints(ui: DagsterUI, refused: set[int]) -> list[str]:
    """Without what the browser itself says of answers, and connections, that were to be expected."""
    expected = re.compile("|".join([rf": {each} http|status of {each} " for each in refused] or ["(?!)"]))
    return [each for each in ui.complaints if not expected.search(each) and "ERR_CONNECTION_RESET" not in each]


def _token(database: Database, scopes: list[str], ids: list[str] | None, requests_per_minute: int | None = None) -> str:
    with database.operator() as connection:
        return api_tokens.create(
            connection,
            "test",
            scopes=scopes,
            organizations=ids,
            expires_at=None,
            requests_per_minute=requests_per_minute,
        ).text


def _add(database: Database, organization_id: str, name: str) -> None:
    """An organization that nothing is known of."""
    with database.operator() as connection:
        _save(connection, organization_id, name)


def _save(connection: sa.Connection, organization_id: str, name: str) -> None:
    organizations.save(connection, organization_id, name, "no credentials", validated=False)


def _sync(pipeline: PipelineUnderTest, demo: DemoOrganization) -> None:
    with pipeline.sandbox([demo.account]) as sandbox:
        pipeline.add_organization(demo.id, sandbox, demo.account)
        with pipeline.database.operator() as connection:
            connection.execute(sa.text("update public.organizations set name = :name"), {"name": demo.name})
            connection.execute(sa.text(sql("save_contact")), demo.contacts)
        assert pipeline.sync(demo.id).success


def _open(clinics: Clinics, each: DemoOrganization) -> None:
    clinics.sandbox.add(each.account)
    credentials = ClinikoCredentials(each.account.api_key, None, clinics.sandbox.base_url(each.account))
    with clinics.database.operator() as connection:
        organizations.save(connection, each.id, each.name, clinics.vault.encrypt(credentials), validated=False)
        connection.execute(sa.text(sql("save_contact")), each.contacts)


def _set_up_a_neighbourhood(database: Database, ids: list[str]) -> None:
    """One organization that fails, one that was not synced for long."""
    statement = sa.text(
        "insert into cliniko.scheduling (organization_id, failures, succeeded_at)"
        " values (:id, :failures, now() - make_interval(hours => :hours))"
    )
    with database.operator() as connection:
        connection.execute(statement, {"id": ids[0], "failures": 3, "hours": 5})
        connection.execute(statement, {"id": ids[1], "failures": 0, "hours": 50})


def _remember_a_past(database: Database, organization_id: str) -> None:
    """Syncs of earlier days, with two gaps: before a week, and of the days before today."""
    today = datetime.now(UTC)
    days = [*range(24, 17, -1), *range(10, 3, -1)]
    with database.organization(organization_id) as connection:
        for number, ago in enumerate(days):
            at = today - timedelta(days=ago)
            assets = json.dumps({"active_patients": {"status": "succeeded", "rows": PAST[number]}})
            until, requests, is_full = at + timedelta(seconds=3 + number % 4), 4 + number, number % 7 == 0
            connection.exec_driver_sql(
                "insert into cliniko.sync_runs"
                " (organization_id, run_id, planned, status, started_at, finished_at, requests, is_full, assets)"
                " values (%s, %s, %s, 'succeeded', %s, %s, %s, %s, %s)",
                (organization_id, str(uuid4()), ALL_ASSETS, at, until, requests, is_full, assets),
            )


def _address(running: Running) -> str:
    running.wait_for("Page: ", 60)
    (address,) = re.findall(r"Page: (http://127\.0\.0\.1:\d+) \(log in with a token", running.output)
    running.wait_for("The API and its page", 60)
    return address
