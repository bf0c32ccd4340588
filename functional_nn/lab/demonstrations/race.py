"""Adam and its relatives on a performance surface (Hagan's dl3aa): up to four optimizers start from one click.

Presets show what Hagan's text says about Adam (Eq. 3.29 to 3.35) and where it does not hold.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from bokeh.document import Document
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import Select
from markupsafe import Markup

from functional_nn.lab import equations
from functional_nn.lab.demonstrations import contours, page, surfaces, typed
from functional_nn.lab.demonstrations.boxes import Box, Form, Start
from functional_nn.lab.demonstrations.contours import Drawing
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text
from functional_nn.lab.demonstrations.surfaces import STEPS, Bend, Path, Surface
from functional_nn.optimizers import first_order

TITLE = "Adam and its relatives"
ABOUT = "Choose a preset, or click on the surface: all optimizers start there, each with its own constants."
_FIRST = ("gd", "momentum", "rmsprop", "adam")
_NONE = "none"
_OWN = "your own"
_GOAL = 1e-3  # for F, which is 0 at every surface's minimum
_ADAPTIVE = 0.1  # dl3aa's rate, for methods whose steps are about as long as the rate, whatever the gradient


class Question(NamedTuple):
    """What is requested; racers: (name, constants) or None for each optimizer's place."""

    surface: str
    steps: int
    start: tuple[float, float]
    racers: tuple[tuple[str, dict[str, float]] | None, ...]


class Preset(NamedTuple):
    """A race and what it shows.

    rates: the learning rates of `_FIRST`, whose other constants are their defaults; window: the part of the surface
    that is shown at first; None for all of it.
    """

    name: str
    surface: str
    start: tuple[float, float]
    rates: tuple[float, float, float, float]
    lesson: str
    window: tuple[tuple[float, float], tuple[float, float]] | None = None

    @property
    def question(self) -> Question:
        racers = tuple(
            (name, surfaces.constants_of(name) | {"learning_rate": rate})
            for name, rate in zip(_FIRST, self.rates, strict=True)
        )
        return Question(self.surface, 400, self.start, racers)


PRESETS = (
    Preset(
        "A flat valley",
        "Two minima and a saddle",
        (8.0, 20.0),
        (10.0, 10.0, _ADAPTIVE, _ADAPTIVE),
        "The second hidden neuron is saturated here: the slope along b¹₂ is small but keeps its sign. Gradient descent "
        "falls to the floor of the valley and then moves along it very slowly, at any stable rate. Adam divides by the "
        "root of the smoothed squared gradient, so its steps are about as long as its rate, however small the slope.",
    ),
    Preset(
        "A narrow valley",
        "Weights of two layers (dl3aa)",
        (14.0, 1.3),
        (1.65, 0.5, _ADAPTIVE, _ADAPTIVE),
        "F is curved much more across the valley than along it. Gradient descent, at a rate near its limit, jumps from "
        "side to side and moves along the valley slowly. In Adam, gradients across the valley change sign and average "
        "out, while their squares do not: steps across it get small. Along it the sign stays the same, and steps stay "
        "long.",
        ((8.0, 15.0), (0.0, 2.0)),
    ),
    Preset(
        "A large rate",
        "Quadratic, Hagan Eq. 3.15",
        (-1.0, -2.95),
        (0.2, 0.2, 0.2, 0.2),
        "All have the same rate, above gradient descent's limit. Gradient descent and momentum diverge. RMSprop keeps "
        "jumping from side to side. Adam's steps get smaller because the gradient changes sign. Below the limit "
        "gradient descent is faster than Adam here, because the eigenvalues differ little.",
    ),
    Preset(
        "Adam in a local minimum",
        "Two minima and a saddle",
        (7.0, 5.0),
        (10.0, 10.0, _ADAPTIVE, _ADAPTIVE),
        "Adam's first steps are equally long in both weights, whatever the slopes. From here they lead to the local "
        "minimum, where the gradient is zero and Adam stays. Gradient descent follows the slope to the other minimum. "
        "Which minimum is found depends on start and path, not on the quality of a method.",
    ),
    Preset(
        "GD in a local minimum",
        "Two minima and a saddle",
        (-10.0, -10.0),
        (10.0, 10.0, _ADAPTIVE, _ADAPTIVE),
        "The opposite case: from here the slope leads gradient descent to the local minimum, and Adam's equally long "
        "steps lead past it. Which minimum is found depends on start and path, not on the quality of a method.",
    ),
)


class Answer(NamedTuple):
    """Each racer's path, or None; the Hessian at the surface's minimum."""

    question: Question
    paths: tuple[Path | None, ...]
    bend: Bend


def constants(optimizer: str, surface: Surface) -> dict[str, float]:
    """An optimizer's initial constants: its defaults, with a learning rate that suits the surface."""
    found = surfaces.constants_of(optimizer)
    if optimizer in ("gd", "momentum", "nesterov"):
        return found | {"learning_rate": surface.rate}
    return found if optimizer in ("adadelta", "rprop") else found | {"learning_rate": _ADAPTIVE}


def answer(question: Question) -> Answer:
    """All paths. Raises ValueError for constants out of range, with the optimizer's name."""
    surface = surfaces.surfaces()[question.surface]
    _ = surface.grid  # which the page draws, and does not compute
    paths = [racer and surfaces.descend(surface, question.start, question.steps, *racer) for racer in question.racers]
    return Answer(question, tuple(paths), surfaces.bend(surface, np.array(surface.stationary[0].x)))


def warm_up() -> Iterator[None]:
    """Compiles the first four optimizers, on the first surface and then on the others; then the other optimizers."""

    def compiled(surface: Surface, *names: str) -> None:
        answer(Question(surface.name, 1, surface.start, tuple((name, constants(name, surface)) for name in names)))

    compiled(_first(), *_FIRST)
    yield
    for names in (_FIRST, [name for name in first_order.names() if name not in _FIRST]):
        for name, surface in itertools.product(names, surfaces.surfaces().values()):
            compiled(surface, name)
            yield


def _first() -> Surface:
    return surfaces.surfaces()[PRESETS[0].surface]


def _preset(question: Question) -> Preset | None:
    """The preset with the same question, if any."""
    return next((each for each in PRESETS if each.question == question), None)


def _arrivals(question: Question, paths: Sequence[Path | None]) -> str:
    """The update from which F stays below the goal, for each racer; and those that do not reach it."""
    reached = [
        (surfaces.reached(path, _GOAL), racer[0])
        for racer, path in zip(question.racers, paths, strict=True)
        if racer and path
    ]
    there = [f"with {name} from update {k}" for k, name in sorted(each for each in reached if each[0] is not None)]
    away = [name for k, name in reached if k is None]
    parts = [", ".join(there), f"not with {', '.join(away)}" if away else ""]
    return f"F stays below {number_text(_GOAL)} {'; '.join(filter(None, parts))}."


def _lesson(question: Question, bend: Bend) -> Markup:
    """What the preset shows, if it is one; and the eigenvalues that it mentions."""
    preset, (low, high) = _preset(question), map(number_text, bend.eigenvalues)
    curvature = f"At the minimum ∇²F has the eigenvalues {low} and {high}: gradient descent's limit is 2/λmax = "
    shown = [*([preset.lesson] if preset else []), f"{curvature}{number_text(bend.stable_rate)}."]
    return Markup("").join(Markup('<p class="soft">{}</p>').format(each) for each in shown)


class _Racer:
    """One racer's controls: which optimizer, and a box for each of its constants."""

    def __init__(self, number: int, optimizer: str, surface: Surface, ask: Callable[[], None], status: Status):
        self.number = number
        self.path, self.values = page.source(f"path-{number}", "x", "y"), page.source(f"values-{number}", "x", "y")
        self.ends = page.source(f"ends-{number}", "x", "y", "marker", "fill")
        border = ("solid", "dashed", "dashed", "dotted")[number]
        key = Markup('<div style="border-top: 4px {} {}"></div>').format(border, page.COLORS[number])
        self.choice = Select(
            title=f"optimizer {number + 1}",
            value=optimizer,
            name=f"optimizer-{number}",
            options=[_NONE, *first_order.names()],
            sizing_mode="stretch_width",
        )
        most = max(len(surfaces.constants_of(name)) for name in first_order.names())
        self.boxes = [
            Box("", f"constant-{number}-{i}", typed.number, 0.0, min_width=90, max_width=150) for i in range(most)
        ]
        self.form = Form(self.boxes, self.check, ask, status)
        self.result = page.words(name=f"result-{number}")
        boxes = row(*(box.model for box in self.boxes), sizing_mode="stretch_width", stylesheets=[page.wraps()])
        self.model = column(page.key(key), self.choice, boxes, self.result, sizing_mode="stretch_width", min_width=230)
        self.offer_usual(surface)

    def offer_usual(self, surface: Surface) -> None:
        """Shows the chosen optimizer's constants with their initial values on the surface."""
        self.offer({} if self.choice.value == _NONE else constants(self.choice.value, surface))

    def offer(self, offered: dict[str, float]) -> None:
        """Shows a box for each constant of the chosen optimizer."""
        self.form.boxes = self.boxes[: len(offered)]
        for box in self.boxes:
            box.model.visible = box in self.form.boxes
        for box, (name, value) in zip(self.form.boxes, offered.items(), strict=True):
            box.input.title = name
            box.write(value)

    def check(self, values: list[float]) -> None:
        """Raises ValueError for what the optimizer refuses."""
        first_order.factory(self.choice.value)(**self.named(values))

    def named(self, values: list[float]) -> dict[str, float]:
        return dict(zip((box.input.title for box in self.form.boxes), values, strict=True))

    @property
    def entry(self) -> tuple[str, dict[str, float]] | None:
        return None if self.choice.value == _NONE else (self.choice.value, self.named(self.form.values))

    def empty(self) -> None:
        for source in (self.path, self.values, self.ends):
            page.empty(source)
        self.result.text = ""

    def show(self, surface: Surface, path: Path | None) -> str | None:
        """Draws the path; returns its verdict."""
        if path is None:
            self.empty()
            return None
        contours.show_path(self.path, self.ends, path.points, surface.window, self.number)
        self.values.data = page.curve(path.values)
        how = surfaces.verdict(path)
        where = f"F = {number_text(path.values[-1])} at {page.pair(path.points[-1])}"
        kind = "warns" if how == "diverges" else "soft"
        rule = equations.optimizer(self.choice.value) or Markup("")
        self.result.text = str(Markup('<p class="{}"><b>{}</b>: {}</p>').format(kind, how, where) + rule)
        return how


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        first = _first()
        self.quiet = False  # while the page itself sets a control
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        self.preset = Select(
            title="preset",
            options=[*(each.name for each in PRESETS), _OWN],
            value=PRESETS[0].name,
            name="preset",
            **wide,
        )
        self.lesson = page.words(name="lesson")
        self.surface = Select(
            title="surface", options=list(surfaces.surfaces()), value=first.name, name="surface", **wide
        )
        self.steps = page.slider("updates", 1, STEPS, 400, 1, "steps")
        self.start = Start(first.labels, first.start, self.status, self.ask)
        self.racers = [_Racer(number, name, first, self.ask, self.status) for number, name in enumerate(_FIRST)]
        self.drawing = Drawing("Contours of F over two weights, and the path of each optimizer", 400, first)
        self.plotted = self.drawing.figure
        self.error = contours.error_plot(400)
        for number, racer in enumerate(self.racers):
            contours.draw_path(self.plotted, racer.path, racer.ends, number)
            self.error.line(
                "x", "y", source=racer.values, color=page.COLORS[number], line_dash=page.DASHES[number], line_width=2
            )
        for racer in self.racers:
            racer.choice.on_change("value", lambda attribute, old, new, racer=racer: self.other_optimizer(racer))
        self.preset.on_change("value", self.other_preset)
        self.surface.on_change("value", self.other_surface)
        self.steps.on_change("value", lambda attribute, old, new: self.ask())
        self.plotted.on_event(Tap, lambda event: self.start.tapped(self.plotted, event))
        starts = row(*(box.model for box in self.start.boxes), **wide)
        controls = column(self.preset, self.lesson, self.surface, self.steps, starts, **wide)
        racers = row(*(racer.model for racer in self.racers), stylesheets=[page.wraps()], **wide)
        page.lay_out(
            document,
            TITLE,
            ABOUT,
            status=self.status.model,
            controls=controls,
            main=self.plotted,
            side=self.error,
            below=racers,
        )
        self.ask()

    def other_preset(self, attribute, old, new) -> None:
        if self.quiet or new == _OWN:
            return
        preset = next(each for each in PRESETS if each.name == new)
        question = preset.question
        self.quiet = True
        self.surface.value, self.steps.value = question.surface, question.steps
        self.drawing.look(preset.window or surfaces.surfaces()[question.surface].window)
        self.start.move(question.start)
        for racer, (optimizer, given) in zip(self.racers, question.racers, strict=True):
            racer.choice.value = optimizer
            racer.offer(given)
        self.quiet = False
        self.ask()

    def other_optimizer(self, racer: _Racer) -> None:
        racer.offer_usual(surfaces.surfaces()[self.surface.value])
        self.ask()

    def other_surface(self, attribute, old, new) -> None:
        surface = surfaces.surfaces()[new]
        self.start.move(surface.start, surface.labels)
        for racer in self.racers:
            racer.offer_usual(surface)
            racer.empty()
        self.drawing.frame(surface)
        self.ask()

    def ask(self) -> None:
        if self.quiet:
            return
        racers = tuple(racer.entry for racer in self.racers)
        question = Question(self.surface.value, self.steps.value, tuple(self.start.values), racers)
        preset = _preset(question)
        self.quiet = True
        self.preset.value = preset.name if preset else _OWN
        self.quiet = False
        self.live.ask(question)

    def show(self, found: Answer) -> None:
        question, paths, bend = found
        if question.surface != self.surface.value:
            return  # of a surface that is no longer there; the right paths are on their way
        surface = surfaces.surfaces()[question.surface]
        self.drawing.draw(surface)
        self.lesson.text = str(_lesson(question, bend))
        shown = [racer.show(surface, path) for racer, path in zip(self.racers, paths, strict=True)]
        there = [
            (racer[0], how, path.values[-1])
            for racer, how, path in zip(question.racers, shown, paths, strict=True)
            if racer
        ]
        if not there:
            self.status.say("No optimizer is chosen.")
            return
        page.scale_log(self.error, 0, question.steps, [path.values for path in paths if path])
        lost = [name for name, how, _ in there if how == "diverges"]
        left = sorted((F, name) for name, how, F in there if how != "diverges")
        best = f"Lowest after {question.steps} updates: {left[0][1]}, F = {number_text(left[0][0])}." if left else ""
        best = f"{best} {_arrivals(question, paths)}"
        if lost:
            self.status.warn(f"{', '.join(lost)} diverge{'' if lost[1:] else 's'}. {best}")
        else:
            self.status.say(best)


DEMONSTRATION = Demonstration("adam", TITLE, ABOUT, _Page, warm_up)
