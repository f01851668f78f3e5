"""Tests of the page of one organization, with charts, active patients, people without a contact and past syncs.

CLINIKO_TEST_PICTURES is a folder for the screenshots. `make screenshots` writes those of the documentation.
"""

import csv
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from playwright.sync_api import Locator, Page, expect

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.sandbox.accounts.demo import DemoOrganization, demo_organizations
from cliniko_pipeline_tests.support.browsers import DagsterUI
from cliniko_pipeline_tests.support.pages import ALL_ASSETS, DESK, SURF, assert_fits_a_phone, log_in
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.services import add_organization, token

pytestmark = pytest.mark.slow

PAST = (180, 184, 183, 188, 192, 191, 195, 202, 206, 204, 210, 213, 218, 217)
"""Active patients on past days."""
LONG_LISTS = "**/active-patients?*limit=1000*"


def test_organization_is_shown_as_it_is_stored(
    ui: DagsterUI, pipeline: PipelineUnderTest, tmp_path: Path, pictures: Path
) -> None:
    page = ui.page
    demo = demo_organizations(datetime.now(UTC))
    _sync(pipeline, demo[0])
    _add_past_syncs(pipeline.database, demo[0].id)
    for other in demo[1:]:
        add_organization(pipeline.database, other.id, other.name)
    assert demo[0].id == SURF
    _add_scheduling_states(pipeline.database, [other.id for other in demo[1:]])
    stored = pipeline.rows(SURF, "public.active_patients")
    page.set_viewport_size(DESK)
    log_in(ui, token(pipeline.database))
    expect(page.get_by_role("row").filter(has_text="Surf Rehab")).to_contain_text("✓ fresh")
    expect(page.get_by_text("3 organizations: 1 failing, 1 stale, 1 fresh.")).to_be_visible()
    ui.picture("page-overview")
    page.get_by_role("link", name="Surf Rehab").click()

    tile = page.get_by_role("definition").first
    expect(tile).to_have_text(str(len(stored)))
    expect(page.get_by_text("No problems.")).to_be_visible()
    _assert_charts_show_what_is_stored(page, pipeline, stored)
    _assert_list_is_sorted_paged_and_filtered(page, stored)
    _assert_csv_file_holds_all(page, stored, tmp_path)
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
    assert_fits_a_phone(page, page.reload)
    page.get_by_role("region", name="Active patients over time").get_by_role("img").wait_for()
    ui.picture("page-phone")


def _assert_charts_show_what_is_stored(page: Page, pipeline: PipelineUnderTest, stored: list[dict[str, Any]]) -> None:
    spread = page.get_by_role("region", name="Recent appointments")
    expect(spread).to_contain_text("All active patients")
    recent = [row["recent_appointment_count"] for row in stored]
    expected = Counter("10+" if count >= 10 else str(count) for count in recent)
    assert {label: count for label, count in _rows_of_the_table(spread).items() if count} == expected

    over_time = page.get_by_role("region", name="Active patients over time")
    days = _rows_of_the_table(over_time)
    # There are daily syncs in two weeks with a gap before and after the second week, and today's sync.
    assert len(days) == over_time.locator("circle").count() == 15
    assert next(iter(days.values())) == len(stored)
    assert over_time.locator("line.line").count() + over_time.locator("line.gap").count() == 14
    assert over_time.locator("line.gap").count() == 2
    image = over_time.get_by_role("img")
    expect(image).to_have_attribute("aria-label", re.compile(rf"lowest 180, .*last {len(stored)}\.$"))
    assert image.evaluate("svg => svg.clientWidth === svg.parentElement.clientWidth")


def _assert_list_is_sorted_paged_and_filtered(page: Page, stored: list[dict[str, Any]]) -> None:
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
    patients.get_by_label("Show").select_option("Without an upcoming appointment")
    without = [row for row in stored if row["upcoming_appointment_count"] == 0]
    assert 0 < len(without) < len(stored)
    expect(patients.locator("td[data-title=Upcoming]")).to_have_text(["0"] * min(len(without), 25))


def _assert_csv_file_holds_all(page: Page, stored: list[dict[str, Any]], tmp_path: Path) -> None:
    patients = page.get_by_role("region", name="Active patients", exact=True)
    patients.get_by_label("Show").select_option("All")
    # The file combines several pages, but has only one header.
    _limit_pages(page, 100)
    with page.expect_download() as download:
        patients.get_by_role("button", name="Download CSV").click()
    page.unroute(LONG_LISTS)
    assert download.value.suggested_filename == f"active-patients-{SURF}.csv"
    download.value.save_as(tmp_path / "saved.csv")
    with (tmp_path / "saved.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(stored) > 200
    assert {row["contact_id"]: int(row["total_appointment_count"]) for row in rows} == {
        str(row["contact_id"]): row["total_appointment_count"] for row in stored
    }
    expect(patients.get_by_text("The file is ready.")).to_be_visible()


def _assert_people_without_a_contact_are_listed(page: Page, pipeline: PipelineUnderTest) -> None:
    people = page.get_by_role("region", name="Patients without a contact")
    mapped = pipeline.contact_mapping(SURF)
    ambiguous = sorted((patient for patient, match in mapped.items() if match.status == "ambiguous"), key=int)
    people.get_by_label("Show").select_option("ambiguous")
    expect(people.get_by_role("rowheader")).to_have_text(ambiguous[:25])
    expect(people.locator("td[data-title='Possible contacts']").first).to_have_text(re.compile(r"^\d+ contacts?$"))


def test_charts_of_few_and_of_no_patients(ui: DagsterUI, pipeline: PipelineUnderTest) -> None:
    page = ui.page
    small = demo_organizations(datetime.now(UTC))[1]
    _sync(pipeline, small)
    add_organization(pipeline.database, "new", "New here")
    _limit_pages(page, 5)
    log_in(ui, token(pipeline.database))
    page.get_by_role("link", name=small.name).click()
    charts = page.get_by_role("region", name="Recent appointments")
    expect(charts).to_contain_text("The 10 active patients with the latest appointments")
    assert sum(_rows_of_the_table(charts).values()) == 10
    over_time = page.get_by_role("region", name="Active patients over time")
    expect(over_time.get_by_role("img", name=re.compile("one day so far"))).to_be_visible()
    assert over_time.locator("circle").count() == 1
    assert over_time.locator("line.line, line.gap").count() == 0
    ui.open("/#/organizations/new")
    expect(over_time).to_contain_text("No sync has finished yet")
    expect(charts).to_contain_text("There are no active patients")
    expect(page.get_by_role("region", name="Last syncs")).to_contain_text("Not synced yet.")


def _rows_of_the_table(chart: Locator) -> dict[str, int]:
    """Return the rows of the chart's table."""
    chart.get_by_text("Show as a table").click()
    rows = chart.locator("details tbody tr").all()
    found = {row.locator("th").inner_text(): int(row.locator("td").inner_text().replace(",", "")) for row in rows}
    chart.get_by_text("Show as a table").click()
    return found


def _limit_pages(page: Page, rows: int) -> None:
    """Make the page request fewer rows per page of the API."""
    page.route(LONG_LISTS, lambda route: route.continue_(url=route.request.url.replace("limit=1000", f"limit={rows}")))


def _sync(pipeline: PipelineUnderTest, demo: DemoOrganization) -> None:
    with pipeline.sandbox([demo.account]) as sandbox:
        pipeline.add_organization(demo.id, sandbox, demo.account)
        with pipeline.database.operator() as connection:
            connection.execute(sa.text("update public.organizations set name = :name"), {"name": demo.name})
            connection.execute(sa.text(sql("demo/save_contact")), demo.contacts)
        assert pipeline.sync(demo.id).success


def _add_scheduling_states(database: Database, ids: list[str]) -> None:
    """Store the state of a failing and of a stale organization."""
    statement = sa.text(
        "insert into cliniko.scheduling (organization_id, failures, verified_at)"
        " values (:id, :failures, now() - make_interval(hours => :hours))"
    )
    with database.operator() as connection:
        connection.execute(statement, {"id": ids[0], "failures": 3, "hours": 5})
        connection.execute(statement, {"id": ids[1], "failures": 0, "hours": 50})


def _add_past_syncs(database: Database, organization_id: str) -> None:
    """Store syncs of earlier days, with one gap before the last week and one before today."""
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
