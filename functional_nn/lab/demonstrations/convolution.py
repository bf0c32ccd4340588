"""Convolution: a digit forward through a network, its sensitivities back, and a kernel's gradient position by
position.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from bokeh.document import Document
from bokeh.events import DoubleTap, MouseMove, Pan, PanStart, Press, PressUp, Tap
from bokeh.layouts import column, row
from bokeh.models import Button, FixedTicker, HoverTool, Range1d, Select
from bokeh.palettes import interp_palette
from bokeh.transform import linear_cmap
from markupsafe import Markup

from functional_nn.lab.demonstrations import page, typed
from functional_nn.lab.demonstrations.boxes import Box, Form
from functional_nn.lab.demonstrations.one_digit import (
    CLASSES,
    CONVOLVED,
    HELD_OUT,
    SIDE,
    Found,
    Question,
    answer,
    check,
    network,
    painted,
    trained,
)
from functional_nn.lab.demonstrations.one_example import ABOVE
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text
from functional_nn.lab.equations import mathml

TITLE = "Convolution"
ABOUT = "A digit forward through two convolutions, its sensitivities back to the pixels, and a kernel's gradient."
_START = (8, 0)  # a digit of which the network is unsure
_POSITION = 35  # a position with a large share
_BY_HAND = "drawn"
_GREYS = interp_palette(("#ffffff", page.INK), 65)
_BLUES = interp_palette(("#ffffff", "#08467e"), 65)  # for numbers >= 0
_DIVERGING = interp_palette(("#08467e", "#ffffff", "#a34700"), 129)  # negative, 0, positive
_PITCH, _LABEL = 1.1, 0.46  # distance between maps, and the height of the line above a row; a map's side is 1
_DARK = 0.7, 0.56  # on darker shades white text is easier to read: for colours, and for greys
_KERNELS = ("window", "share", "sum", "by-hand", "automatic")


def warm_up() -> Iterator[None]:
    """Trains the network and compiles its program."""
    answer(Question(_START, _START[0], None, 0.01))
    yield


# The drawings ---------------------------------------------------------------------------------------------------------


class Maps(NamedTuple):
    """Signals (H, W, S) as rows of S maps: the corner of each and its width, with y upwards."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> tuple[float, float]:
        return max(S for *_, S in self.shapes) * _PITCH, len(self.shapes) * (_PITCH + _LABEL)

    def corner(self, at: int, channel: int) -> tuple[float, float]:
        """The upper left corner of a map in the row `at`."""
        return channel * _PITCH, -at * (_PITCH + _LABEL) - _LABEL

    def pixels(self) -> dict[str, np.ndarray]:
        """Columns x, y, w, h: the pixel of every number, in the order of the signals' numbers with the channel
        first.
        """
        found = []
        for at, (height, width, channels) in enumerate(self.shapes):
            for channel in range(channels):
                left, top = self.corner(at, channel)
                for i, j in np.ndindex(height, width):
                    found.append((left + (j + 0.5) / width, top - (i + 0.5) / height, 1 / width, 1 / height))
        return dict(zip("xywh", np.array(found).T, strict=True))

    def outline(self, at: int, channel: int, window: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
        """left, right, bottom, top of rows i to i' and columns j to j' of a map."""
        (left, top), (height, width, _) = self.corner(at, channel), self.shapes[at]
        i, i_end, j, j_end = window
        return left + j / width, left + j_end / width, top - i_end / height, top - i / height

    def words(self, letter: str) -> list[str]:
        """A description of every pixel."""
        return [
            f"{symbol(letter, name)}, channel {c + 1}, row {i + 1}, column {j + 1}"
            for name, (height, width, channels) in zip(self.names, self.shapes, strict=True)
            for c in range(channels)
            for i, j in np.ndindex(height, width)
        ]

    def pixel(self, x: float, y: float) -> tuple[int, int, int, int] | None:
        """The row, channel, and the pixel's row and column at a point; None between the maps."""
        at, channel = int(-y // (_PITCH + _LABEL)), int(x // _PITCH)
        if not (0 <= at < len(self.shapes) and 0 <= channel < self.shapes[at][2]):
            return None
        (left, top), (height, width, _) = self.corner(at, channel), self.shapes[at]
        i, j = int((top - y) * height // 1), int((x - left) * width // 1)
        return (at, channel, i, j) if 0 <= i < height and 0 <= j < width else None


def forward_maps() -> Maps:
    """The input, and the activations of every layer that has positions."""
    return _maps(network().shapes)


def back_maps() -> Maps:
    """dF/dp, and the sensitivities of every layer that has positions."""
    return _maps(dict(network().inputs) | network().net_shapes)


def _maps(shapes: dict[str, tuple[int, ...]]) -> Maps:
    names = [name for name in ("p", *(layer.name for layer in network().layers)) if len(shapes[name]) == 3]
    return Maps(tuple(names), tuple(shapes[name] for name in names))


def shades(signals: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of the maps, as `Maps.pixels` has them, and the same over the largest of their signal: -1 to 1."""
    in_order = [np.moveaxis(each, -1, 0).ravel() for each in signals]
    return np.concatenate(in_order), np.concatenate([each / (np.abs(each).max() or 1.0) for each in in_order])


def kernels(found: Found, channel: int, position: int) -> dict[str, np.ndarray]:
    """The pictures (3, 3) of a channel's kernel at a position, by `_KERNELS`."""
    own = (tree[CONVOLVED]["weights"]["p"][channel, :, :, 0] for tree in (found.gradients, found.automatic))
    window, share, total = found.windows[position], found.shares[position, channel], found.sums[position, channel]
    return dict(zip(_KERNELS, (window, share, total, *own), strict=True))


_TITLES = {
    "window": "xₚ: the window",
    "share": "sₚ xₚ: its share",
    "sum": "sum of the shares",
    "by-hand": "∂F/∂W, hand-written",
    "automatic": "∂F/∂W by jax.grad",
}
_FORWARD = mathml(r"n_p = \sum_i W_i \, x_{p+i} + b, \quad a_p = \text{relu}(n_p):")
_SHOWN = Markup(
    '<p class="soft">{} The darkest pixel of a row is its largest value; ▼ the target. Click a map of layer 1 to '
    "choose its channel and the position. The trained network classifies {:.1f} % of the held-out digits correctly.</p>"
)
_SENT_BACK = Markup(
    '<p class="soft">{} Orange: F grows with the value; blue: F falls. An inactive relu passes nothing back; max_pool '
    "passes everything to the largest value.</p>"
).format(mathml(r"\partial F / \partial x_p = \sum_i W_i^{T} s_{p-i}, \quad s_p = f'(n_p) \, g_p:"))
_TOGETHER = Markup(
    "<p>{} the same kernel is used on every window, so its derivative is a sum over the positions p: each adds its "
    "window times its sensitivity.</p>"
).format(mathml(r"\partial F / \partial W_i = \sum_p s_p \, x_{p+i}, \quad s_p = \partial F / \partial n_p:"))


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        self.question, self.found, self.updates = Question(_START, _START[0], None, 0.01), None, 0
        self.picture, self.stroke = None, None  # before the first answer; where a stroke was last
        self.quiet = False  # while the page itself sets a control
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        classes = [str(digit) for digit in range(CLASSES)]
        self.ink = page.slider("ink (0 erases)", 0, 1, 1, 1 / 16, "ink", format="0.00")
        clear = Button(label="clear", name="clear", **wide)
        self.digit = Select(
            title="held-out digit", options=[*classes, _BY_HAND], value=classes[_START[0]], name="digit", **wide
        )
        self.number = page.slider("picture number", 1, HELD_OUT, _START[1] + 1, 1, "number")
        self.target = Select(title="target", options=classes, value=self.digit.value, name="target", **wide)
        self.rate = Box("learning rate", "rate", typed.number, self.question.rate)
        Form([self.rate], lambda values: check(*values), lambda: self.ask(rate=self.rate.value), self.status)
        step = Button(label="train one step", button_type="primary", name="train", **wide)
        again = Button(label="undo all steps", name="again", **wide)
        channels = next(layer.size for layer in network().layers if layer.name == CONVOLVED)
        self.channel = Select(
            title="kernel of channel",
            options=[str(i + 1) for i in range(channels)],
            value="1",
            name="channel",
            width=130,
        )
        self.position = page.slider("position p", 0, SIDE * SIDE - 1, _POSITION, 1, "position")

        self.ground = page.source("picture", "x", "y", "ink")
        self.signals = {
            name: page.source(name, "x", "y", "w", "h", "value", "shade", "words") for name in ("forward", "back")
        }
        self.marks = {
            name: page.source(f"{name}-marks", "left", "right", "bottom", "top")
            for name in ("drawing", "forward", "back")
        }
        self.labels = {name: page.source(f"{name}-labels", "x", "y", "text") for name in ("forward", "back")}
        self.outputs = page.source("outputs", "x", "a", "s", "a_color", "s_color")
        self.wanted = page.source("wanted", "x", "y")
        self.kernels = {
            name: page.source(f"kernel-{name}", "x", "y", "value", "shade", "text", "ink") for name in _KERNELS
        }
        self.laid = {"forward": forward_maps(), "back": back_maps()}
        self.drawing = self.canvas()
        self.plotted = {
            "forward": self.maps("forward", "The digit and the activations of three layers, as maps", _BLUES, 0),
            "back": self.maps(
                "back", "Derivatives with respect to the pixels and the net inputs of three layers", _DIVERGING, -1
            ),
        }
        self.explained, self.key = page.words(name="explained"), page.words(name="key")
        self.compared = page.words(name="compared", min_width=235)

        for event in (PanStart, Press, Tap, DoubleTap):  # a second click soon after the first is not a Tap
            self.drawing.on_event(event, self.begin_stroke)
        self.drawing.on_event(Pan, self.continue_stroke)
        self.drawing.on_event(MouseMove, lambda event: self.continue_stroke(event) if self.pressed else None)
        self.drawing.on_event(PressUp, self.lift)
        self.pressed = False
        for name, plotted in self.plotted.items():
            for event in (Tap, DoubleTap):
                plotted.on_event(event, lambda event, name=name: self.tapped(name, event))
        clear.on_click(lambda: self.paint(np.zeros((SIDE, SIDE))))
        for control in self.digit, self.number:
            control.on_change("value", lambda attribute, old, new: self.choose())
        self.target.on_change("value", lambda attribute, old, new: self.ask(target=int(new)))
        step.on_click(self.train)
        again.on_click(self.reset)
        for control in self.channel, self.position:
            control.on_change("value", lambda attribute, old, new: self.moved())
        controls = column(
            self.drawing,
            row(self.ink, clear, **wide),
            row(self.digit, self.target, **wide),
            self.number,
            self.rate.model,
            row(step, again, **wide),
            **wide,
        )
        pictures = row(*map(self.kernel, _KERNELS), self.compared, stylesheets=[page.wraps()], **wide)
        page.lay_out(
            document,
            TITLE,
            ABOUT,
            status=self.status.model,
            controls=controls,
            main=column(self.plotted["forward"], self.bars("a", 0), self.key, **wide),
            side=column(self.plotted["back"], self.bars("s", -1), page.words(_SENT_BACK), **wide),
            below=column(
                page.words(_TOGETHER), row(self.channel, self.position, **wide), self.explained, pictures, **wide
            ),
        )
        self.live.ask(self.question)

    # The figures -----------------------------------------------------------------------------------------------------

    def canvas(self):
        """The drawing of the digit: x to the right and y downwards, in pixels."""
        plotted = page.plot(
            "The digit: draw on it with the mouse or a finger",
            tools="",
            toolbar_location=None,
            x_range=Range1d(0, SIDE),
            y_range=Range1d(SIDE, 0),
            width=232,
            height=232,
            sizing_mode="fixed",
            min_border=2,
            name="drawing",
            stylesheets=[page.sheet("figures"), ":host { touch-action: none; cursor: crosshair; }"],
        )
        plotted.axis.visible = plotted.grid.visible = False
        plotted.outline_line_color = page.INK
        plotted.rect(
            "x", "y", 1, 1, source=self.ground, line_color="#e4e7ed", fill_color=linear_cmap("ink", _GREYS, 0, 1)
        )
        self.outlined(plotted, "drawing")
        return plotted

    def maps(self, name: str, alternative: str, palette: Sequence[str], low: float):
        """One of `signals`, each row below a line that describes it."""
        source, (width, height) = self.signals[name], self.laid[name].size
        plotted = page.plot(
            alternative,
            tools="",
            toolbar_location=None,
            x_range=Range1d(-0.04, width),
            y_range=Range1d(-height, 0),
            width=500,
            height=round(500 * height / width),
            sizing_mode="scale_width",
            frame_align=False,
            min_border=0,
            name=f"{name}-maps",
        )
        plotted.axis.visible = plotted.grid.visible = False
        drawn = plotted.rect(
            "x",
            "y",
            "w",
            "h",
            source=source,
            line_color="#e4e7ed",
            line_width=0.5,
            fill_color=linear_cmap("shade", palette, low, 1),
        )
        plotted.add_tools(
            HoverTool(renderers=[drawn], tooltips="@words: @value{%.4g}", formatters={"@value": "printf"})
        )
        plotted.text(
            "x",
            "y",
            "text",
            source=self.labels[name],
            text_font_size="11px",
            text_color=page.INK,
            text_baseline="middle",
        )
        self.outlined(plotted, name)
        return plotted

    def outlined(self, plotted, name: str) -> None:
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

    def bars(self, letter: str, low: float):
        output = network().output.name.translate(ABOVE)
        plotted = page.plot(
            f"{letter} of the ten outputs",
            tools="",
            toolbar_location=None,
            height=120,
            x_range=Range1d(-0.6, CLASSES - 0.4),
            y_range=Range1d(low, 1.22),
            min_border_right=0,
            name=f"bars-{letter}",
        )
        plotted.vbar("x", top=letter, width=0.8, source=self.outputs, color=f"{letter}_color")
        plotted.scatter("x", "y", source=self.wanted, marker="inverted_triangle", size=9, color=page.COLORS[2])
        plotted.xaxis.ticker = FixedTicker(ticks=list(range(CLASSES)))
        plotted.yaxis.ticker = FixedTicker(ticks=[low, 0, 1] if low else [0, 0.5, 1])
        plotted.xgrid.visible = False
        plotted.yaxis.axis_label = f"{letter}{output}"
        return plotted

    def kernel(self, name: str):
        plotted = page.plot(
            _TITLES[name],
            tools="",
            toolbar_location=None,
            x_range=Range1d(0, 3),
            y_range=Range1d(3, 0),
            width=168,
            height=150,
            sizing_mode="fixed",
            min_border=2,
            title=_TITLES[name],
            name=f"kernel-{name}-picture",
        )
        plotted.axis.visible = plotted.grid.visible = False
        plotted.title.text_font_size, plotted.title.text_color, plotted.title.align = "13px", page.INK, "center"
        low, palette = (0, _GREYS) if name == "window" else (-1, _DIVERGING)
        source = self.kernels[name]
        plotted.rect(
            "x", "y", 1, 1, source=source, line_color=page.GREY, fill_color=linear_cmap("shade", palette, low, 1)
        )
        plotted.text(
            "x",
            "y",
            "text",
            source=source,
            text_font_size="11px",
            text_color="ink",
            text_align="center",
            text_baseline="middle",
        )
        return plotted

    # What the visitor does -------------------------------------------------------------------------------------------

    def ask(self, **changes) -> None:
        if not self.quiet:
            self.question = self.question._replace(**changes)
            self.live.ask(self.question)

    def choose(self) -> None:
        """Chooses one of the held-out digits, with its label as the target."""
        if self.quiet:
            return
        if self.digit.value == _BY_HAND:
            self.number.disabled = True  # the picture may be drawn on
            return
        digit, self.quiet = int(self.digit.value), True
        self.target.value, self.number.disabled, self.quiet = self.digit.value, False, False
        self.ask(picture=(digit, self.number.value - 1), target=digit)

    def begin_stroke(self, event) -> None:
        self.stroke, self.pressed = (event.x, event.y), isinstance(event, Press)
        self.continue_stroke(event)

    def continue_stroke(self, event) -> None:
        """Paints from where the stroke was last."""
        if self.picture is None or self.stroke is None or None in (event.x, event.y):
            return  # there is no picture yet to draw on
        start, self.stroke = self.stroke, (event.x, event.y)
        changed = painted(self.picture, start, self.stroke, self.ink.value)
        if not np.array_equal(changed, self.picture):
            self.paint(changed)

    def lift(self, event) -> None:
        self.pressed = False

    def paint(self, picture: np.ndarray) -> None:
        """Shows another picture at once."""
        self.quiet = True
        self.digit.value, self.number.disabled, self.quiet = _BY_HAND, True, False
        self.picture = picture
        self.draw_picture()
        self.ask(picture=picture)

    def tapped(self, name: str, event: Tap) -> None:
        hit = None if event.x is None else self.laid[name].pixel(event.x, event.y)
        if hit is None or self.laid[name].names[hit[0]] != CONVOLVED:
            self.status.refuse(f"click a map of layer {CONVOLVED} to choose the kernel's channel and the position")
            return
        _, channel, i, j = hit
        self.quiet = True
        self.channel.value, self.position.value, self.quiet = self.channel.options[channel], i * SIDE + j, False
        self.moved()

    def moved(self) -> None:
        """Shows another channel or position of the result."""
        if not self.quiet and self.found is not None:
            self.draw_kernels()
            self.say()

    def train(self) -> None:
        """Takes a step of gradient descent on the picture."""
        if self.found is not None:
            found, self.found = self.found, None  # not twice from the same parameters
            self.updates += 1
            self.ask(params=found.updated)

    def reset(self) -> None:
        self.updates = 0
        self.ask(params=None)

    # What is seen ----------------------------------------------------------------------------------------------------

    def show(self, answered: tuple[Question, Found]) -> None:
        question, found = answered
        if question is not self.question:
            return  # an older question; the answer to the current one will follow
        self.found, self.picture = found, found.picture
        self.draw_picture()
        self.draw_maps("forward", found.activations)
        self.draw_maps("back", {"p": found.input_gradient} | found.sensitivities)
        output = network().output.name
        a, s = found.activations[output], found.sensitivities[output]
        self.outputs.data = {
            "x": np.arange(CLASSES),
            "a": a,
            "a_color": [_BLUES[-1]] * CLASSES,
            "s": s,
            "s_color": np.where(s < 0, _DIVERGING[0], _DIVERGING[-1]),
        }
        self.wanted.data = {"x": [question.target], "y": [1.1]}
        rows = [(name, f"{each:.1e}" if each else "0") for name, each in found.differences.items()]
        self.compared.text = str(page.tables(page.Table(("hand-written − jax.grad", "at most"), rows)))
        self.key.text = str(_SHOWN.format(_FORWARD, 100 * trained().right))
        self.draw_kernels()
        self.say()

    def draw_picture(self) -> None:
        rows, columns = np.indices((SIDE, SIDE))
        self.ground.data = {"x": columns.ravel() + 0.5, "y": rows.ravel() + 0.5, "ink": self.picture.ravel()}

    def draw_maps(self, name: str, signals: dict[str, np.ndarray]) -> None:
        laid, letter = self.laid[name], "a" if name == "forward" else "s"
        shown = [signals[each] for each in laid.names]
        value, shade = shades(shown)
        self.signals[name].data = laid.pixels() | {"value": value, "shade": shade, "words": laid.words(letter)}
        corners = [laid.corner(at, 0) for at in range(len(laid.names))]
        texts = [f"{described(letter, each)}: {extent(signal)}" for each, signal in zip(laid.names, shown, strict=True)]
        self.labels[name].data = {
            "x": [x for x, _ in corners],
            "y": [y + 0.45 * _LABEL for _, y in corners],
            "text": texts,
        }

    def draw_kernels(self) -> None:
        channel, position = self.channel.options.index(self.channel.value), self.position.value
        pictures = kernels(self.found, channel, position)
        largest = max(np.abs(self.found.sums[:, channel]).max(), np.abs(pictures["by-hand"]).max()) or 1.0
        i, j = divmod(position, SIDE)
        rows, columns = np.indices((3, 3))
        for name, values in pictures.items():
            shade = values.ravel() / (1.0 if name == "window" else largest)
            self.kernels[name].data = {
                "x": columns.ravel() + 0.5,
                "y": rows.ravel() + 0.5,
                "value": values.ravel(),
                "shade": shade,
                "text": [short(value) for value in values.ravel()],
                "ink": np.where(np.abs(shade) > _DARK[name == "window"], "#ffffff", page.INK),
            }
        s = self.found.sensitivities[CONVOLVED][i, j, channel]
        inactive = self.found.activations[CONVOLVED][i, j, channel] == 0
        rest = " Its relu is inactive, so its share is zero." if inactive else ""
        beyond = " Part of its window is outside the picture, where pixels are 0." if {i, j} & {0, SIDE - 1} else ""
        self.explained.text = str(
            Markup(
                "<p>Position {} is row {}, column {}: s<sub>p</sub> of channel {} is <b>{}</b>.{}{} "
                "The sum is over positions 0 to {}.</p>"
            ).format(position, i + 1, j + 1, channel + 1, number_text(s + 0), rest, beyond, position)
        )
        self.mark(channel, i, j)

    def mark(self, channel: int, i: int, j: int) -> None:
        """Marks the window in the picture, its position in the layer, and the channel."""
        window = max(i - 1, 0), min(i + 2, SIDE), max(j - 1, 0), min(j + 2, SIDE)
        self.marks["drawing"].data = {
            "left": [window[2]],
            "right": [window[3]],
            "bottom": [window[1]],
            "top": [window[0]],
        }
        for name, laid in self.laid.items():
            at = laid.names.index(CONVOLVED)
            boxes = [
                laid.outline(0, 0, window),
                laid.outline(at, channel, (0, SIDE, 0, SIDE)),
                laid.outline(at, channel, (i, i + 1, j, j + 1)),
            ]
            edges = zip(*boxes, strict=True)
            self.marks[name].data = dict(zip(("left", "right", "bottom", "top"), map(list, edges), strict=True))

    def say(self) -> None:
        a, target = self.found.outputs, self.question.target
        made = f" after {self.updates} step{'s' if self.updates > 1 else ''}" if self.updates else ""
        F, new = self.found.value.item(), self.found.updated_value.item()
        text = (
            f"The network predicts {a.argmax()} ({100 * a.max():.3g} %); the target is {target} "
            f"({100 * a[target]:.3g} %): F = {number_text(F)}{made}; a step changes it to {number_text(new)}."
        )
        if np.isfinite(F) and np.isfinite(new) and new <= F:
            self.status.say(text)
        else:
            self.status.warn(text)


def symbol(letter: str, name: str) -> str:
    """The symbol of a row of maps: p, a¹, and back ∂F/∂p, s¹."""
    if not name.isdigit():
        return name if letter == "a" else f"∂F/∂{name}"
    return f"{letter}{name.translate(ABOVE)}"


def described(letter: str, name: str) -> str:
    """The same with its definition: a¹ = relu of conv((3, 3)), s¹ = ∂F/∂n¹."""
    if not name.isdigit():
        return f"{symbol(letter, name)}, {'the' if letter == 'a' else 'of the'} pixels"
    if letter == "s":
        return f"{symbol(letter, name)} = ∂F/∂{symbol('n', name)}"
    layer = next(layer for layer in network().layers if layer.name == name)
    made = (layer.activation.name, *(by.name for _, by in layer.reads))
    return f"{symbol(letter, name)} = {' of '.join(word for word in made if word not in ('linear', 'identity'))}"


def extent(signal: np.ndarray) -> str:
    """The smallest and the largest of its numbers."""
    return f"{number_text(signal.min() + 0)} to {number_text(signal.max() + 0)}"


def short(value: float) -> str:
    """A number in a pixel: three digits, or two with a power of ten."""
    text = f"{value + 0:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
    return text.replace("-", "−").replace("e−0", "e−")


DEMONSTRATION = Demonstration("convolution", TITLE, ABOUT, _Page, warm_up)
