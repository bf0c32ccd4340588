"""What the demonstrations' pages share: a document laid out by one template, and computing that never blocks the page.

Each browser tab is a session with a document of its own; nothing here or in a demonstration is kept outside it, but for
what was compiled.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from bokeh.core.templates import FILE
from bokeh.document import Document
from bokeh.models import ColumnDataSource, CustomJS, Div, InlineStyleSheet, LogTicker, Model, Range1d, Slider
from bokeh.plotting import figure
from bokeh.themes import Theme
from markupsafe import Markup, escape

from functional_nn.lab.report import templates

# Of figures, in the light; what they are in the dark, the style sheet "figures" makes of them.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito: apart for every kind of colour vision
DASHES = ("solid", "dashed", "dotdash", "dotted")  # and without colours
INK, GREY = "#1c2330", "#8a93a3"

_LOWEST = 1e-16  # on a log scale
_SOON = 500  # milliseconds after which a page says that it computes
_pool = ThreadPoolExecutor(2, thread_name_prefix="demonstration")  # so that compiling one does not hold up another


class Demonstration(NamedTuple):
    """A page: its address (`path`, after the server's), what it is called and about, what it is made of (a function of
    the session's document, which computes nothing itself), and what is compiled behind it: warm_up() yields after each
    program, first after those that the page begins with.
    """

    path: str
    title: str
    about: str
    build: Callable[[Document], None]
    warm_up: Callable[[], Iterator[None]]


class Live:
    """Computes outside the server's loop what a page shows, for the latest of what was asked.

    compute(question) -> answer runs in a thread and touches no model of the page; show(answer) runs in the document's
    turn. Questions that come while one is computed are answered by the last of them alone. That it takes long, and a
    ValueError or TypeError, is said in `status`, and what was shown stays.
    """

    def __init__(
        self, document: Document, compute: Callable[[Any], Any], show: Callable[[Any], None], status: "Status"
    ):
        self.document, self.compute, self.show, self.status = document, compute, show, status
        self.waiting: list = []
        self.busy = False

    def ask(self, question: Any) -> None:
        """Answers `question` soon; an earlier one that was not begun is forgotten."""
        self.waiting[:] = [question]
        if not self.busy:
            self._next()

    def _next(self) -> None:
        self.busy = True
        self.late = self.document.add_timeout_callback(self._still, _SOON)
        _pool.submit(self.compute, self.waiting.pop()).add_done_callback(self._arrived)

    def _still(self) -> None:
        if self.busy:  # the answer may have come while this waited for its turn
            self.status.wait()

    def _arrived(self, future: Future) -> None:
        with contextlib.suppress(AttributeError):  # of a document that is gone, which takes no callback
            self.document.add_next_tick_callback(functools.partial(self._answer, future))

    def _answer(self, future: Future) -> None:
        with contextlib.suppress(ValueError):  # where it has been said
            self.document.remove_timeout_callback(self.late)
        self.document.hold("combine")  # one message to the browser, of everything that changes
        try:
            self.show(future.result())
        except (ValueError, TypeError) as error:
            self.status.refuse(str(error))
        except Exception as error:
            self.status.refuse(f"this failed: {error}")
            raise  # for the server's log
        finally:
            self.document.unhold()
            self.busy = False
            if self.waiting:
                self._next()


class Status:
    """One line that says what is seen, or why something was refused; screen readers say it when it changes."""

    def __init__(self):
        self.model = words(name="status")
        self.wait()

    def wait(self) -> None:
        self.say("computing; what is asked for the first time is compiled first ...")

    def say(self, text: str) -> None:
        self._write("", text)

    def warn(self, text: str) -> None:
        """Worth noticing, such as divergence."""
        self._write("warns", text)

    def refuse(self, text: str) -> None:
        """Not accepted; nothing has changed."""
        self._write("refuses", text)

    def _write(self, kind: str, text: str) -> None:
        self.model.text = f'<p role="status" class="status {kind}">{escape(text)}</p>'


def refusal(text: str) -> str:
    """What stands below a box whose text is refused; screen readers say it at once."""
    return f'<p role="alert" class="refusal">{escape(text)}</p>'


def lay_out(document: Document, title: str, about: str | Markup, **areas: Model) -> None:
    """Puts the models into the page's areas, which are: status, controls, and any of main, side, below."""
    for name, model in areas.items():
        model.name = name if model.name is None else model.name
        document.add_root(model)
    document.title = f"{title} · functional_nn"
    document.theme = Theme(
        json={"attrs": {"Widget": {"stylesheets": [sheet("controls")]}, "Plot": {"stylesheets": [sheet("figures")]}}}
    )
    document.template = templates().get_template("demonstration.html")
    document.template_variables.update(
        heading=title, about=about, base=FILE, areas={area: model.name for area, model in areas.items()}
    )


def words(text: str | Markup = "", **settings: Any) -> Div:
    """A paragraph or more of the page; text that is not Markup is escaped."""
    return Div(text=str(escape(text)), sizing_mode="stretch_width", stylesheets=[sheet("content")], **settings)


def key(line: Markup) -> Div:
    """A line in a figure's colour, which is in the dark what the figure makes of it."""
    return Div(text=str(line), sizing_mode="stretch_width", stylesheets=[sheet("content"), sheet("figures")])


@functools.cache
def sheet(name: str) -> str:
    """The manner of "content" (of Divs), "controls" or "figures", light and dark, which the page's own style sheet does
    not reach. Controls and figures have it by the document's theme, if they have no other.
    """
    return templates().get_template(f"{name}.css").render()


def plot(alternative: str, tools: str = "pan,wheel_zoom,reset,save", **settings: Any) -> figure:
    """An empty figure in the pages' manner, with `alternative` as its description for who cannot see it."""
    settings = {"sizing_mode": "stretch_width", "toolbar_location": "above"} | settings
    made = figure(tools=tools, active_drag=None, **settings)
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.html_attributes = {"role": "img", "aria-label": alternative}
    made.background_fill_color = made.border_fill_color = "#ffffff"
    made.grid.grid_line_color = "#e4e7ed"
    made.outline_line_color = None
    for axis in made.yaxis:
        if isinstance(axis.ticker, LogTicker):
            axis.ticker.num_minor_ticks = 0  # Bokeh's are evenly apart before the logarithm: over decades a black bar
    return made


def log_plot(alternative: str, x: str, y: str, **settings: Any) -> figure:
    """An empty figure for curves on a log scale, against x from 0 on; `scale_log` fits it to what it shows."""
    ranges = {"x_range": Range1d(0, 1), "y_range": Range1d(0.1, 10)}
    plotted = plot(alternative, y_axis_type="log", **ranges, **settings)
    plotted.xaxis.axis_label, plotted.yaxis.axis_label = x, y
    return plotted


def scale_log(plotted: figure, first: float, last: float, curves: Sequence[np.ndarray]) -> None:
    """Shows x from `first` to `last` and all values but those a million times beyond the first one, or not positive."""
    values = np.concatenate([np.empty(0), *curves])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        values = np.ones(1)
    high = min(float(values.max()), 1e6 * float(values[0]))
    low = max(float(values.min()), _LOWEST)
    for axis, start, end in ((plotted.x_range, first, last), (plotted.y_range, low / 2, 2 * high)):
        axis.update(start=start, end=end, reset_start=start, reset_end=end)


def curve(values: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
    """Columns x, from `first` on, and y of a curve on a log scale; nothing where that cannot show it."""
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    return {"x": np.arange(first, first + len(values)), "y": shown}


def inside(plotted: figure, x: float | None, y: float | None) -> bool:
    """Whether a tap, in data coordinates, was within the axes; outside there are none, or those of the margin."""
    if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
        return False
    ranges: Sequence[Range1d] = (plotted.x_range, plotted.y_range)
    return all(min(r.start, r.end) <= value <= max(r.start, r.end) for r, value in zip(ranges, (x, y), strict=True))


def wraps() -> InlineStyleSheet:
    """Of a row whose parts go on in the next line where there is no room."""
    return InlineStyleSheet(css=":host { flex-wrap: wrap; gap: 6px 14px; }")


def keeps_focus() -> CustomJS:
    """For a button whose label changes: Bokeh then makes another, and the keyboard would lose it."""
    return CustomJS(
        code="""
        const {shadow_el} = Bokeh.index.find_one(cb_obj)
        const focus = () => {
          if (document.activeElement === document.body) shadow_el.querySelector("button").focus({preventScroll: true})
        }
        new MutationObserver((_, observer) => { observer.disconnect(); focus() }).observe(shadow_el, {childList: true})
        focus()
    """
    )


def slider(title: str, low: float, high: float, value: float, step: float, name: str, **settings: Any) -> Slider:
    """A slider, which arrow keys move too."""
    settings = {"sizing_mode": "stretch_width"} | settings
    return Slider(title=title, start=low, end=high, value=value, step=step, name=name, **settings)


def source(name: str, *columns: str) -> ColumnDataSource:
    """Columns with nothing in them yet; tests and scripts in the browser find them by name."""
    return ColumnDataSource({column: [] for column in columns}, name=name)


def empty(source: ColumnDataSource) -> None:
    """Takes everything out of its columns."""
    source.data = {column: [] for column in source.data}


def said(value: float) -> str:
    """A number as the pages show it: four digits."""
    return "∞" if value == math.inf else f"{value:.4g}".replace("-", "−")


def pair(x: Sequence[float]) -> str:
    """A point of the plane, in words."""
    return f"({said(x[0])}, {said(x[1])})"


class Table(NamedTuple):
    """A small table; the first cell of each row heads it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def width(self) -> float:
        """About how wide its text is, in em."""
        return sum(max(map(_width, column)) for column in zip(self.header, *self.rows, strict=True))


def tables(*shown: Table) -> Markup:
    """Side by side, as far as there is room; where there is too little for one, its rows become lines of words."""
    least, roomy = (max(each.width + beside * len(each.header) for each in shown) for beside in (0.6, 0.9))
    return Markup(templates().get_template("tables.html").render(tables=shown, least=least, roomy=roomy))


def _width(text: str) -> float:
    return sum(0.56 if letter in "0123456789" else 0.5 for letter in text)
