"""The page is one file that loads nothing, says in words what it draws, and takes hostile text for text."""

import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest

from functional_nn.lab import report

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b", "' onload='x", "{{ 7*7 }}", "</svg>"]
_VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What the page holds: every element, the text of each, and whether what is opened is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
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
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag):
        return [text for name, text in self.texts if name == tag]


def check_self_contained(html):
    """Nothing is loaded, nothing runs, every figure has words, no identifier is used twice and each use has one."""
    page = Page(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name} would run"
            if name in ("href", "xlink:href", "src", "action"):
                assert (value.startswith("#") and value[1:] in ids) or value.startswith("data:image/png;base64,")
            for use in re.findall(r"url\(([^)]*)\)", value or ""):
                assert use.startswith("#") and use[1:] in ids
    assert "@import" not in html and not re.search(r"<style[^>]*>[^<]*url\((?!#)", html)
    figures = page.all("svg")
    for attributes in figures:
        assert attributes["role"] == "img" and attributes["aria-label"]
    return page


def figure(text="x"):
    made, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, 1], [0, 1])
    axis.set_title(text)
    return made


def page_of(title="t", summary="s", facts=(), parts=(), config=None):
    return report.render(title, summary, list(facts), list(parts), config or {})


def test_a_page_says_all_it_was_given():
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
def test_hostile_text_stays_text(text):
    """Wherever it stands, it is read back as it was given, and makes no element of its own."""
    parts = lambda t: [  # noqa: E731
        report.Panel(f"p {t}", figure(t), t, t),
        report.Table(t, (t, "b"), [(t, "ok")], t),
    ]
    build = lambda t: page_of(t, t, [(t, t)], parts(t), {t: t})  # noqa: E731
    hostile, tame = check_self_contained(build(text)), check_self_contained(build("tame"))
    names = lambda page: [tag for tag, _ in page.elements if tag not in ("g", "use", "defs", "path")]  # noqa: E731
    assert names(hostile) == names(tame)
    for tag in ("title", "h1", "strong", "figcaption", "th"):
        assert page_text(hostile, tag, text)
    assert page_text(hostile, "td", text) and hostile.all("svg")[0]["aria-label"] == text


def page_text(page, tag, text):
    return text in page.within(tag)


def test_figures_that_share_a_page_share_no_identifier():
    parts = [report.Panel(title, figure("same"), "words", "") for title in ("One", "Two", "Three, (a)")]
    page = check_self_contained(page_of(parts=parts))
    assert len(page.all("svg")) == 3 and len(page.all("use")) > 3


def test_a_page_closes_its_figures():
    before = plt.get_fignums()
    page_of(parts=[report.Panel("One", figure(), "words", "")])
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("cell", "attributes"), [("ok", {"class": "ok"}), ("DIFFERS", {"class": "DIFFERS"}), ("okay", {})]
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
    build = lambda: page_of(parts=[report.Panel("One", figure(), "words", "")])  # noqa: E731
    with plt.rc_context({"svg.hashsalt": "fixed"}):
        assert build() == build()
