"""Gradient descent on a performance surface (Hagan's dl3gd): a click sets the start; sliders set the rate and the
steps.

The rate's slider is marked where gradient descent becomes unstable, 2 / lambda_max (Hagan's Eq. 3.24 and following):
for a quadratic everywhere, otherwise for the quadratic that approximates F at the end of the path.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from bokeh.document import Document
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import InlineStyleSheet, Select, Slider
from markupsafe import Markup

from functional_nn import training
from functional_nn.lab.demonstrations import contours, page, surfaces, typed
from functional_nn.lab.demonstrations.boxes import Box, Form, Start
from functional_nn.lab.demonstrations.contours import Drawing
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text
from functional_nn.lab.demonstrations.surfaces import STEPS, Bend, Path, Surface
from functional_nn.lab.equations import mathml
from functional_nn.optimizers import first_order

TITLE = "Gradient descent"
ABOUT = "Click on the surface to start there. Below the marked rate gradient descent converges; above, it cannot."


class Question(NamedTuple):
    """What is requested: the values of all controls of the page."""

    surface: str
    examples: str
    rate: float
    steps: int
    start: tuple[float, float]


class Answer(NamedTuple):
    """The path, and the Hessian at its last finite point."""

    question: Question
    path: Path
    bend: Bend


def plans(surface: Surface) -> dict[str, training.BatchPlan]:
    """The examples that an update uses, by the page's names."""
    return {
        "all examples (batch)": training.batch(),
        f"mini-batches of {surface.batch_size}": training.minibatch(surface.batch_size),
        "one at a time, in order (stochastic)": training.stochastic(shuffle="never"),
        "one at a time, at random (stochastic)": training.stochastic(),
    }


def answer(question: Question) -> Answer:
    """The answer to a question. Raises ValueError for what is out of range."""
    surface = surfaces.surfaces()[question.surface]
    _ = surface.grid  # computed here, because the page only draws it
    plan, constants = plans(surface)[question.examples], {"learning_rate": question.rate}
    path = surfaces.descend(surface, question.start, question.steps, "gd", constants, plan)
    return Answer(question, path, surfaces.bend(surface, path.points[path.last]))


def warm_up() -> Iterator[None]:
    """Compiles every path of the page, and the surfaces' drawings."""
    for surface in surfaces.surfaces().values():
        for examples in plans(surface):
            answer(Question(surface.name, examples, surface.rate, 1, surface.start))
            yield


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        every = surfaces.surfaces()
        first = next(iter(every.values()))
        self.quiet = False  # while the page itself sets a control
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        self.surface = Select(title="surface", options=list(every), value=first.name, name="surface", **wide)
        options = list(plans(first))
        self.examples = Select(title="gradient from", options=options, value=options[0], name="examples", **wide)
        # One slider per surface: a slider's keys would not notice a changed end.
        self.sliders = {
            surface.name: page.slider(
                "learning rate",
                0,
                surface.largest_rate,
                surface.rate,
                surface.largest_rate / 300,
                f"rate-{number}",
                format="0.[0000]",
                stylesheets=[page.sheet("controls"), InlineStyleSheet(css="")],
                visible=surface is first,
            )
            for number, surface in enumerate(every.values())
        }
        self.typed = Box("or any rate", "typed-rate", typed.number, first.rate)
        self.rates = Form([self.typed], lambda values: first_order.factory("gd")(*values), self.new_rate, self.status)
        self.steps = page.slider("updates", 1, STEPS, 100, 1, "steps")
        self.start = Start(first.labels, first.start, self.status, self.ask)
        self.path, self.values = page.source("path", "x", "y"), page.source("values", "x", "y")
        self.ends = page.source("ends", "x", "y", "marker", "fill")
        self.arrows = page.source("arrows", "x0", "y0", "x1", "y1")
        self.names = page.source("names", "x", "y", "text", "align", "offset")
        self.drawing = Drawing("Contours of F over two weights, and the path of gradient descent", 470, first)
        self.plotted = self.drawing.figure
        contours.draw_path(self.plotted, self.path, self.ends)
        color = page.COLORS[1]
        self.plotted.segment("x0", "y0", "x1", "y1", source=self.arrows, color=color, line_width=2)
        self.plotted.text(
            "x",
            "y",
            "text",
            source=self.names,
            text_color=color,
            text_font_size="12px",
            text_align="align",
            x_offset="offset",
        )
        self.error = contours.error_plot(300)
        self.error.line("x", "y", source=self.values, color=page.COLORS[0], line_width=2)
        self.readout = page.words(name="readout")

        self.surface.on_change("value", self.other_surface)
        for control in (self.examples, self.steps):
            control.on_change("value", lambda attribute, old, new: self.ask())
        for slider in self.sliders.values():
            slider.on_change("value", lambda attribute, old, new: self.slid(new))
        self.plotted.on_event(Tap, lambda event: self.start.tapped(self.plotted, event))
        controls = column(
            self.surface,
            self.examples,
            *self.sliders.values(),
            self.typed.model,
            self.steps,
            row(*(box.model for box in self.start.boxes), **wide),
            _equations(),
            **wide,
        )
        side = column(self.error, self.readout, **wide)
        page.lay_out(document, TITLE, ABOUT, status=self.status.model, controls=controls, main=self.plotted, side=side)
        self.ask()

    # What the visitor does -------------------------------------------------------------------------------------------

    def other_surface(self, attribute, old, new) -> None:
        surface = surfaces.surfaces()[new]
        position = self.examples.options.index(self.examples.value)
        self.quiet = True
        self.examples.options = list(plans(surface))
        self.examples.value = self.examples.options[position]
        for name, slider in self.sliders.items():
            slider.update(visible=name == new, value=surface.rate if name == new else slider.value)
        self.typed.write(surface.rate)
        self.start.move(surface.start, surface.labels)
        self.quiet = False
        self.drawing.frame(surface)
        for source in (self.path, self.ends, self.values, self.arrows, self.names):
            page.empty(source)
        self.readout.text = ""
        self.ask()

    @property
    def slider(self) -> Slider:
        """The slider of the surface that is shown."""
        return self.sliders[self.surface.value]

    def slid(self, rate: float) -> None:
        """The slider has moved; it is not moved by the page, which would undo what the visitor has done since."""
        if not self.quiet:
            self.typed.write(float(f"{rate:.6g}"))
            self.ask()

    def new_rate(self) -> None:
        """A rate was typed; the slider shows it as far as its range goes."""
        self.quiet = True
        self.slider.value = min(max(self.typed.value, self.slider.start), self.slider.end)
        self.quiet = False
        self.ask()

    def ask(self) -> None:
        if not self.quiet:
            start = tuple(self.start.values)
            rate = self.typed.value
            self.live.ask(Question(self.surface.value, self.examples.value, rate, self.steps.value, start))

    # What is seen ----------------------------------------------------------------------------------------------------

    def show(self, found: Answer) -> None:
        question, path, bend = found
        if question.surface != self.surface.value:
            return  # an older surface; the current path will follow
        surface = surfaces.surfaces()[question.surface]
        self.drawing.draw(surface)
        left = contours.show_path(self.path, self.ends, path.points, surface.window)
        self.values.data = page.curve(path.values)
        page.scale_log(self.error, 0, question.steps, [path.values])
        self.show_bend(surface, path, bend)
        self.say(question, path, bend, left)

    def show_bend(self, surface: Surface, path: Path, bend: Bend) -> None:
        """Shows the eigenvectors, with the lengths of one contour's half axes, and the limit on the slider."""
        center = np.array(surface.stationary[0].x if surface.quadratic else path.points[path.last])
        size, steepness = np.ptp(surface.window[0]), np.sqrt(np.abs(bend.eigenvalues))
        length = size * np.maximum(0.3 * steepness.min() / np.maximum(steepness, 1e-300), 0.08)
        middle = np.mean(surface.window, axis=1)
        inwards = np.where(bend.eigenvectors.T @ (middle - center) < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary
        tips = center + (inwards * length)[:, None] * bend.eigenvectors.T
        self.arrows.data = {"x0": center[[0, 0]], "y0": center[[1, 1]], "x1": tips[:, 0], "y1": tips[:, 1]}
        names = [f"λ = {number_text(value)}" for value in bend.eigenvalues]
        left = tips[:, 0] < middle[0]
        self.names.data = {
            "x": tips[:, 0],
            "y": tips[:, 1],
            "text": names,
            "align": np.where(left, "left", "right"),
            "offset": np.where(left, 4, -4),
        }
        share = 100 * bend.stable_rate / self.slider.end
        side = f"right: {100 - share:.3f}%; border-right" if share > 50 else f"left: {share:.3f}%; border-left"
        mark = _LIMIT.format(share=share, side=side, rate=number_text(bend.stable_rate))
        self.slider.stylesheets[1].css = mark if share <= 100 else ""

    def say(self, question: Question, path: Path, bend: Bend, left: bool) -> None:
        limit, surface, F, how = (
            bend.stable_rate,
            surfaces.surfaces()[question.surface],
            path.values[-1],
            surfaces.verdict(path),
        )
        compared = "at" if np.isclose(question.rate, limit) else "above" if question.rate > limit else "below"
        rate = f"the rate {number_text(question.rate)} is {compared} 2/λmax = {number_text(limit)}"
        if how == "diverges":
            where = f" It left the drawing in update {len(self.path.data['x'])}." if left else ""
            self.status.warn(f"Diverges: {rate}; F = {number_text(F)} after {question.steps} updates.{where}")
        else:
            self.status.say(f"{how.capitalize()}: F = {number_text(F)} after {question.steps} updates; {rate}.")
        rows = [
            (name, page.pair(path.points[k]), number_text(path.values[k])) for name, k in (("start", 0), ("end", -1))
        ]
        bends = [
            (f"λ {i + 1}", number_text(value), page.pair(vector), number_text(2 / value) if value > 0 else "none")
            for i, (value, vector) in enumerate(zip(bend.eigenvalues, bend.eigenvectors.T, strict=True))
        ]
        where = "everywhere" if surface.quadratic else "at the end of the path"
        hessian = page.Table(("", "eigenvalue", "eigenvector", "2 / λ"), bends, f"The Hessian, {where}")
        self.readout.text = str(page.tables(page.Table(("", "x", "F"), rows), hessian))


def _equations():
    return page.words(
        Markup('<p class="soft">Hagan Eq. 3.14, and its limit:</p>')
        + mathml(r"\mathbf{x}_{k+1} = \mathbf{x}_k - \alpha \nabla F(\mathbf{x}_k)", display=True)
        + mathml(r"\alpha < \frac{2}{\lambda_{\mathrm{max}}}", display=True)
    )


# The limit on the slider's track: rates beyond it are red.
_LIMIT = """
.noUi-base {{ overflow: visible; background: linear-gradient(to right, light-dark(#cfe3d6, #1d4a32) {share:.3f}%,
  light-dark(#f3c6c6, #6b2630) {share:.3f}%); }}
.noUi-base::after {{ content: "2/λmax = {rate}"; position: absolute; top: 100%; margin-top: 7px; padding: 0 3px;
  {side}: 2px solid var(--bad); font-size: 11px; line-height: 12px; color: var(--bad); white-space: nowrap; }}
:host {{ margin-bottom: 18px; }}
"""

DEMONSTRATION = Demonstration("gradient-descent", TITLE, ABOUT, _Page, warm_up)
