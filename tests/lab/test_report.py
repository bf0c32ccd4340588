"""The page is one file that loads nothing, says in words what it draws, and takes hostile text for text."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from functional_nn.lab import equations, plots, report
from functional_nn.training import History

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a & b",
    "' onload='x",
    "{{ 7*7 }}",
    "</svg>",
    "</script>",
    "</style><b>",
    "<math><mtext></mtext></math>",
]
TEMPLATE = (Path(report.__file__).parent / "templates" / "report.html").read_text(encoding="utf-8")
_VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What the page holds: every element, the text of each, and whether what is opened is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts, self.scripts = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style" and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag):
        return [text for name, text in self.texts if name == tag]


def check_self_contained(html):
    """Nothing is loaded, the library's own script alone runs, every figure has words, no identifier is used twice and
    each use has one."""
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"iframe", "object", "embed", "base", "form"})
    assert page.all("script") == [{}] and page.scripts == re.findall(r"<script>(.*?)</script>", TEMPLATE, re.DOTALL)
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name} would run"
            if name in ("href", "xlink:href", "src", "action") and tag != "link":
                assert (value.startswith("#") and value[1:] in ids) or value.startswith("data:image/png;base64,")
            for use in re.findall(r"url\(([^)]*)\)", value or ""):
                assert use.startswith("#") and use[1:] in ids
    assert "@import" not in html and not re.search(r"<style[^>]*>[^<]*url\((?!#)", html)
    for attributes in page.all("svg"):
        assert attributes["role"] == "img" and attributes["aria-label"]
    assert all(attributes["alt"] for attributes in page.all("img"))
    return page


def figure(text="x"):
    made, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, 1], [0, 1])
    axis.set_title(text)
    return made


def page_of(title="t", summary="s", facts=(), parts=(), config=None):
    return report.render(title, summary, list(facts), list(parts), config or {})


def test_a_page_shows_everything_it_was_given():
    panel = report.Panel("Curves", figure(), "Loss falls.", "A caption.")
    table = report.Table("Costs", ("", "run"), [("manual", "3 us"), ("automatic", "4 us")], "Timed.")
    html = page_of("A title", "A summary.", [("97 %", "accuracy")], [panel, table], {"a": {"b": 1}, "c": [1, 2]})
    page = check_self_contained(html)
    assert page.within("title") == page.within("h1") == ["A title"] and page.within("strong") == ["97 %"]
    assert page.within("h2") == ["Curves", "Costs"] and page.within("figcaption") == ["A caption."]
    assert page.within("th") == ["run"]
    assert page.within("td") == ["manual", "3 us", "automatic", "4 us", "a.b", "1", "c", "[1, 2]"]
    assert [attributes["aria-label"] for attributes in page.all("svg")] == ["Loss falls."]
    assert html.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
    assert page.all("meta")[0] == {"charset": "utf-8"}


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_in_texts_is_escaped(text):
    """Wherever it stands, it is read back as it was given, and makes no element of its own."""

    def parts(t):
        return [
            report.Panel(f"p {t}", figure(t), t, t),
            report.Table(t, (t, "b"), [(t, "ok"), (report.Quantity(t, t), "ok")], t),
            report.Equations(t, [(t, equations.optimizer("gd")), ("a formula", t)], t),
        ]

    def build(t):
        return page_of(t, t, [(t, t)], parts(t), {t: t})

    hostile, tame = check_self_contained(build(text)), check_self_contained(build("tame"))

    def names(page):
        return [tag for tag, _ in page.elements if tag not in ("g", "use", "defs", "path")]

    assert names(hostile) == names(tame)
    for tag in ("title", "h1", "strong", "figcaption", "th", "dt", "dd", "td"):
        assert page_text(hostile, tag, text)
    assert hostile.all("svg")[0]["aria-label"] == text
    assert [cell["data-value"] for cell in hostile.all("td") if "data-value" in cell] == [text]


def page_text(page, tag, text):
    return text in page.within(tag)


def test_figures_that_share_a_page_share_no_identifier():
    parts = [report.Panel(title, figure("same"), "words", "") for title in ("One", "Two", "Three, (a)")]
    page = check_self_contained(page_of(parts=parts))
    assert len(page.all("svg")) == 3 and len(page.all("use")) > 3


def history(rng):
    """Of four epochs."""
    columns = rng.uniform(1, 2, (5, 4))
    return History(np.arange(1, 5), *columns)


def drawn(name):
    """A figure of every kind that the library makes, and one that somebody else made."""
    rng = np.random.default_rng(0)
    losses, rates = np.array([0.1, 0.2, 0.5, 1.0, np.nan]), np.array([0.1, 0.1, 0.01, 0.01, 1.0])
    own, axis = plt.subplots()
    axis.plot([0, 1], [0, 1], "k-", label="black")
    axis.text(0.5, 0.5, "white", color="white", bbox={"facecolor": "w"})
    axis.legend()
    made = {
        "agreement": lambda: plots.gradient_agreement([0, 1], {"a": [1e-7, 0.0]}, [1e-5, 1e-5], 6e-8),
        "parallel": lambda: plots.parallel_coordinates({"learning_rate": rates}, losses, np.isnan(losses)),
        "rates": lambda: plots.rate_curves(plots.rate_quartiles(rates, losses, np.isnan(losses))),
        "bands": lambda: plots.quantile_bands([("all", rng.uniform(0.1, 1, (3, 5)))]),
        "predictions": lambda: plots.predictions(rng.normal(size=(9, 2)), rng.normal(size=(9, 2)), ["a", "b"]),
        "tracked": lambda: plots.tracked(np.arange(1, 4), {"scale": {"layer1": np.ones(3), "layer2": np.arange(3.0)}}),
        "performance": lambda: plots.performance(history(rng), rng.uniform(1, 2, 4)),
        "state": lambda: plots.training_state(history(rng), {"mu": rng.uniform(1, 2, 4)}),
        "regression": lambda: plots.regression({"training": rng.normal(size=(2, 9, 1)), "test": np.ones((2, 3, 1))}),
        "errors": lambda: plots.error_histogram({"training": rng.normal(size=(2, 9, 1))}),
        "roc": lambda: plots.roc(np.arange(9) % 3, rng.normal(size=(9, 3)), ("a", "b", "c")),
        "somebody's": lambda: own,
    }
    return made[name]()


FIGURES = "agreement parallel rates bands predictions tracked performance state regression errors roc".split()


@pytest.mark.parametrize("name", [*FIGURES, "somebody's"])
def test_figures_are_as_dark_as_the_page(name):
    """No ink is black and no ground white: they are the page's own; colours are seen on either."""
    html = report._picture(report.Panel(name, drawn(name), "words"))
    plt.close("all")
    assert 'fill="currentColor"' in html[: html.index(">")] and "stroke: currentColor" in html
    colors = set(re.findall(r"(?:fill|stroke|color): ?(#\w+|black|white)", html))
    for color in colors:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in plt.matplotlib.colors.to_rgb(color)
        ]
        luminance = np.dot((0.2126, 0.7152, 0.0722), linear)  # WCAG 2.2, relative luminance
        on_white, on_dark = 1.05 / (luminance + 0.05), (luminance + 0.05) / (0.0150 + 0.05)
        assert min(on_white, on_dark) > (1.5 if color == "#cccccc" else 2), f"{color} is not seen on both"


def test_text_upon_an_image_keeps_its_colour():
    """What is readable on the image's own colours must not follow the page."""
    html = report._picture(report.Panel("One", plots.confusion(np.eye(2, dtype=int), ("a", "b")), "words"))
    assert html.count("fill: #000001") == 2 and "stroke: currentColor" in html


def test_a_large_figure_is_a_picture_of_its_pixels(monkeypatch):
    monkeypatch.setattr(report, "_LARGEST", 100)
    page = check_self_contained(page_of(parts=[report.Panel("One", figure(), 'so "many"', "")]))
    (image,) = page.all("img")
    assert image["alt"] == 'so "many"' and not page.all("svg")
    assert base64.b64decode(image["src"].partition(",")[2])[:4] == b"\x89PNG"


def test_quantities_carry_their_value():
    rows = [(report.Quantity("12 ms", 0.012), "3 us"), (report.Quantity("all", np.inf), report.Quantity("-", np.nan))]
    page = Page(page_of(parts=[report.Table("t", ("a", "b"), rows)]))
    assert page.all("td")[:4] == [{"data-value": "0.012"}, {}, {"data-value": "inf"}, {"data-value": "nan"}]
    assert page.within("td")[:4] == ["12 ms", "3 us", "all", "-"]


def test_equations_are_next_to_their_words():
    rows = [("The rule", equations.optimizer("adam")), ("The loss", equations.loss("hinge(mean)"))]
    html = page_of(parts=[report.Equations("What is computed", rows, "Letters.")])
    page = check_self_contained(html)
    assert page.within("dt") == ["The rule", "The loss"] and len(page.all("math")) == 4 + 3
    assert html.count(equations.optimizer("adam")) == 1 and page.within("p") == ["s", "Letters."]


def test_a_page_closes_its_figures():
    before = plt.get_fignums()
    page_of(parts=[report.Panel("One", figure(), "words", "")])
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("cell", "attributes"),
    [
        ("ok", {"class": "good"}),
        ("agree", {"class": "good"}),
        ("DIFFERS", {"class": "bad"}),
        ("differ", {"class": "bad"}),
        ("undefined", {"class": "bad"}),
        ("okay", {}),
    ],
)
def test_verdicts_are_coloured(cell, attributes):
    page = Page(page_of(parts=[report.Table("t", ("a",), [(cell,)])]))
    assert page.all("td")[0] == attributes and page.within("td")[0] == cell


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ({"a": None, "b": ""}, ["a", "None", "b"]),
        ({"a": {}, "b": {"c": {"d": 1}}}, ["a", "{}", "b.c.d", "1"]),
        ({"a": "x" * 160}, ["a", "x" * 160]),
        ({"a": "x" * 161}, ["a", "x" * 157 + "..."]),
        ({1: {2: 3}}, ["1.2", "3"]),
    ],
)
def test_the_configuration_is_shown_flat(config, rows):
    assert Page(page_of(config=config)).within("td") == rows


def test_equal_input_gives_an_equal_page():
    assert len({page_of(parts=[report.Panel("One", figure(), "words", "")]) for _ in range(2)}) == 1


def test_a_page_with_only_a_title():
    page = check_self_contained(page_of())
    assert page.within("h1") == ["t"] and not page.all("section") and not page.all("strong")
