"""Renders a report: one self-contained page, light or dark, with figures that have alternative text.

The page is `templates/report.html`. Its only script sorts tables and switches between light and dark.
"""

import base64
import functools
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2
import matplotlib.pyplot as plt
from markupsafe import Markup
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

__all__ = [
    "Equations",
    "Panel",
    "Quantity",
    "Table",
    "render",
]

_LARGEST = 1_500_000  # characters of an SVG; larger figures are embedded as PNG
_VERDICTS = {"ok": "good", "agree": "good", "DIFFERS": "bad", "differ": "bad", "undefined": "bad"}


class Panel(NamedTuple):
    """A figure on a report's page.

    Black in the figure is drawn in the page's text colour and white in its background colour, so that the figure is as
    dark as the page. Text upon an image keeps its own colours.

    Attributes:
        title: the heading.
        figure: the figure.
        alternative: what the figure shows, in words.
        caption: the text below it.

    Example:
        >>> from functional_nn.lab import plots, report
        >>> panel = report.Panel("Losses", plots.plt.figure(), "The loss falls from 2 to 0.1.")
        >>> panel.title
        'Losses'
    """

    title: str
    figure: Figure
    alternative: str
    caption: str = ""


class Quantity(NamedTuple):
    """A table cell that is sorted by its value, such as "12 ms" by 0.012.

    Attributes:
        text: what is shown.
        value: what it is sorted by.

    Example:
        >>> from functional_nn.lab import report
        >>> report.Quantity("12 ms", 0.012).value
        0.012
    """

    text: str
    value: float


class Table(NamedTuple):
    """A table on a report's page.

    Attributes:
        title: the heading.
        header: the columns' names.
        rows: the rows; a cell is text or a `Quantity`.
        caption: the text below it.

    Example:
        >>> from functional_nn.lab import report
        >>> report.Table("Times", ("what", "time"), [("forward", report.Quantity("12 ms", 0.012))]).header
        ('what', 'time')
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Quantity]]
    caption: str = ""


class Equations(NamedTuple):
    """Equations on a report's page.

    Attributes:
        title: the heading.
        rows: (what is computed, in words; its formula, as `equations` returns it).
        caption: the text below them.

    Example:
        >>> from functional_nn.lab import equations, report
        >>> report.Equations("The update", [("adam", equations.optimizer("adam"))]).rows[0][0]
        'adam'
    """

    title: str
    rows: Sequence[tuple[str, Markup]]
    caption: str = ""


def render(
    title: str, summary: str, facts: Sequence[tuple[str, str]], parts: Sequence[Panel | Table | Equations], config: dict
) -> str:
    """Renders a report as one HTML page.

    Args:
        title: the page's title.
        summary: a sentence below it.
        facts: (value, what it is), shown large at the top.
        parts: the sections, in order.
        config: what was run, shown at the end.

    Returns:
        The HTML. The figures are closed.

    Example:
        >>> from functional_nn.lab import report
        >>> page = report.render("Run", "A network of two layers.", [("0.98", "accuracy")], [], {"seed": 0})
        >>> page.startswith("<!doctype html>"), "0.98" in page
        (True, True)
    """
    page = templates().get_template("report.html")
    return page.render(
        title=title, summary=summary, facts=facts, parts=parts, settings=list(_flat(config)), verdicts=_VERDICTS
    )


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of all pages; they escape what they are given."""
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
    """The figure as inline SVG, or as PNG if that would be too large; the figure is closed."""
    figure, label = panel.figure, panel.alternative
    style = f"--inches: {figure.get_figwidth():.3g}"
    with plt.rc_context({"svg.hashsalt": "functional_nn", "svg.fonttype": "path"}):  # equal data, equal page
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
    # Identifiers of several figures on one page must differ.
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{tag}-", body)
    # Where matplotlib writes no colour, a fill is black: the opening tag sets it.
    body = re.sub(r"((?:fill|stroke): )#000000\b", r"\1currentColor", body)
    return re.sub(r"((?:fill|stroke): )#ffffff\b", r"\1var(--card)", body)


def _keep_colors_upon_images(figure: Figure) -> None:
    # Text that is readable on an image's colours stays so in dark mode: almost black and white, which are not replaced.
    for axis in figure.axes:
        for text in axis.texts if axis.images else ():
            near = {(0.0, 0.0, 0.0): "#000001", (1.0, 1.0, 1.0): "#fffffe"}
            text.set_color(near.get(to_rgb(text.get_color()), text.get_color()))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        text = str(value)
        yield path, text if len(text) <= 160 else text[:157] + "..."
