"""Populations: the results of a sweep. A brush over two of its hyperparameters selects the members whose curves are
shown.

Letters: N members, E epochs. The page shows the sweep whose folder `use` was given, or a small population, which the
server's process trains once.
"""

from typing import NamedTuple

import numpy as np
from bokeh.document import Document
from bokeh.events import SelectionGeometry
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    CDSView,
    CheckboxGroup,
    ColorBar,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    IndexFilter,
    LogColorMapper,
    LogTicker,
    Range1d,
    RangeSlider,
    Select,
)
from bokeh.palettes import Viridis256
from markupsafe import Markup, escape

from functional_nn.lab.demonstrations import page
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text
from functional_nn.lab.demonstrations.sweep_members import Members, members, warm_up
from functional_nn.lab.plots import value_text

TITLE = "Populations"
ABOUT = "Each point is a network. Drag a box over some points, or use the controls, to see their learning curves."
LINES, BEHIND = 120, 60  # at most so many curves are drawn of the selected members, and of all
_POINTS = 60  # of a curve, at most: more cannot be told apart
_LOST = "#b00020"
_PALETTE = Viridis256[:215]  # later colours can hardly be seen on white or in dark mode
_BAND = 0.3  # how far members with the same value are spread around it
_NONE = "(nothing)"
_MANY = 400  # members, above which points are smaller


# Choosing -------------------------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """The places of a column's values on an axis, (N,), and the axis' labels.

    options: the values by which it is selected, one place each from 0 on; empty if it is selected by a range. power:
    whether places are logarithms.
    """

    name: str
    places: np.ndarray
    options: list[str]
    power: bool
    ticks: dict[float, str]

    @property
    def limits(self) -> tuple[float, float]:
        return float(self.places.min()), float(self.places.max())


def scale(name: str, values: np.ndarray) -> Scale:
    """Words and few integers are evenly spaced; numbers by their size, or by its logarithm if they span a factor of
    20.
    """
    distinct = np.unique(values)
    few = values.dtype.kind in "Ub" or len(distinct) <= (8 if values.dtype.kind == "i" else 3)
    if few or not np.isfinite(values).all():
        if name == "batch_size" and distinct[0] == 0:  # all examples, the largest batch
            distinct = np.roll(distinct, -1)
        texts = [value_text(value.item() if value.dtype.kind != "b" else str(value), name) for value in distinct]
        places = (values[:, None] == distinct[None, :]).argmax(axis=1).astype(float)
        return Scale(name, places, texts, False, {float(i): text for i, text in enumerate(texts)})
    low, high = float(distinct[0]), float(distinct[-1])
    if low > 0 and high >= 20 * low:
        decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        parts = (1,) if len(decades) > 3 else (1, 2, 5)
        marks = [part * 10.0**power for power in decades for part in parts]
        return Scale(name, np.log10(values), [], True, {float(np.log10(mark)): f"{mark:.4g}" for mark in marks})
    return Scale(name, values.astype(float), [], False, {})


def spread(x: Scale, y: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Where the points are drawn: those with the same value are spread around it evenly, so that all can be seen."""
    order = np.lexsort((x.places, y.places))
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    # Multiples of these two, modulo 1, fill a square evenly: Roberts 2018, the sequence R2
    dx, dy = (2 * _BAND * ((rank * step) % 1 - 0.5) for step in (0.7548776662, 0.5698402910))
    return x.places + (dx if x.options else 0), y.places + (dy if y.options else 0)


class Chooser:
    """The selection in one column: a range of numbers, or some of a few values."""

    def __init__(self, of: Scale, name: str, changed):
        self.scale, self.changed, self.quiet = of, changed, False
        low, high = of.limits
        if of.options:
            self.model = CheckboxGroup(labels=of.options, active=list(range(len(of.options))), inline=True, name=name)
            self.model.on_change("active", self._moved)
            self.models = [page.words(of.name.replace("_", " ")), self.model]
        else:
            text = (
                "return String(Number((10 ** tick).toPrecision(3)))"
                if of.power
                else "return String(Number(tick.toPrecision(4)))"
            )
            self.model = RangeSlider(
                title=of.name.replace("_", " "),
                start=low,
                end=high,
                value=(low, high),
                step=(high - low) / 200,
                format=CustomJSTickFormatter(code=text),
                name=name,
                sizing_mode="stretch_width",
            )
            self.model.on_change("value", self._moved)
            self.models = [self.model]

    def _moved(self, attribute, old, new) -> None:
        if not self.quiet:
            self.changed()

    @property
    def mask(self) -> np.ndarray:
        """(N,), which members it selects."""
        if self.scale.options:
            return np.isin(self.scale.places, self.model.active)
        return self._between(*self.model.value)

    def _between(self, low: float, high: float) -> np.ndarray:
        least, most = self.scale.limits
        slack = 1e-9 * (most - least)  # for rounding in a slider's steps
        return (self.scale.places >= low - slack) & (self.scale.places <= high + slack)

    def within(self, low: float, high: float) -> np.ndarray:
        """(N,), which members a box from low to high touches; evenly spaced values are taken whole."""
        reach = _BAND if self.scale.options else 0.0
        return self._between(low - reach, high + reach)

    def take(self, low: float, high: float) -> None:
        """Selects what a box touches."""
        self.quiet = True
        if self.scale.options:
            self.model.active = [i for i in range(len(self.scale.options)) if low - _BAND <= i <= high + _BAND]
        else:
            least, most = self.scale.limits
            self.model.value = (max(low, least), min(high, most))
        self.quiet = False


# What is seen of a choice ---------------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """epochs and median (P,) of the selected members; lines: the members whose curves are drawn; best: at most ten."""

    mask: np.ndarray
    epochs: np.ndarray
    median: np.ndarray
    lines: np.ndarray
    best: np.ndarray


def shown_epochs(count: int) -> np.ndarray:
    """The indices of the epochs that are drawn of `count`, including the first and the last."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, _POINTS))).astype(int))


def median(curves: np.ndarray) -> np.ndarray:
    """The median over members (E, N) -> (E,): diverged members are worse than all others; nan where the median
    diverged.
    """
    if not curves.shape[1]:
        return np.full(len(curves), np.nan)
    found = np.median(np.where(np.isnan(curves), np.inf, curves), axis=1)
    return np.where(np.isfinite(found), found, np.nan)


def sample(ids: np.ndarray, loss: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the members, evenly from the best to the worst."""
    ordered = ids[np.argsort(loss[ids], kind="stable")]  # nan last
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), most)).astype(int))]


def choose(shown: Members, mask: np.ndarray, metric: str) -> Chosen:
    """What is shown of the selected members."""
    ids = np.flatnonzero(mask)
    epochs = shown_epochs(len(shown.curves[metric]))
    judged = ids[~shown.lost[ids]]
    best = judged[np.argsort(shown.loss[judged], kind="stable")[:10]]
    return Chosen(
        mask, epochs + 1, median(shown.curves[metric][np.ix_(epochs, ids)]), sample(ids, shown.loss, LINES), best
    )


def limits(values: np.ndarray, depth: float) -> tuple[float, float]:
    """Lowest and highest positive number to show on a log scale; diverging members do not set it.

    depth: how many times below the first quartile it may go.
    """
    found = values[np.isfinite(values) & (values > 0)]
    if not found.size:
        return 0.1, 10.0
    quarter = float(np.quantile(found, 0.25))
    low, high = max(float(found.min()), quarter / depth), min(float(found.max()), 1e3 * quarter)
    return (low, high) if high > 1.01 * low else (low / 2, low * 2)


def drawn(curves: np.ndarray) -> np.ndarray:
    """What a log axis can show of curves; values above 1e30 are not drawn."""
    return np.where((curves > 0) & (curves < 1e30), curves, np.nan)


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        self.shown: Members | None = None
        self.status = Status()
        self.live = Live(document, self.compute, self.show, self.status)
        self.points = page.source("points", "x", "y", "color", "alpha", "text")
        self.behind, self.lines = page.source("behind", "xs", "ys"), page.source("lines", "xs", "ys", "color")
        self.middle = page.source("median", "x", "y")
        self.scatter, self.curves = self.drawing(), self.curve_plot()
        self.about = page.words(name="about")
        self.controls = column(self.about, sizing_mode="stretch_width")
        self.best, self.note = page.words(name="best"), page.words(name="note")
        self.choosers: list[Chooser] = []
        page.lay_out(
            document,
            TITLE,
            ABOUT,
            status=self.status.model,
            controls=self.controls,
            main=self.scatter,
            side=self.curves,
            below=self.best,
        )
        self.live.ask(None)

    def drawing(self):
        plotted = page.plot(
            "The members by two hyperparameters, coloured by their loss",
            tools="",
            height=335,
            x_range=Range1d(0, 1),
            y_range=Range1d(0, 1),
            name="members",
        )
        self.found, self.lost = (
            plotted.scatter(
                "x",
                "y",
                source=self.points,
                marker=marker,
                fill_color="color",
                line_color=line,
                alpha="alpha",
                line_width=1.5,
            )
            for marker, line in (("circle", "#4d586a"), ("x", _LOST))
        )
        box = BoxSelectTool(renderers=[])  # the page itself marks the selected members
        plotted.add_tools(box, HoverTool(tooltips="@text"))
        plotted.toolbar.active_drag = box
        plotted.grid.grid_line_color = None
        plotted.on_event(SelectionGeometry, self.brushed)
        return plotted

    def curve_plot(self):
        plotted = page.plot(
            "Loss over the epochs of the selected members",
            y_axis_type="log",
            x_range=Range1d(1, 2),
            y_range=Range1d(0.1, 10),
            height=335,
        )
        plotted.multi_line("xs", "ys", source=self.behind, color="#c6ccd6", line_width=1, alpha=0.6)
        plotted.multi_line("xs", "ys", source=self.lines, color="color", line_width=1.3, alpha=0.75)
        plotted.line("x", "y", source=self.middle, color="#1c2330", line_width=4)
        plotted.xaxis.axis_label = "epoch"
        plotted.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
        return plotted

    # The population has come ---------------------------------------------------------------------------------------

    def arrive(self, shown: Members) -> None:
        self.shown = shown
        low, high = limits(shown.loss[~shown.lost], 1e2)
        mapper = LogColorMapper(_PALETTE, low=low, high=high)
        loss = np.where(shown.lost, np.nan, np.clip(shown.loss, low, high))
        share = np.nan_to_num(np.log(loss / low) / np.log(high / low))
        self.colors = np.where(shown.lost, _LOST, np.array(_PALETTE)[((len(_PALETTE) - 1) * share).astype(int)])
        key = ColorBar(
            color_mapper=mapper,
            title=next(iter(shown.curves)),
            height=8,
            padding=4,
            ticker=LogTicker(desired_num_ticks=4),
        )
        self.scatter.add_layout(key, "below")
        many = len(shown) > _MANY
        for drawn_as, which in ((self.found, ~shown.lost), (self.lost, shown.lost)):
            drawn_as.view = CDSView(filter=IndexFilter(np.flatnonzero(which).tolist()))
            drawn_as.glyph.size = 6 if many else 11
        if many:  # outlines would double the drawing time
            self.found.glyph.line_color = None
        names = list(shown.columns)
        wanted = [name for name in ("learning_rate", "batch_size") if name in names]
        others = [name for name in names if name not in wanted]
        first, second, *_ = [*wanted, *sorted(others, key=lambda name: name in ("seed", "subset")), _NONE]
        self.axes = [
            Select(
                title=title,
                options=[*names, *([] if title == "across" else [_NONE])],
                value=value,
                name=title,
                sizing_mode="stretch_width",
            )
            for title, value in (("across", first), ("upwards", second))
        ]
        self.row = row(*self.axes, sizing_mode="stretch_width")
        self.metric = Select(
            title="curves",
            options=list(shown.curves),
            value=next(iter(shown.curves)),
            name="metric",
            sizing_mode="stretch_width",
        )
        for one in self.axes:
            one.on_change("value", self.other_axis)
        self.metric.on_change("value", lambda attribute, old, new: self.lay_curves())
        self.about.text = str(escape(self.introduction(wanted)))
        self.lay()
        self.lay_curves()

    def introduction(self, wanted: list[str]) -> str:
        missing = [name for name in ("learning_rate", "batch_size") if name not in wanted]
        text = f"{len(self.shown)} members of {self.shown.source}."
        if missing:
            text += f" Its {' and '.join(missing)} did not vary, so the axes show other hyperparameters."
        return text + " Circles are coloured by loss (see the bar). Crosses: diverged."

    def other_axis(self, attribute, old, new) -> None:
        """If both axes would be the same, the one that was not changed takes another column."""
        across, upwards = self.axes
        if across.value == upwards.value:
            changed = across if self.choosers[0].scale.name != new else upwards
            left = upwards if changed is across else across
            free = [name for name in (old, *left.options) if name in left.options and name != new]
            if free:
                left.value = free[0]  # sets the axes
                return
        self.lay()

    def lay(self) -> None:
        """Sets the axes and selects everything."""
        scales = [self.scale_of(one.value) for one in self.axes]
        self.choosers = [
            Chooser(of, f"choose-{one.title}", self.ask) for of, one in zip(scales, self.axes, strict=True)
        ]
        laid = (self.scatter.x_range, self.scatter.xaxis[0]), (self.scatter.y_range, self.scatter.yaxis[0])
        for (extent, axis), of in zip(laid, scales, strict=True):
            low, high = of.limits
            margin = 0.5 if of.options else 0.05 * (high - low)
            extent.update(start=low - margin, end=high + margin)
            axis.ticker = FixedTicker(ticks=list(of.ticks)) if of.ticks else BasicTicker()
            axis.update(major_label_overrides=of.ticks, axis_label=of.name.replace("_", " "))
        x, y = spread(*scales)
        self.points.data = {"x": x, "y": y, "color": self.colors, "text": self.texts(), "alpha": np.ones(len(x))}
        choosers = [model for chooser in self.choosers if chooser.scale.name for model in chooser.models]
        self.controls.children = [self.about, self.row, *choosers, self.metric, self.note]
        self.ask()

    def scale_of(self, name: str) -> Scale:
        if name == _NONE:
            return Scale("", np.zeros(len(self.shown)), ["all"], False, {0.0: ""})
        return scale(name, self.shown.columns[name])

    def texts(self) -> list[str]:
        """The text of each member's point."""
        columns = {name: values.tolist() for name, values in self.shown.columns.items()}
        return [
            "\n".join(
                [
                    f"member {m}",
                    *(f"{name} {value_text(own[m], name)}" for name, own in columns.items()),
                    "diverged" if self.shown.lost[m] else f"loss {number_text(self.shown.loss[m])}",
                ]
            )
            for m in range(len(self.shown))
        ]

    def lay_curves(self) -> None:
        """Shows another loss, with the curves of a few of all members behind those of the selected."""
        curves = self.shown.curves[self.metric.value]
        epochs = shown_epochs(len(curves))
        everyone = np.arange(len(self.shown))
        behind = drawn(curves[np.ix_(epochs, sample(everyone, self.shown.loss, BEHIND))])
        self.behind.data = {"xs": [(epochs + 1).tolist()] * behind.shape[1], "ys": behind.T.tolist()}
        low, high = limits(curves, 1e6)
        self.curves.x_range.update(start=1, end=max(2, len(curves)), reset_start=1, reset_end=max(2, len(curves)))
        self.curves.y_range.update(start=low / 1.2, end=high * 1.2, reset_start=low / 1.2, reset_end=high * 1.2)
        self.curves.yaxis.axis_label = self.metric.value
        self.ask()

    # What the visitor does -----------------------------------------------------------------------------------------

    def brushed(self, event: SelectionGeometry) -> None:
        if not event.final or event.geometry["type"] != "rect":
            return
        box = [sorted((event.geometry[f"{axis}0"], event.geometry[f"{axis}1"])) for axis in "xy"]
        touched = [chooser.within(*ends) for chooser, ends in zip(self.choosers, box, strict=True)]
        if not (touched[0] & touched[1]).any():
            self.status.refuse("there is no member in that box; the selection has not changed")
            return
        for chooser, ends in zip(self.choosers, box, strict=True):
            chooser.take(*ends)
        self.ask()

    def ask(self) -> None:
        self.live.ask((self.choosers[0].mask & self.choosers[1].mask, self.metric.value))

    # What is seen --------------------------------------------------------------------------------------------------

    def compute(self, question: tuple[np.ndarray, str] | None) -> Members | tuple[str, Chosen]:
        """The selected members; without a question, the population itself, which must be there before anything is
        selected.
        """
        if question is None:
            return members()
        mask, metric = question
        return metric, choose(self.shown, mask, metric)

    def show(self, found: Members | tuple[str, Chosen]) -> None:
        if isinstance(found, Members):
            self.arrive(found)
            return
        metric, chosen = found
        if metric != self.metric.value:
            return  # an older question; the answer to the current one will follow
        epochs, curves = chosen.epochs, self.shown.curves[metric]
        self.points.data["alpha"] = np.where(chosen.mask, 1.0, 0.12)
        lines = drawn(curves[np.ix_(epochs - 1, chosen.lines)])
        self.lines.data = {  # lists: each array would be a separate message
            "xs": [epochs.tolist()] * lines.shape[1],
            "ys": lines.T.tolist(),
            "color": self.colors[chosen.lines].tolist(),
        }
        self.middle.data = {"x": epochs, "y": chosen.median}
        self.say(chosen)

    def say(self, chosen: Chosen) -> None:
        shown, count = self.shown, int(chosen.mask.sum())
        lost = int((shown.lost & chosen.mask).sum())
        self.best.text = str(self.tables(chosen.best))
        drawn = f"{len(chosen.lines)} of the {count} selected curves are drawn, from the best to the worst. "
        self.note.text = str(
            Markup('<p class="soft">{}{}</p>').format(
                drawn if len(chosen.lines) < count else "",
                "Thick: the median of the selected, where diverged members count as worst. Faint: others.",
            )
        )
        if not count:
            self.status.warn(f"None of {len(shown)} members is selected: widen a range, or check a value.")
            return
        text = f"{count} of {len(shown)} selected, {lost} of them diverged"
        if not chosen.best.size:
            self.status.warn(f"{text}.")
            return
        best = chosen.best[0]
        where = ", ".join(f"{name} {value_text(own[best].item(), name)}" for name, own in shown.columns.items())
        self.status.say(
            f"{text}; the best is member {best}: {where}, {next(iter(shown.curves))} {number_text(shown.loss[best])}."
        )

    def tables(self, best: np.ndarray) -> Markup:
        if not best.size:
            return page.tables(page.Table(("member",), [], "No member with a finite loss is selected"))
        shown, classes = self.shown, self.shown.accuracy is not None
        rows = [
            (
                str(m),
                *(value_text(own[m].item(), name) for name, own in shown.columns.items()),
                number_text(shown.loss[m]),
                *([f"{100 * shown.accuracy[m]:.2f} %"] if classes else []),
            )
            for m in best
        ]
        header = "member", *shown.columns, next(iter(shown.curves)), *(["held-out accuracy"] if classes else [])
        title = (
            f"The {len(rows)} best of the selected, after the last epoch"
            if len(rows) > 1
            else "The best of the selected"
        )
        half = max(1, -(-len(rows) // 2))  # side by side, so that all can be seen at once
        parts = [rows[:half], rows[half:]] if len(rows) > 1 else [rows]
        titles = title, "continued"
        return page.tables(*(page.Table(header, part, name) for part, name in zip(parts, titles, strict=False)))


DEMONSTRATION = Demonstration("populations", TITLE, ABOUT, _Page, warm_up)
