"""Tests of the list of organizations: order, search, paging, hostile names, and addresses of other organizations."""

import re
from datetime import UTC, datetime
from uuid import uuid4

import pytest
import sqlalchemy as sa
from playwright.sync_api import expect

from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline_tests.support.browsers import DagsterUI
from cliniko_pipeline_tests.support.pages import ALL_ASSETS, assert_fits_a_phone, log_in
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.services import add_organization, token

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>\u202e&lt;b&gt;'
STATES_OF_MANY = (
    "update cliniko.scheduling set verified_at = now() - interval '3 days' where organization_id = 'clinic-221'",
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
    ('clinic-217', 'active_patients', 'is_fresh', false, 'Old.'),
    ('clinic-216', 'contact_mapping', 'no_contact_is_used_twice', false, 'Twice.')
    """,
)


def test_hostile_names_are_shown_as_text(ui: DagsterUI, pipeline: PipelineUnderTest) -> None:
    page = ui.page
    hostile_id = 'x"><svg onload=alert(1)> é%2e'
    add_organization(pipeline.database, hostile_id, HOSTILE)
    with pipeline.database.organization(hostile_id) as connection:
        connection.exec_driver_sql(
            "insert into cliniko.sync_runs (organization_id, run_id, planned, status, finished_at, error, assets)"
            " values (%s, %s, %s, 'failed', now(), %s, '{}')",
            (hostile_id, str(uuid4()), ALL_ASSETS, f"It broke: {HOSTILE}"),
        )
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    log_in(ui, token(pipeline.database))
    link = page.get_by_role("link", name=HOSTILE)
    expect(link).to_have_text(HOSTILE)
    expect(page.get_by_text(hostile_id, exact=True)).to_be_visible()
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    expect(page.get_by_role("listitem")).to_contain_text(
        ["There was no successful sync yet", f"The last sync failed. It broke: {HOSTILE}"]
    )
    expect(page.get_by_role("cell").filter(has_text=HOSTILE)).to_be_visible()
    assert page.title() == f"{' '.join(HOSTILE.split())} · Cliniko pipeline"
    assert page.locator("main :is(img, script, svg[onload], b, iframe)").count() == 0
    assert asked == []


def test_address_of_another_organization_shows_a_problem(
    ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]
) -> None:
    page = ui.page
    add_organization(pipeline.database, "mine", "Mine")
    add_organization(pipeline.database, "theirs", "Their name")
    log_in(ui, token(pipeline.database, organizations=["mine"]))
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


def test_many_organizations_are_paged_sorted_and_searched(ui: DagsterUI, pipeline: PipelineUnderTest) -> None:
    page = ui.page
    now = datetime.now(UTC)
    with pipeline.database.operator() as connection:
        for number in range(230):
            organizations.save(connection, f"clinic-{number:03}", f"Clinic {number:03}", "none", validated=False)
        fresh = sa.text("insert into cliniko.scheduling (organization_id, verified_at) values (:id, :at)")
        connection.execute(fresh, [{"id": f"clinic-{number:03}", "at": now} for number in range(225)])
        for statement in STATES_OF_MANY:
            connection.exec_driver_sql(statement)
    log_in(ui, token(pipeline.database))
    # 225 organizations were synced, of which two have old data and three another state. The API returns two pages.
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
    expect(rows.filter(has_text="Clinic 216")).to_contain_text("✓ fresh 1 failed check")
    page.get_by_label("Search by name or id").fill("nothing of that name")
    expect(page.get_by_text("No organization has this name or id.")).to_be_visible()
    assert_fits_a_phone(page, lambda: page.get_by_label("Search by name or id").fill(""))
