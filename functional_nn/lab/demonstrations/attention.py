"""Attention and time: a text, a network's predictions, what it attends to, and the way back of one prediction."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from bokeh.document import Document
from bokeh.events import DoubleTap, Tap
from bokeh.layouts import column
from bokeh.models import Button, FixedTicker, HoverTool, Range1d, Select
from bokeh.palettes import interp_palette
from markupsafe import Markup

from functional_nn.lab import equations
from functional_nn.lab.demonstrations import page
from functional_nn.lab.demonstrations.boxes import Box, Form
from functional_nn.lab.demonstrations.explanations import chunks
from functional_nn.lab.demonstrations.one_text import (
    CHARACTERS,
    PRESETS,
    Found,
    Question,
    T,
    answer,
    read,
    reader,
    trained,
    views,
)
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text
from functional_nn.lab.equations import mathml

TITLE = "Attention and time"
ABOUT = "What a small network predicts after each character, what it attends to, and on what one prediction depends."
_START = Question("transformer", "the value of the expression is", 19, True)
_FOLLOWS, _MOST = "the next character in the text", "the most probable character"
_BARS = 10
_BLUES = interp_palette(("#ffffff", "#08467e"), 65)  # for numbers >= 0
_ORANGES = interp_palette(("#ffffff", "#a34700"), 65)  # for norms of sensitivities
_DIVERGING = interp_palette(("#08467e", "#ffffff", "#a34700"), 129)  # negative, 0, positive
_DARK = 0.6  # on darker shades white text is easier to read
_LEFT = 74  # pixels to the left of every figure whose columns are characters, so that columns are aligned


def warm_up() -> Iterator[None]:
    """Trains the networks and compiles their programs."""
    for name in PRESETS:
        answer(_START._replace(network=name))
        yield


# What is drawn --------------------------------------------------------------------------------------------------------


def visible_text(text: str) -> list[str]:
    """The characters of a text, with a visible sign for spaces."""
    return ["␣" if one == " " else one for one in text]


def shaded(values: np.ndarray, palette: Sequence[str], low: float = 0.0) -> list[str]:
    """A colour for each number from `low` to 1."""
    at = np.clip((values.ravel() - low) / (1 - low), 0, 1)
    return [palette[each] for each in np.rint(at * (len(palette) - 1)).astype(int)]


def ink(shade: np.ndarray) -> list[str]:
    """The colour of text on a shade."""
    return ["#ffffff" if each > _DARK else page.INK for each in np.abs(shade.ravel())]


def lengths(found: Found) -> np.ndarray:
    """|dF/dn| of every layer, the output first, at each position: (layers, L)."""
    return np.stack([np.linalg.norm(s, axis=-1) for s in reversed(found.sensitivities.values())])


def most_probable(question: Question, found: Found) -> tuple[str, np.ndarray, int | None]:
    """After the chosen position: the most probable characters, always including the one that follows; their
    probabilities; and the index of the one that follows, or None if nothing follows.
    """
    p = found.probabilities[question.count - 1]
    order = np.argsort(-p, kind="stable")[:_BARS].tolist()
    follows = question.text[question.count : question.count + 1]
    if follows and CHARACTERS.index(follows) not in order:
        order.append(CHARACTERS.index(follows))
    shown = "".join(CHARACTERS[at] for at in order)
    return shown, p[order], shown.index(follows) if follows else None


def layer_label(layer: str) -> str:
    """A layer's name in few letters: 1 attention, in the first block."""
    return re.sub(r"^block(\d)_?(\w*)$", lambda at: f"{at[1]} {at[2] or 'sum'}", layer)


_KEY = Markup(
    '<p class="soft">Upper row: the text. Lower row: the most probable next character; the darker, the more probable. '
    "Click a character, or move the slider. On held-out text the network needs {:.2f} bits per character.</p>"
)
_TRAINING = Markup('<p class="soft">A network is trained when it is first chosen; this takes about half a minute.</p>')
_BACK = Markup(
    '<p class="soft">{} for every layer (rows, from the output down) at every character: how strongly the prediction '
    "depends on it. The darkest cell of a row is its largest value. Later characters have no influence.</p>"
).format(mathml(r"|\partial F / \partial n_t|, \quad F = - \ln \, p"))
_ATTENDED = "Rows: the querying character. Columns: the characters up to it; the darker, the more it attends to them."
_SIGNED = "Rows: neurons. Columns: after each character. Orange: positive; blue: negative."
_OPEN = "Rows: neurons. Columns: at each character. The darker, the wider the gate is open; at most 1."
_WORDS = {
    "attention": "An attention layer (q, k, v are the three blocks of its net inputs), forward and back:",
    "gru": "One step forward (U are the recurrent weights), and back through time, from the last step:",
    "lstm": "One step forward (U are the recurrent weights), and back through time, from the last step:",
}


def activation_equations(of: str) -> Markup:
    """The equations of a network's activation and its way back; they may continue on the next line."""
    activation = "attention" if of == "transformer" else of
    lines = (line.split(r", \quad ") for line in equations.ACTIVATIONS[activation])
    return Markup("<p>{}</p>").format(_WORDS[activation]) + Markup("").join(
        chunks(*(f"{part}," for part in line[:-1]), line[-1]) for line in lines
    )


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        self.question, self.found, self.drawn = _START, None, None  # before the first answer
        self.quiet = False  # while the page itself sets a control
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        self.text = Box(f"text, up to {T} characters", "text", read, _START.text, written=str)
        Form([self.text], lambda values: None, self.typed, self.status)
        add = Button(label="append the most probable", button_type="primary", name="add", **wide)
        self.network = Select(title="network", options=list(PRESETS), value=_START.network, name="network", **wide)
        self.count = page.slider("characters read", 1, len(_START.text), _START.count, 1, "count")
        self.follows = Select(
            title="prediction to explain, F = −ln p of",
            options=[_FOLLOWS, _MOST],
            value=_FOLLOWS,
            name="follows",
            **wide,
        )
        self.view = Select(
            title="look at", options=list(views(_START.network)), value=views(_START.network)[0], name="view", **wide
        )

        self.cells = {
            name: page.source(name, "x", "y", "color", "words", "text", "ink") for name in ("strip", "back", "inside")
        }
        self.marks = {name: page.source(f"{name}-marks", "left", "right", "bottom", "top") for name in self.cells}
        self.next, self.true = page.source("next", "x", "p"), page.source("true", "x", "p")
        self.curves = {name: page.source(name, "x", "y") for name in ("sensitivity", "change")}
        self.plotted = {
            "strip": self.cell_plot("strip", "The text, and the prediction after each character", 2, 74),
            "back": self.cell_plot(
                "back", "How strongly the prediction depends on every layer at every character", 15, 280
            ),
            "inside": self.cell_plot("inside", "What the network attends to, or its states", T, 440),
        }
        label(self.plotted["strip"].yaxis, ["read", "predicted"])
        self.plotted["strip"].xaxis.visible = False
        self.bars = self.bar_plot()
        self.time = self.time_plot()
        self.key, self.legend, self.inside_key = (page.words(name=name) for name in ("key", "legend", "inside-key"))
        self.key.text = str(_TRAINING)
        self.equations, self.compared = page.words(name="equations"), page.words(name="compared")

        for name, plotted in self.plotted.items():
            for event in (Tap, DoubleTap):
                plotted.on_event(event, lambda event, name=name: self.tapped(name, event))
        add.on_click(self.add)
        self.network.on_change("value", lambda attribute, old, new: self.choose_network())
        self.count.on_change("value", lambda attribute, old, new: self.read_to(int(new)))
        self.follows.on_change("value", lambda attribute, old, new: self.ask(follows=new == _FOLLOWS))
        self.view.on_change("value", lambda attribute, old, new: self.look())
        controls = column(self.text.model, add, self.network, self.count, self.follows, self.bars, **wide)
        page.lay_out(
            document,
            TITLE,
            ABOUT,
            status=self.status.model,
            controls=controls,
            main=column(
                self.plotted["strip"], self.key, self.plotted["back"], page.words(_BACK), self.time, self.legend, **wide
            ),
            side=column(self.view, self.plotted["inside"], self.inside_key, **wide),
            below=column(self.equations, self.compared, **wide),
        )
        self.live.ask(self.question)

    # The figures -----------------------------------------------------------------------------------------------------

    def cell_plot(self, name: str, alternative: str, rows: int, height: int):
        """Rows of cells; the columns are the text's characters."""
        plotted = page.plot(
            alternative,
            tools="",
            toolbar_location=None,
            height=height,
            min_border_left=_LEFT,
            x_range=Range1d(0, len(_START.text)),
            y_range=Range1d(rows, 0),
            min_border_right=4,
            name=f"{name}-cells",
        )
        for axis in plotted.axis:
            axis.ticker = FixedTicker(ticks=[])  # kept: for a new ticker Bokeh searches the whole document
        plotted.grid.visible = False
        plotted.axis.axis_line_color = plotted.axis.major_tick_line_color = None
        plotted.axis.minor_tick_line_color = None
        plotted.axis.major_label_standoff = 0
        drawn = plotted.rect(
            "x", "y", 1, 1, source=self.cells[name], fill_color="color", line_color="#e4e7ed", line_width=0.5
        )
        plotted.add_tools(HoverTool(renderers=[drawn], tooltips="@words"))
        plotted.text(
            "x",
            "y",
            "text",
            source=self.cells[name],
            text_color="ink",
            text_font_size="12px",
            text_align="center",
            text_baseline="middle",
        )
        plotted.quad(
            "left",
            "right",
            "bottom",
            "top",
            source=self.marks[name],
            fill_color=None,
            line_color=page.COLORS[2],
            line_width=2,
        )
        return plotted

    def bar_plot(self):
        plotted = page.plot(
            "The most probable next characters",
            tools="",
            toolbar_location=None,
            height=170,
            x_range=Range1d(-0.6, _BARS + 0.6),
            y_range=Range1d(0, 1.18),
            min_border_right=0,
            name="next-bars",
        )
        plotted.vbar("x", top="p", width=0.8, source=self.next, color=_BLUES[-1])
        plotted.scatter("x", "p", source=self.true, marker="inverted_triangle", size=9, color=page.COLORS[2])
        plotted.xaxis.axis_label, plotted.yaxis.axis_label = "next character; ▼ the one in the text", "p"
        plotted.xaxis.ticker, plotted.yaxis.ticker = FixedTicker(ticks=[]), FixedTicker(ticks=[0, 0.5, 1])
        plotted.xgrid.visible = False
        return plotted

    def time_plot(self):
        plotted = page.log_plot(
            "How strongly the prediction depends on every character, on a log scale",
            "",
            "",
            tools="",
            toolbar_location=None,
            height=190,
            min_border_left=_LEFT,
            min_border_right=4,
            name="time",
        )
        for source, color, dash in zip(self.curves.values(), page.COLORS[1::-1], page.DASHES, strict=False):
            plotted.line("x", "y", source=source, color=color, line_width=2, line_dash=dash)
            plotted.scatter("x", "y", source=source, color=color, size=5)
        plotted.xaxis.ticker = FixedTicker(ticks=[])
        plotted.xgrid.visible = False
        return plotted

    # What the visitor does -------------------------------------------------------------------------------------------

    def ask(self, **changes) -> None:
        if not self.quiet:
            self.question = self.question._replace(**changes)
            self.live.ask(self.question)

    def typed(self) -> None:
        """Another text, all of which is read."""
        length, self.quiet = len(self.text.value), True
        self.count.update(end=max(length, 2), value=length)
        self.quiet = False
        self.ask(text=self.text.value, count=length)

    def add(self) -> None:
        """Appends one character; the first one is removed if there would be too many."""
        if self.is_shown:
            text = self.question.text + CHARACTERS[self.found.probabilities[-1].argmax()]
            self.text.write(text[-T:])
            self.typed()

    def choose_network(self) -> None:
        self.quiet = True
        shown = views(self.network.value)
        self.view.update(options=list(shown), value=shown[0])
        self.quiet = False
        self.key.text = str(_TRAINING)
        self.ask(network=self.network.value)

    def read_to(self, count: int) -> None:
        """Reads up to a character; the slider of a text with one character has two places."""
        if not self.quiet:
            count, self.quiet = min(count, len(self.question.text)), True
            self.count.value, self.quiet = count, False
            self.ask(count=count)

    def tapped(self, name: str, event: Tap) -> None:
        if not page.inside(self.plotted[name], event.x, event.y):
            self.status.refuse("click a character to choose how much of the text is read")
            return
        rows = name == "inside" and self.question.network == "transformer"  # there the rows are characters too
        self.count.value = min(1 + int(event.y if rows else event.x), len(self.question.text))

    def look(self) -> None:
        """Shows another part of the result."""
        if not self.quiet and self.is_shown:
            self.draw_inside()

    # What is seen ----------------------------------------------------------------------------------------------------

    @property
    def is_shown(self) -> bool:
        """Whether the result on the page is for the current network and text."""
        return self.drawn == (self.question.network, self.question.text)

    def show(self, answered: tuple[Question, Found]) -> None:
        question, found = answered
        if question is not self.question:
            return  # an older question; the answer to the current one will follow
        changed = not self.is_shown
        self.found, self.drawn = found, (question.network, question.text)
        if changed:  # these do not depend on the prediction that is explained
            self.draw_text()
            self.draw_inside()
            self.key.text = str(_KEY.format(trained(question.network).bits))
            self.equations.text = str(activation_equations(question.network))
        self.draw_bars()
        self.draw_back()
        self.draw_time()
        self.draw_marks()
        rows = [(f"∂F/∂n, {layer}", precise(each)) for layer, each in found.differences.items()]
        rows.append(("∂F/∂ all parameters", precise(found.gradient_difference)))
        third = -(-len(rows) // 3)
        header = "hand-written − jax.grad", "at most"
        parts = [rows[at : at + third] for at in range(0, len(rows), third)]
        self.compared.text = str(page.tables(*(page.Table(header, part) for part in parts)))
        self.say()

    def fill(
        self,
        name: str,
        rows: int,
        colors: list[str],
        words: list[str],
        texts: list[str] | None = None,
        inks: list[str] | None = None,
    ) -> None:
        """A figure's cells, row by row."""
        L, plotted = len(self.question.text), self.plotted[name]
        y, x = np.indices((rows, L))
        nothing = [""] * rows * L
        self.cells[name].data = {
            "x": x.ravel() + 0.5,
            "y": y.ravel() + 0.5,
            "color": colors,
            "words": words,
            "text": texts or nothing,
            "ink": inks or nothing,
        }
        plotted.x_range.end, plotted.y_range.start = L, rows
        label(plotted.xaxis, visible_text(self.question.text))

    def draw_marks(self) -> None:
        """Marks the chosen character: a column in every figure, and with attention the row of its query."""
        count = self.question.count
        for name, mark in self.marks.items():
            left, right, top, bottom = count - 1, count, 0, self.plotted[name].y_range.start
            if name == "inside" and self.question.network == "transformer":
                left, right, top, bottom = 0, count, count - 1, count
            mark.data = {"left": [left], "right": [right], "bottom": [bottom], "top": [top]}

    def draw_text(self) -> None:
        text, p = self.question.text, self.found.probabilities
        predicted, surest = "".join(CHARACTERS[at] for at in p.argmax(axis=1)), p.max(axis=1)
        words = [f"{one}, number {at + 1}" for at, one in enumerate(visible_text(text))]
        words += [
            f"after {at + 1}: {one} with p = {number_text(surest[at])}"
            for at, one in enumerate(visible_text(predicted))
        ]
        shade = np.concatenate([np.zeros(len(text)), surest])
        self.fill("strip", 2, shaded(shade, _BLUES), words, visible_text(text) + visible_text(predicted), ink(shade))

    def draw_bars(self) -> None:
        shown, p, follows = most_probable(self.question, self.found)
        self.next.data = {"x": np.arange(len(shown)), "p": p}
        true = [] if follows is None else [follows]
        self.true.data = {"x": true, "p": [p[at] + 0.09 for at in true]}
        label(self.bars.xaxis, visible_text(shown), 0)

    def draw_back(self) -> None:
        found, text = lengths(self.found), visible_text(self.question.text)
        names = list(reversed(self.found.sensitivities))
        shade = found / np.maximum(found.max(axis=1, keepdims=True), np.finfo(found.dtype).tiny)
        words = [
            f"layer {name}, at {one} (number {at + 1}): {number_text(found[i, at])}"
            for i, name in enumerate(names)
            for at, one in enumerate(text)
        ]
        self.fill("back", len(names), shaded(shade, _ORANGES), words)
        self.plotted["back"].height = 40 + 16 * len(names)
        label(self.plotted["back"].yaxis, list(map(layer_label, names)))

    def draw_inside(self) -> None:
        view, text = self.view.value, visible_text(self.question.text)
        values, attends = self.found.inside[view], self.question.network == "transformer"
        plotted = self.plotted["inside"]
        if attends:
            words = [
                f"{one} (number {i + 1}) to {other} (number {j + 1}): {number_text(values[i, j])}"
                for i, one in enumerate(text)
                for j, other in enumerate(text)
            ]
            self.fill("inside", len(text), shaded(values, _BLUES), words)
            label(plotted.yaxis, text)
        else:
            shown, gate = values.T / max(1.0, np.abs(values).max()), "gate" in view
            palette, low = (_BLUES, 0) if gate else (_DIVERGING, -1)
            words = [
                f"{view} of neuron {i + 1}, after {one} (number {j + 1}): {number_text(values[j, i] + 0)}"
                for i in range(values.shape[1])
                for j, one in enumerate(text)
            ]
            self.fill("inside", values.shape[1], shaded(shown, palette, low), words)
            label(plotted.yaxis, [])
        plotted.yaxis.axis_label = "" if attends else "neurons"
        self.inside_key.text = str(
            Markup('<p class="soft">{}</p>').format(_ATTENDED if attends else _OPEN if gate else _SIGNED)
        )

    def draw_time(self) -> None:
        first, L = self.found.sensitivities[reader(self.question.network)], len(self.question.text)
        curves = {"sensitivity": np.linalg.norm(first, axis=-1), "change": self.found.changes}
        for name, values in curves.items():
            self.curves[name].data = page.curve(values) | {"x": np.arange(len(values)) + 0.5}
        values = np.concatenate(list(curves.values()))
        values = values[np.isfinite(values) & (values > 0)]
        low, high = (values.min(), values.max()) if values.size else (0.1, 1.0)
        self.time.x_range.end = L
        self.time.y_range.update(start=low / 2, end=2 * high)
        label(self.time.xaxis, visible_text(self.question.text))
        layer = reader(self.question.network)
        state = "; dashed: the change of its state, |hₜ − hₜ₋₁|" if self.found.changes.size else ""
        self.legend.text = str(
            Markup('<p class="soft">Solid: |∂F/∂nₜ| of {}, the layer that reads the characters{}.</p>').format(
                layer, state
            )
        )

    def say(self) -> None:
        question, found = self.question, self.found
        shown, p, _ = most_probable(question, found)
        first = ", ".join(f"{one} {100 * each:.0f} %" for one, each in zip(visible_text(shown[:3]), p[:3], strict=True))
        F, most = found.value.item(), max(*found.differences.values(), found.gradient_difference).item()
        wanted = visible_text(found.character)[0]
        text = (
            f"After {question.count} character{'s' if question.count > 1 else ''} the {question.network} predicts "
            f"{first}; F = −ln p({wanted}) = {number_text(F)}; hand-written and jax.grad's gradients differ by at most "
            f"{precise(most)}."
        )
        self.status.say(text)


def label(axis, texts: Sequence[str], middle: float = 0.5) -> None:
    """Replaces the numbers on an axis with a fixed ticker by texts, one per cell."""
    labels = {i + middle: text for i, text in enumerate(texts)}
    if labels != axis[0].major_label_overrides:
        axis.major_label_overrides, axis[0].ticker.ticks = labels, list(labels)


def precise(value: float) -> str:
    """A difference as text."""
    return f"{value:.1e}".replace("-", "−") if value else "0"


DEMONSTRATION = Demonstration("attention", TITLE, ABOUT, _Page, warm_up)
