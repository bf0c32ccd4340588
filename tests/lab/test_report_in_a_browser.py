"""The report in a real browser: tables can be sorted, dark mode is dark, and nothing is loaded."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from functional_nn.lab import equations, plots, report

ROWS = [
    ("layer10", report.Quantity("12 ms", 12e-3), "3", "1.2e-05", "a"),
    ("layer2", report.Quantity("3 us", 3e-6), "-1", "nan", "b"),
    ("layer1", report.Quantity("1 s", 1.0), "10", "0.5", "a"),
    ("Layer3", report.Quantity("40 us", 40e-6), "inf", "", "b"),
    ("layer20", report.Quantity("none", float("nan")), "-inf", "2", "a"),
]
HEADER = ("name", "run", "count", "relative", "kind")
NUMBERS = {
    "run": ([1, 3, 0, 2, 4], [2, 0, 3, 1, 4]),
    "count": ([4, 1, 0, 2, 3], [3, 2, 0, 1, 4]),
    "relative": ([0, 2, 4, 1, 3], [4, 2, 0, 1, 3]),
    "name": ([2, 1, 3, 0, 4], [4, 0, 3, 1, 2]),
    "kind": ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4]),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with one of everything, one table wider than a phone."""
    figure, axis = plt.subplots(figsize=(9, 2))
    axis.plot([0, 1], [0, 1], color=plots.TRAINING)
    wide = [[f"column {i}" for i in range(30)], [[f"{i} and more words" for i in range(30)]]]
    html = report.render(
        "A page <b>",
        "of one of everything " + "x" * 300,
        [("97 %", "accuracy"), ("x" * 60, "long")],
        [
            report.Panel("Figure", figure, "A line."),
            report.Table("Units", HEADER, ROWS),
            report.Table("Wide", *wide),
            report.Equations("Equations", [(name, equations.optimizer(name)) for name in equations.OPTIMIZERS]),
        ],
        {"command": "functional-nn train " + "word " * 40, "path": "/" + "x" * 150},
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(browser, page):
    browser.set_window_size(1280, 900)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get_log("browser")
    browser.get(page)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert [line for line in browser.get_log("browser") if line["level"] != "DEBUG"] == [], "the console is empty"


def header(browser, name):
    return browser.find_element("xpath", f"//th[normalize-space(.)='{name}']")


def order(browser):
    names = [row[0] for row in ROWS]
    cells = browser.find_elements("xpath", "//section[h2='Units']//tbody/tr/td[1]")
    return [names.index(cell.text) for cell in cells]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_click_sorts_and_another_one_reverses(opened, name):
    """Quantities by their value and not their digits, numbers as numbers, ties as they were; no number comes last."""
    up, down = NUMBERS[name]
    button = header(opened, name).find_element("tag name", "button")
    for expected, said in ((up, "ascending"), (down, "descending"), (up, "ascending")):
        button.click()
        assert order(opened) == expected and header(opened, name).get_attribute("aria-sort") == said
    if name == "kind":
        return
    header(opened, "kind").find_element("tag name", "button").click()
    stable = sorted(up, key=lambda row: ROWS[row][-1])
    assert order(opened) == stable and header(opened, name).get_attribute("aria-sort") is None


def test_the_keyboard_sorts(opened):
    opened.execute_script("arguments[0].focus()", header(opened, "count").find_element("tag name", "button"))
    for key, expected in (("\ue007", NUMBERS["count"][0]), (" ", NUMBERS["count"][1])):  # enter, space
        opened.switch_to.active_element.send_keys(key)
        assert order(opened) == expected
    opened.switch_to.active_element.send_keys("\ue004")  # tab: the next header's button
    assert opened.switch_to.active_element.text.strip().startswith("relative")


def brightness(browser, selector, color):
    text = browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, color
    )
    return np.mean([float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]])


@pytest.mark.parametrize("system", ["light", "dark"])
def test_light_and_dark(opened, system):
    """As the system says, and by the button the other way; ink and ground of page, card and figure change places."""
    media = {"features": [{"name": "prefers-color-scheme", "value": system}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened.refresh()
    button = opened.find_element("class name", "theme")
    for theme in (system, {"light": "dark", "dark": "light"}[system], system):
        ground = [brightness(opened, selector, "backgroundColor") for selector in ("body", ".card")]
        ink = [brightness(opened, selector, "color") for selector in ("h1", "td", "math")]
        ink += [brightness(opened, '.picture svg [id$="-text_1"] use', "fill")]
        ink += [brightness(opened, '.picture svg [id$="-patch_3"] path', "stroke")]
        dark, light = (ground, ink) if theme == "dark" else (ink, ground)
        assert max(dark) < 60 and min(light) > 200, theme
        assert button.text == ("Light" if theme == "dark" else "Dark")
        button.click()


def test_a_phone_scrolls_no_page_sideways(opened):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.execute_script("document.querySelector('details').open = true")
    measure = "const e = document.querySelector(arguments[0]); return [e.scrollWidth, e.clientWidth]"
    assert opened.execute_script(measure, "html") == [390, 390]
    assert opened.execute_script(measure, "body") == [390, 390]
    for within in ("section:nth-of-type(3) .scroll", ".picture"):
        inner, outer = opened.execute_script(measure, within)
        assert inner > outer, f"{within} scrolls in its card"


def test_equations_are_drawn(opened):
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('math')].map(e => [e.clientWidth || e.getBoundingClientRect().width, "
        "e.getBoundingClientRect().height])"
    )
    assert len(sizes) > 50 and np.min(sizes) > 10
    high = opened.execute_script("return document.querySelector('mfrac').getBoundingClientRect().height")
    assert high > 25, "a fraction is two lines high"


def test_the_page_loads_nothing_and_reads_the_same_without_its_script(opened):
    loaded = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert opened.execute_script(loaded) == []
    text = "return document.querySelector('main').textContent.replace(/\\s+/g, ' ')"
    with_script = opened.execute_script(text)
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    opened.refresh()
    assert not opened.find_elements("css selector", "button") and opened.execute_script(text) == with_script
