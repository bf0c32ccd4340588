"""Attention and time: a text, what a network predicts of it, what it attends to, and one prediction's way back."""

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
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, said
from functional_nn.lab.equations import mathml

TITLE = "Attention and time"
ABOUT = "What a small network predicts of a text, what it attends to, and how one prediction depends on what was read."
_START = Question("transformer", "the value of the expression is", 19, True)
_FOLLOWS, _MOST = "what follows in the text", "the most probable"
_BARS = 10
_BLUES = interp_palette(("#ffffff", "#08467e"), 65)  # of what is 0 or more
_ORANGES = interp_palette(("#ffffff", "#a34700"), 65)  # of sensitivities' lengths
_DIVERGING = interp_palette(("#08467e", "#ffffff", "#a34700"), 129)  # negative, 0, positive
_DARK = 0.6  # the shade from which white is read better than ink
_LEFT = 74  # pixels beside every figure whose columns are characters, so that they stand below each other


def warm_up() -> Iterator[None]:
    """Trains the networks and compiles their programs."""
    for name in PRESETS:
        answer(_START._replace(network=name))
        yield


# What is drawn --------------------------------------------------------------------------------------------------------


def seen(text: str) -> list[str]:
    """Its characters, a space as one can see it."""
    return ["␣" if one == " " else one for one in text]


def shaded(values: np.ndarray, palette: Sequence[str], low: float = 0.0) -> list[str]:
    """A colour for each number from `low` to 1."""
    at = np.clip((values.ravel() - low) / (1 - low), 0, 1)
    return [palette[each] for each in np.rint(at * (len(palette) - 1)).astype(int)]


def ink(shade: np.ndarray) -> list[str]:
    """Of what is written on it."""
    return ["#ffffff" if each > _DARK else page.INK for each in np.abs(shade.ravel())]


def lengths(found: Found) -> np.ndarray:
    """|dF/dn| of every layer, the output first, at each position: (layers, L)."""
    return np.stack([np.linalg.norm(s, axis=-1) for s in reversed(found.sensitivities.values())])


def most_probable(question: Question, found: Found) -> tuple[str, np.ndarray, int | None]:
    """After the chosen position: the characters that are most probable, among them at least the one that follows, their
    probabilities, and which of them follows, where one does.
    """
    p = found.probabilities[question.count - 1]
    order = np.argsort(-p, kind="stable")[:_BARS].tolist()
    follows = question.text[question.count : question.count + 1]
    if follows and CHARACTERS.index(follows) not in order:
        order.append(CHARACTERS.index(follows))
    shown = "".join(CHARACTERS[at] for at in order)
    return shown, p[order], shown.index(follows) if follows else None


def called(layer: str) -> str:
    """A layer of the network in few letters: 1 attention, of the first block."""
    return re.sub(r"^block(\d)_?(\w*)$", lambda at: f"{at[1]} {at[2] or 'sum'}", layer)


_KEY = Markup(
    '<p class="soft">Above, what was read; below it, what the network holds most probable next, the darker the surer. '
    "Click a character, or move the slider. Of a text that was held out it needs {:.2f} bits a character.</p>"
)
_TRAINING = Markup('<p class="soft">A network is trained when it is first asked for: about half a minute.</p>')
_BACK = Markup(
    '<p class="soft">{} of every layer (rows, from the output down) at every character: how far the prediction depends '
    "on it. The darkest of a row is its largest. Nothing comes back from later characters.</p>"
).format(mathml(r"|\partial F / \partial n_t|, \quad F = - \ln \, p"))
_ATTENDED = "Rows: the character that asks. Columns: those up to it, the darker the more it attends to them."
_SIGNED = "Rows: neurons. Columns: after each character. Orange: positive; blue: negative."
_OPEN = "Rows: neurons. Columns: at each character. The darker, the wider the gate is open, to 1."
_WORDS = {
    "attention": "Every attention layer, q, k, v the three blocks of its net inputs, and the way back through it:",
    "gru": "Every step, U the recurrent weights, and the way back through time, from the last step:",
    "lstm": "Every step, U the recurrent weights, and the way back through time, from the last step:",
}


def told(of: str) -> Markup:
    """What a network's activation is, and its way back: the equations, which may go on in the next line."""
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
        self.text = Box(f"a text, up to {T} characters", "text", read, _START.text, written=str)
        Form([self.text], lambda values: None, self.typed, self.status)
        add = Button(label="add the most probable", button_type="primary", name="add", **wide)
        self.network = Select(title="network", options=list(PRESETS), value=_START.network, name="network", **wide)
        self.count = page.slider("characters read", 1, len(_START.text), _START.count, 1, "count")
        self.follows = Select(
            title="the prediction, F = −ln p of", options=[_FOLLOWS, _MOST], value=_FOLLOWS, name="follows", **wide
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
            "strip": self.cell_plot("strip", "The text, and what is predicted after each character", 2, 74),
            "back": self.cell_plot("back", "How far the prediction depends on every layer at every character", 15, 280),
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
        """Rows of cells, whose columns are the text's characters."""
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
            axis.ticker = FixedTicker(ticks=[])  # kept: a new one has the whole document looked through
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
        plotted.xaxis.axis_label, plotted.yaxis.axis_label = "next; ▼ what follows in the text", "p"
        plotted.xaxis.ticker, plotted.yaxis.ticker = FixedTicker(ticks=[]), FixedTicker(ticks=[0, 0.5, 1])
        plotted.xgrid.visible = False
        return plotted

    def time_plot(self):
        plotted = page.log_plot(
            "How far the prediction depends on every character, on a log scale",
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
        """Another text, of which all is read."""
        length, self.quiet = len(self.text.value), True
        self.count.update(end=max(length, 2), value=length)
        self.quiet = False
        self.ask(text=self.text.value, count=length)

    def add(self) -> None:
        """One character more, without the first where there would be too many."""
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
        """The slider of a text of one character has two places."""
        if not self.quiet:
            count, self.quiet = min(count, len(self.question.text)), True
            self.count.value, self.quiet = count, False
            self.ask(count=count)

    def tapped(self, name: str, event: Tap) -> None:
        if not page.inside(self.plotted[name], event.x, event.y):
            self.status.refuse("click a character: it chooses how much of the text is read")
            return
        asks = name == "inside" and self.question.network == "transformer"  # whose rows are characters, too
        self.count.value = min(1 + int(event.y if asks else event.x), len(self.question.text))

    def look(self) -> None:
        """At another part of what was found."""
        if not self.quiet and self.is_shown:
            self.draw_inside()

    # What is seen ----------------------------------------------------------------------------------------------------

    @property
    def is_shown(self) -> bool:
        """Whether what was found is of the network and the text that are asked for."""
        return self.drawn == (self.question.network, self.question.text)

    def show(self, answered: tuple[Question, Found]) -> None:
        question, found = answered
        if question is not self.question:
            return  # no longer asked; the right one is on its way
        anew = not self.is_shown
        self.found, self.drawn = found, (question.network, question.text)
        if anew:  # what the choice of a prediction leaves as it is
            self.draw_text()
            self.draw_inside()
            self.key.text = str(_KEY.format(trained(question.network).bits))
            self.equations.text = str(told(question.network))
        self.draw_bars()
        self.draw_back()
        self.draw_time()
        self.draw_marks()
        rows = [(f"∂F/∂n, {layer}", precise(each)) for layer, each in found.differences.items()]
        rows.append(("∂F/∂ all parameters", precise(found.gradient_difference)))
        third = -(-len(rows) // 3)
        header = "by hand − jax.grad", "at most"
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
        label(plotted.xaxis, seen(self.question.text))

    def draw_marks(self) -> None:
        """The chosen character, a column of every figure, and of attention the row of what it asks."""
        count = self.question.count
        for name, mark in self.marks.items():
            left, right, top, bottom = count - 1, count, 0, self.plotted[name].y_range.start
            if name == "inside" and self.question.network == "transformer":
                left, right, top, bottom = 0, count, count - 1, count
            mark.data = {"left": [left], "right": [right], "bottom": [bottom], "top": [top]}

    def draw_text(self) -> None:
        text, p = self.question.text, self.found.probabilities
        predicted, surest = "".join(CHARACTERS[at] for at in p.argmax(axis=1)), p.max(axis=1)
        words = [f"{one}, number {at + 1}" for at, one in enumerate(seen(text))]
        words += [f"after {at + 1}: {one} with p = {said(surest[at])}" for at, one in enumerate(seen(predicted))]
        shade = np.concatenate([np.zeros(len(text)), surest])
        self.fill("strip", 2, shaded(shade, _BLUES), words, seen(text) + seen(predicted), ink(shade))

    def draw_bars(self) -> None:
        shown, p, follows = most_probable(self.question, self.found)
        self.next.data = {"x": np.arange(len(shown)), "p": p}
        true = [] if follows is None else [follows]
        self.true.data = {"x": true, "p": [p[at] + 0.09 for at in true]}
        label(self.bars.xaxis, seen(shown), 0)

    def draw_back(self) -> None:
        found, text = lengths(self.found), seen(self.question.text)
        names = list(reversed(self.found.sensitivities))
        shade = found / np.maximum(found.max(axis=1, keepdims=True), np.finfo(found.dtype).tiny)
        words = [
            f"layer {name}, at {one} (number {at + 1}): {said(found[i, at])}"
            for i, name in enumerate(names)
            for at, one in enumerate(text)
        ]
        self.fill("back", len(names), shaded(shade, _ORANGES), words)
        self.plotted["back"].height = 40 + 16 * len(names)
        label(self.plotted["back"].yaxis, list(map(called, names)))

    def draw_inside(self) -> None:
        view, text = self.view.value, seen(self.question.text)
        values, attends = self.found.inside[view], self.question.network == "transformer"
        plotted = self.plotted["inside"]
        if attends:
            words = [
                f"{one} (number {i + 1}) to {other} (number {j + 1}): {said(values[i, j])}"
                for i, one in enumerate(text)
                for j, other in enumerate(text)
            ]
            self.fill("inside", len(text), shaded(values, _BLUES), words)
            label(plotted.yaxis, text)
        else:
            shown, gate = values.T / max(1.0, np.abs(values).max()), "gate" in view
            palette, low = (_BLUES, 0) if gate else (_DIVERGING, -1)
            words = [
                f"{view} of neuron {i + 1}, after {one} (number {j + 1}): {said(values[j, i] + 0)}"
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
        label(self.time.xaxis, seen(self.question.text))
        layer = reader(self.question.network)
        also = "; dashed, how far its state moves, |hₜ − hₜ₋₁|" if self.found.changes.size else ""
        self.legend.text = str(
            Markup('<p class="soft">Solid: |∂F/∂nₜ| of {}, which reads the characters{}.</p>').format(layer, also)
        )

    def say(self) -> None:
        question, found = self.question, self.found
        shown, p, _ = most_probable(question, found)
        first = ", ".join(f"{one} {100 * each:.0f} %" for one, each in zip(seen(shown[:3]), p[:3], strict=True))
        F, most = found.value.item(), max(*found.differences.values(), found.gradient_difference).item()
        wanted = seen(found.character)[0]
        text = (
            f"After {question.count} character{'s' if question.count > 1 else ''} the {question.network} says "
            f"{first}; F = −ln p({wanted}) = {said(F)}; by hand and by jax.grad: at most {precise(most)} "
            "apart."
        )
        self.status.say(text)


def label(axis, texts: Sequence[str], middle: float = 0.5) -> None:
    """Texts in place of the numbers on an axis whose ticker is fixed, one for each cell."""
    told = {i + middle: text for i, text in enumerate(texts)}
    if told != axis[0].major_label_overrides:
        axis.major_label_overrides, axis[0].ticker.ticks = told, list(told)


def precise(value: float) -> str:
    """A difference."""
    return f"{value:.1e}".replace("-", "−") if value else "0"


DEMONSTRATION = Demonstration("attention", TITLE, ABOUT, _Page, warm_up)
