"""Helpers for tests of the service's page in a browser."""

import re
from collections.abc import Callable

from playwright.sync_api import Page, ViewportSize, expect

from cliniko_pipeline_tests.support.browsers import DagsterUI

SURF = "surf-rehab"
ALL_ASSETS = ["cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"]
DESK: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}
CALLED_AS_ITS_COLUMN = "cell => getComputedStyle(cell, '::before').content === JSON.stringify(cell.dataset.title)"
TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def log_in(ui: DagsterUI, token: str) -> None:
    if ui.page.url == "about:blank":
        ui.open("/")
    ui.page.get_by_label("Token").fill(token)
    ui.page.get_by_role("button", name="Log in").click()
    expect(ui.page.get_by_role("button", name="Log out")).to_be_visible()


def complaints(ui: DagsterUI, refused: set[int]) -> list[str]:
    """Return the complaints, except those about expected statuses and about connections that a test broke."""
    expected = re.compile("|".join([rf": {status} http|status of {status} " for status in refused] or ["(?!)"]))
    return [
        complaint
        for complaint in ui.complaints
        if not expected.search(complaint) and "ERR_CONNECTION_RESET" not in complaint
    ]


def assert_fits_a_phone(page: Page, show: Callable[[], object]) -> None:
    """Assert that, on a phone, nothing is wider than the window and cells show the title of their column."""
    page.set_viewport_size(PHONE)
    show()
    page.get_by_role("cell").first.wait_for()
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.evaluate(TOO_WIDE) is False
    assert page.get_by_role("cell").first.evaluate(CALLED_AS_ITS_COLUMN)
    assert page.locator("main").evaluate("main => main.getBoundingClientRect().right <= innerWidth")
