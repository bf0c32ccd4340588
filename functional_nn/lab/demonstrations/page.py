"""What the demonstrations' pages share: a document laid out by one template, and computation that never blocks the
page.

Each browser tab is a session with its own document. Nothing here or in a demonstration is shared between sessions,
except compiled programs.
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

# Of figures in light mode; the style sheet "figures" changes them for dark mode.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito: distinct for every kind of colour vision
DASHES = ("solid", "dashed", "dotdash", "dotted")  # distinct without colours
INK, GREY = "#1c2330", "#8a93a3"

_LOWEST = 1e-16  # on a log scale
_WAIT = 500  # milliseconds, after which a page says that it is computing
_pool = ThreadPoolExecutor(2, thread_name_prefix="demonstration")  # compiling one page does not delay another


class Demonstration(NamedTuple):
    """A page: its address (`path`, after the server's), title and one-sentence description; `build` fills a
    session's document and computes nothing itself. warm_up() compiles its programs and yields after each one; the first
    are those that the page starts with.
    """

    path: str
    title: str
    about: str
    build: Callable[[Document], None]
    warm_up: Callable[[], Iterator[None]]


class Live:
    """Computes what a page shows, outside the server's loop, for the latest question.

    compute(question) -> answer runs in a thread and touches no model of the page; show(answer) runs in the document's
    turn. If several questions arrive during a computation, only the last one is answered. `status` shows a long
    computation, and the text of a ValueError or TypeError; then the page does not change.
    """

    def __init__(
        self, document: Document, compute: Callable[[Any], Any], show: Callable[[Any], None], status: "Status"
    ):
        self.document, self.compute, self.show, self.status = document, compute, show, status
        self.waiting: list = []
        self.busy = False

    def ask(self, question: Any) -> None:
        """Answers `question` soon; an earlier one whose computation has not started is dropped."""
        self.waiting[:] = [question]
        if not self.busy:
            self._next()

    def _next(self) -> None:
        self.busy = True
        self.late = self.document.add_timeout_callback(self._say_busy, _WAIT)
        _pool.submit(self.compute, self.waiting.pop()).add_done_callback(self._arrived)

    def _say_busy(self) -> None:
        if self.busy:  # the answer may have arrived while this waited for its turn
            self.status.wait()

    def _arrived(self, future: Future) -> None:
        with contextlib.suppress(AttributeError):  # a document that has been closed takes no callback
            self.document.add_next_tick_callback(functools.partial(self._answer, future))

    def _answer(self, future: Future) -> None:
        with contextlib.suppress(ValueError):  # the callback has already run
            self.document.remove_timeout_callback(self.late)
        self.document.hold("combine")  # all changes in one message to the browser
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
    """One line that says what the page shows, or why something was refused; screen readers read it when it changes."""

    def __init__(self):
        self.model = words(name="status")
        self.wait()

    def wait(self) -> None:
        self.say("computing; a program is compiled when it is first used ...")

    def say(self, text: str) -> None:
        self._write("", text)

    def warn(self, text: str) -> None:
        """For something worth noticing, such as divergence."""
        self._write("warns", text)

    def refuse(self, text: str) -> None:
        """For input that was not accepted; nothing has changed."""
        self._write("refuses", text)

    def _write(self, kind: str, text: str) -> None:
        self.model.text = f'<p role="status" class="status {kind}">{escape(text)}</p>'


def refusal(text: str) -> str:
    """The text below a box whose text is refused; screen readers read it at once."""
    return f'<p role="alert" class="refusal">{escape(text)}</p>'


def lay_out(document: Document, title: str, about: str | Markup, **areas: Model) -> None:
    """Puts the models into the page's areas: status, controls, and any of main, side, below."""
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
    """One or more paragraphs; text that is not Markup is escaped."""
    return Div(text=str(escape(text)), sizing_mode="stretch_width", stylesheets=[sheet("content")], **settings)


def key(line: Markup) -> Div:
    """A line in a figure's colour; in dark mode it is changed like the figure's."""
    return Div(text=str(line), sizing_mode="stretch_width", stylesheets=[sheet("content"), sheet("figures")])


@functools.cache
def sheet(name: str) -> str:
    """The style sheet "content" (for Divs), "controls" or "figures", light and dark, which the page's own style
    sheet does not reach. Controls and figures get it from the document's theme, unless they have another one.
    """
    return templates().get_template(f"{name}.css").render()


def plot(alternative: str, tools: str = "pan,wheel_zoom,reset,save", **settings: Any) -> figure:
    """An empty figure in the pages' style, with `alternative` as its description for screen readers."""
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
            axis.ticker.num_minor_ticks = 0  # Bokeh spaces them evenly before the logarithm: a black bar over decades
    return made


def log_plot(alternative: str, x: str, y: str, **settings: Any) -> figure:
    """An empty figure for curves on a log scale, against x from 0 on; `scale_log` fits it to its curves."""
    ranges = {"x_range": Range1d(0, 1), "y_range": Range1d(0.1, 10)}
    plotted = plot(alternative, y_axis_type="log", **ranges, **settings)
    plotted.xaxis.axis_label, plotted.yaxis.axis_label = x, y
    return plotted


def scale_log(plotted: figure, first: float, last: float, curves: Sequence[np.ndarray]) -> None:
    """Shows x from `first` to `last` and all positive values up to a million times the first one."""
    values = np.concatenate([np.empty(0), *curves])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        values = np.ones(1)
    high = min(float(values.max()), 1e6 * float(values[0]))
    low = max(float(values.min()), _LOWEST)
    for axis, start, end in ((plotted.x_range, first, last), (plotted.y_range, low / 2, 2 * high)):
        axis.update(start=start, end=end, reset_start=start, reset_end=end)


def curve(values: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
    """Columns x, from `first` on, and y of a curve on a log scale; nan where a log scale cannot show it."""
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    return {"x": np.arange(first, first + len(values)), "y": shown}


def inside(plotted: figure, x: float | None, y: float | None) -> bool:
    """Whether a tap, in data coordinates, was within the axes; outside there are no coordinates, or those of the
    margin.
    """
    if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
        return False
    ranges: Sequence[Range1d] = (plotted.x_range, plotted.y_range)
    return all(min(r.start, r.end) <= value <= max(r.start, r.end) for r, value in zip(ranges, (x, y), strict=True))


def wraps() -> InlineStyleSheet:
    """For a row whose parts continue on the next line if there is no room."""
    return InlineStyleSheet(css=":host { flex-wrap: wrap; gap: 6px 14px; }")


def keeps_focus() -> CustomJS:
    """For a button whose label changes: Bokeh then makes a new button, which would lose the keyboard's focus."""
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
    """A slider; arrow keys move it too."""
    settings = {"sizing_mode": "stretch_width"} | settings
    return Slider(title=title, start=low, end=high, value=value, step=step, name=name, **settings)


def source(name: str, *columns: str) -> ColumnDataSource:
    """Columns without data; tests and scripts in the browser find them by name."""
    return ColumnDataSource({column: [] for column in columns}, name=name)


def empty(source: ColumnDataSource) -> None:
    """Removes all data from its columns."""
    source.data = {column: [] for column in source.data}


def number_text(value: float) -> str:
    """A number as the pages show it: four digits."""
    return "∞" if value == math.inf else f"{value:.4g}".replace("-", "−")


def pair(x: Sequence[float]) -> str:
    """A point of the plane as text."""
    return f"({number_text(x[0])}, {number_text(x[1])})"


class Table(NamedTuple):
    """A small table; the first cell of each row is its heading."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def width(self) -> float:
        """The approximate width of its text, in em."""
        return sum(max(map(_width, column)) for column in zip(self.header, *self.rows, strict=True))


def tables(*shown: Table) -> Markup:
    """Tables side by side, if there is room; if there is too little for one table, its rows become lines of text."""
    least, roomy = (max(each.width + beside * len(each.header) for each in shown) for beside in (0.6, 0.9))
    return Markup(templates().get_template("tables.html").render(tables=shown, least=least, roomy=roomy))


def _width(text: str) -> float:
    return sum(0.56 if letter in "0123456789" else 0.5 for letter in text)
