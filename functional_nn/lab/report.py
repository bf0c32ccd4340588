"""One self-contained page about a run, light and dark: nothing is loaded; figures have alternative text.

The page is `templates/report.html`, in whose only script tables are sorted and the page is made light or dark at will.
"""

import base64
import functools
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import matplotlib.pyplot as plt
from markupsafe import Markup
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

_LARGEST = 1_500_000  # characters of an SVG; beyond, a figure of many marks is a picture of its pixels
_VERDICTS = {"ok": "good", "agree": "good", "DIFFERS": "bad", "differ": "bad", "undefined": "bad"}


class Panel(NamedTuple):
    """A figure with what it shows, in words, and a caption below it.

    Black in it is drawn in the page's ink and white in the card's colour, so that it is as dark as the page; except
    for text upon an image, whose colours are its own.
    """

    title: str
    figure: Figure
    alternative: str
    caption: str = ""


class Quantity(NamedTuple):
    """A cell that is sorted by its value, such as "12 ms" by 0.012."""

    text: str
    value: float


class Table(NamedTuple):
    """Rows under a header; a cell is text, or a Quantity."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Quantity]]
    caption: str = ""


class Equations(NamedTuple):
    """What is computed, in words, and its formula, as `equations` gives them."""

    title: str
    rows: Sequence[tuple[str, Markup]]
    caption: str = ""


def render(
    title: str, summary: str, facts: Sequence[tuple[str, str]], parts: Sequence[Panel | Table | Equations], config: dict
) -> str:
    """The page's HTML. facts: (value, what it is), shown large; parts in order; config: shown at the end."""
    page = templates().get_template("report.html")
    return page.render(
        title=title, summary=summary, facts=facts, parts=parts, settings=list(_flat(config)), verdicts=_VERDICTS
    )


@functools.cache
def templates() -> jinja2.Environment:
    """All pages' templates, which escape what they are given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("functional_nn.lab"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = _picture
    environment.tests["a"] = lambda part, kind: type(part).__name__ == kind
    return environment


def _picture(panel: Panel) -> Markup:
    """The figure as inline SVG, or as PNG where that would be too large; the figure is closed."""
    figure, label = panel.figure, panel.alternative
    style = f"--inches: {figure.get_figwidth():.3g}"
    with plt.rc_context({"svg.hashsalt": "functional_nn", "svg.fonttype": "path"}):  # equal data give an equal page
        _keep_colors_upon_images(figure)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", transparent=True
        )
        body = text.getvalue()
        if len(body) > _LARGEST:
            pixels = io.BytesIO()
            figure.savefig(pixels, format="png", dpi=130, bbox_inches="tight")
            data = base64.b64encode(pixels.getvalue()).decode()
            body = Markup('<img style="{}" src="data:image/png;base64,{}" alt="{}">').format(style, data, label)
        else:
            body = _themed(body[body.index("<svg") :], re.sub(r"\W+", "-", panel.title.lower()))
            opening = Markup('<svg style="{}" role="img" aria-label="{}" fill="currentColor"').format(style, label)
            body = Markup(body.replace("<svg", opening, 1))
    plt.close(figure)
    return body


def _themed(body: str, tag: str) -> str:
    # Identifiers of several figures on one page must not meet.
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{tag}-", body)
    # Where matplotlib names no colour, a fill is black: the opening tag's.
    body = re.sub(r"((?:fill|stroke): )#000000\b", r"\1currentColor", body)
    return re.sub(r"((?:fill|stroke): )#ffffff\b", r"\1var(--card)", body)


def _keep_colors_upon_images(figure: Figure) -> None:
    # What was readable on an image's own colours stays so in the dark: not black and white, but next to them.
    for axis in figure.axes:
        for text in axis.texts if axis.images else ():
            near = {(0.0, 0.0, 0.0): "#000001", (1.0, 1.0, 1.0): "#fffffe"}
            text.set_color(near.get(to_rgb(text.get_color()), text.get_color()))


def _flat(value: Any, path: str = ""):
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        text = str(value)
        yield path, text if len(text) <= 160 else text[:157] + "..."
