"""Tests of the page's login and log-out, and of its messages when the service refuses a request."""

import re

import pytest
from playwright.sync_api import Page, expect

from cliniko_pipeline_tests.support.browsers import DagsterUI
from cliniko_pipeline_tests.support.pages import SURF, log_in
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest
from cliniko_pipeline_tests.support.services import token

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("surf_rehab")]

FOCUSED = "[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]"


def test_keyboard_alone_leads_from_login_to_logout(
    ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]
) -> None:
    page = ui.page
    ui.open(f"/#/organizations/{SURF}")
    expect(page).to_have_title("Log in · Cliniko pipeline")
    expect(page.get_by_label("Token")).to_be_focused()
    expect(page.get_by_label("Token")).to_have_attribute("type", "password")
    page.keyboard.type("clinikopipeline_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This token is invalid")
    refused.add(401)
    # The wrong token is selected, so typing replaces it.
    page.keyboard.type(token(pipeline.database, organizations=[SURF]))
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
    page.reload()  # the tab keeps the token
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


def test_request_limit_shows_a_wait_and_a_retry(ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]) -> None:
    page = ui.page
    log_in(ui, token(pipeline.database, organizations=[SURF], requests_per_minute=4))
    page.get_by_role("link", name="Surf Rehab").click()
    notice = page.locator("#waiting")
    expect(notice).to_contain_text("This token has reached its limit of requests per minute")
    expect(notice).to_contain_text(re.compile(r"Retrying in (60|5\d) s\."))
    refused.add(429)
    with pipeline.database.operator() as connection:
        connection.exec_driver_sql("update cliniko.api_tokens set requests_per_minute = 1000")
    page.get_by_role("button", name="Try now").click()
    expect(notice).to_be_hidden()
    expect(page.get_by_role("region", name="Patients without a contact")).to_contain_text("None.")


def test_refused_sync_and_revoked_token_are_shown(
    ui: DagsterUI, pipeline: PipelineUnderTest, refused: set[int]
) -> None:
    page = ui.page
    log_in(ui, token(pipeline.database, organizations=[SURF]))
    page.get_by_role("link", name="Surf Rehab").click()
    page.get_by_role("button", name="Sync now").click()
    expect(page.get_by_role("alert")).to_contain_text("The token's scopes do not include this")
    expect(page.get_by_role("button", name="Sync now")).to_be_disabled()
    expect(page.get_by_role("button", name="Full sync")).to_be_disabled()
    expect(page.get_by_text("This token may not request syncs")).to_be_visible()
    refused.add(403)

    page.get_by_role("button", name="Log out").click()
    keys: list[str] = []
    page.on(
        "request",
        lambda request: keys.append(request.headers.get("idempotency-key", "")) if request.method == "POST" else None,
    )
    log_in(ui, token(pipeline.database, "read", "sync", organizations=[SURF]))
    page.get_by_role("button", name="Sync now").click()
    expect(page.locator("#waiting")).to_contain_text("Dagster cannot be reached")
    expect(page.locator("#waiting")).to_contain_text(re.compile(r"Retrying in (10|\d) s\."))
    # The other sections are still shown.
    expect(page.get_by_role("region", name="Last syncs")).to_contain_text("Not synced yet.")
    with page.expect_request(lambda request: request.method == "POST"):
        page.get_by_role("button", name="Try now").click()
    assert len(keys) == 2
    assert keys[0] != ""
    assert len(set(keys)) == 1  # so that the retry does not start another sync
    refused.add(503)
    page.get_by_role("link", name="All organizations").click()
    expect(page.get_by_role("heading", name="Organizations")).to_be_visible()
    expect(page.locator("#waiting")).to_be_hidden()
    expect(page.get_by_role("link", name="Surf Rehab")).to_be_visible()

    with pipeline.database.operator() as connection:
        connection.exec_driver_sql("update cliniko.api_tokens set revoked_at = now()")
    page.get_by_role("link", name="Surf Rehab").click()
    expect(page.get_by_role("alert")).to_contain_text("This token is invalid, expired or revoked")
    assert page.evaluate("sessionStorage.length") == 0
    refused.add(401)


def _tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """Press the key until the element has the focus. Assert that its outline is visible."""
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
