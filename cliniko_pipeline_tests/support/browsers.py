"""A Chromium that shows the Dagster UI or the service's page.

Tests find elements by their visible texts and roles. The installed browser is used unless CLINIKO_TEST_BROWSER is the
path of another program, or `none` to skip these tests. The browser is headless unless CLINIKO_TEST_BROWSER_VISIBLE=1.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, ViewportSize, expect, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WINDOW: ViewportSize = {"width": 1400, "height": 900}
SECONDS = 60
"""Time limit for an element to appear."""

ARGUMENTS = (
    "--no-sandbox",  # Chromium needs this option if it runs as root
    "--disable-dev-shm-usage",  # containers have little shared memory
    "--disable-gpu",
    "--no-proxy-server",
    # The UI must work without internet access.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

DRAWN = """canvas => {
    const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const columns = new Set();
    for (let i = 0; i < data.length; i += 4) {
        const [red, green, blue, alpha] = data.slice(i, i + 4);
        if (alpha > 128 && blue > 150 && blue > red + 60 && blue > green + 60) columns.add((i / 4) % width);
    }
    return columns.size / width;
}"""
"""Returns the share of the plot's pixel columns that the blue line covers."""


def browser_program() -> str:
    """Return the Chromium to use. Fail the test without one, or skip the test if CLINIKO_TEST_BROWSER=none."""
    wanted = os.environ.get("CLINIKO_TEST_BROWSER", "")
    if wanted == "none":
        pytest.skip("CLINIKO_TEST_BROWSER=none: no browser wanted")
    found = next(filter(None, map(shutil.which, (wanted,) if wanted else PROGRAMS)), None)
    if found is None:
        pytest.fail(
            f"No browser: {wanted or ', '.join(PROGRAMS)} not found. Install Debian's package chromium (as root,"
            " `make browser` does), or name a Chromium with CLINIKO_TEST_BROWSER=/path, or `none` to go without.",
            pytrace=False,
        )
    return found


class DagsterUI:
    """A browser tab. `complaints` has console errors, failed requests and requests to other hosts."""

    def __init__(self, page: Page, address: str, pictures: Path) -> None:
        self.page = page
        self.address = address
        self.pictures = pictures
        self.complaints: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: {error}"))
        page.on("request", self._note_request)
        page.on("response", lambda response: self._note(response.status >= 400, f"{response.status} {response.url}"))

    def open(self, path: str) -> None:
        self.page.goto(self.address + path, wait_until="domcontentloaded")

    def launch(self, job: str, *, partition: str | None) -> str:
        """Launch a run of the partition, or a backfill of all partitions (None). Return the path of its page."""
        self.open(f"/locations/cliniko_pipeline/jobs/{job}")
        self.page.get_by_role("button", name="Materialize all").click()
        dialog = self.page.get_by_role("dialog").filter(has_text="Launch runs to materialize")
        if partition is None:
            dialog.get_by_role("button", name="All", exact=True).click()
            button = dialog.get_by_role("button", name="Launch backfill")
        else:
            dialog.get_by_text("Select a partition or create one").click()
            self.page.get_by_role("menuitem", name=partition).click()
            self.page.keyboard.press("Escape")
            button = dialog.get_by_role("button", name="Launch 1 run")
        expect(button).to_be_enabled(timeout=SECONDS * 1000)
        if partition is None:
            self.picture("launch-all")
        button.click()
        link = self.page.get_by_role("region", name="Notifications").get_by_role("link", name="View")
        return link.get_attribute("href") or ""

    def see(self, shown: Locator, *, seconds: float = SECONDS) -> None:
        expect(shown).to_be_visible(timeout=seconds * 1000)

    def see_text(self, text: str, *, seconds: float = SECONDS) -> None:
        self.see(self.page.get_by_text(text, exact=True).first, seconds=seconds)

    def plotted(self, name: str) -> float:
        """Return the share of the plot's width that its line covers, once the animation has ended."""
        heading = self.page.get_by_text(name, exact=True)
        canvas = heading.locator("xpath=following::canvas[1]")
        self.see(canvas)
        shares = [0.0]
        # The line is animated, so it is complete when two samples are equal.
        for _ in range(SECONDS * 2):
            shares.append(canvas.evaluate(DRAWN))
            if shares[-1] == shares[-2] > 0:
                break
            self.page.wait_for_timeout(500)
        return shares[-1]

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png", animations="disabled")

    def _note_console(self, message: ConsoleMessage) -> None:
        # Warnings are ignored, because Dagster's GraphQL client logs deprecations.
        self._note(message.type == "error", message.text)

    def _note_request(self, request: Request) -> None:
        elsewhere = urlsplit(request.url)
        is_foreign = elsewhere.scheme not in {"data", "blob"} and not request.url.startswith(self.address + "/")
        self._note(is_foreign, f"requests {elsewhere.scheme}://{elsewhere.netloc}")

    def _note(self, is_complaint: bool, text: str) -> None:
        if is_complaint:
            self.complaints.append(f"{self.page.url}: {text}")


def answers(address: str) -> bool:
    """Return whether the webserver responds."""
    try:
        # Certificates are not verified, because loading them takes longer than the request.
        return httpx.get(f"{address}/server_info", trust_env=False, verify=False, timeout=10).is_success
    except httpx.HTTPError:
        return False


def pictures_folder(tmp_path: Path) -> Path:
    """Return the folder in CLINIKO_TEST_PICTURES (`make screenshots`), or a temporary folder."""
    folder = Path(os.environ.get("CLINIKO_TEST_PICTURES") or tmp_path / "pictures").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def opened_ui(address: str, pictures: Path) -> Iterator[DagsterUI]:
    """Open a tab on the address. If the test fails, its error includes the text of the page."""
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as driver:
        is_headless = os.environ.get("CLINIKO_TEST_BROWSER_VISIBLE") != "1"
        browser = driver.chromium.launch(executable_path=browser_program(), args=list(ARGUMENTS), headless=is_headless)
        page = browser.new_page(viewport=WINDOW, locale="en-US", timezone_id="UTC")
        try:
            yield DagsterUI(page, address, pictures)
        except Exception as error:
            error.add_note(f"{page.url} showed:\n{page.locator('body').inner_text()[:5000]}")
            raise
        finally:
            browser.close()
