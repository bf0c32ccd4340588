"""What tests of pages share: a real browser, headless."""

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A selenium WebDriver of an installed Chromium or Chrome; where there is none, its tests are skipped."""
    pytest.importorskip("selenium")
    from demonstration_pictures import chromium

    opened = chromium(tmp_path_factory.mktemp("chromium"))
    if opened is None:
        pytest.skip("needs Chromium and its chromedriver, installed")
    yield opened
    opened.quit()
