"""A real browser, headless, for the tests of pages."""

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A selenium WebDriver of an installed Chromium or Chrome; without one, its tests are skipped."""
    pytest.importorskip("selenium")
    from demonstration_pictures import chromium

    opened = chromium(tmp_path_factory.mktemp("chromium"))
    if opened is None:
        pytest.skip("needs Chromium and its chromedriver, installed")
    yield opened
    opened.quit()
