"""What tests of pages share: a real browser, headless."""

import shutil

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A selenium WebDriver of an installed Chromium or Chrome; where there is none, its tests are skipped."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not (found and driver):
        pytest.skip("needs Chromium and its chromedriver, installed")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for word in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield opened
    opened.quit()
