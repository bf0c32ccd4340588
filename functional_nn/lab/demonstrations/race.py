"""Adam and its relatives on a performance surface (Hagan's dl3aa): up to four optimizers start from one click."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bokeh.document import Document
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import Select
from markupsafe import Markup

from functional_nn.lab import equations
from functional_nn.lab.demonstrations import contours, page, surfaces, typed
from functional_nn.lab.demonstrations.boxes import Box, Form, Start
from functional_nn.lab.demonstrations.contours import Drawing
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, said
from functional_nn.lab.demonstrations.surfaces import STEPS, Path, Surface
from functional_nn.optimizers import first_order

TITLE = "Adam and its relatives"
ABOUT = "Click on the surface: all optimizers start there, each with its own constants."
_FIRST = ("gd", "momentum", "rmsprop", "adam")
_NONE = "none"
_ADAPTIVE = 0.1  # dl3aa's rate, for methods whose steps are about as long as it, whatever the gradient


class Question(NamedTuple):
    """What is asked; racers: (name, constants) or None of each lane."""

    surface: str
    steps: int
    start: tuple[float, float]
    racers: tuple[tuple[str, dict[str, float]] | None, ...]


class Answer(NamedTuple):
    """Each lane's path, or None."""

    question: Question
    paths: tuple[Path | None, ...]


def constants(optimizer: str, surface: Surface) -> dict[str, float]:
    """What an optimizer races with at first: its defaults, at a learning rate that suits the surface."""
    found = surfaces.constants_of(optimizer)
    if optimizer in ("gd", "momentum", "nesterov"):
        return found | {"learning_rate": surface.rate}
    return found if optimizer in ("adadelta", "rprop") else found | {"learning_rate": _ADAPTIVE}


def answer(question: Question) -> Answer:
    """All paths. Raises ValueError for constants out of range, with the optimizer's name."""
    surface = surfaces.surfaces()[question.surface]
    _ = surface.grid  # which the page draws, and does not compute
    paths = [racer and surfaces.descend(surface, question.start, question.steps, *racer) for racer in question.racers]
    return Answer(question, tuple(paths))


def warm_up() -> Iterator[None]:
    """Compiles the four that race first, on the surface that is seen first and on the others; then the others."""

    def compiled(surface: Surface, *names: str) -> None:
        answer(Question(surface.name, 1, surface.start, tuple((name, constants(name, surface)) for name in names)))

    compiled(_first(), *_FIRST)
    yield
    for names in (_FIRST, [name for name in first_order.names() if name not in _FIRST]):
        for name, surface in itertools.product(names, surfaces.surfaces().values()):
            compiled(surface, name)
            yield


def _first() -> Surface:
    return list(surfaces.surfaces().values())[2]


class _Lane:
    """One racer's controls: which optimizer, and a box for each of its constants."""

    def __init__(self, number: int, optimizer: str, surface: Surface, ask: Callable[[], None], status: Status):
        self.number = number
        self.path, self.values = page.source(f"path-{number}", "x", "y"), page.source(f"values-{number}", "x", "y")
        self.ends = page.source(f"ends-{number}", "x", "y", "marker", "fill")
        border = ("solid", "dashed", "dashed", "dotted")[number]
        key = Markup('<div style="border-top: 4px {} {}"></div>').format(border, page.COLORS[number])
        self.choice = Select(title=f"optimizer {number + 1}", value=optimizer, name=f"optimizer-{number}",
                             options=[_NONE, *first_order.names()], sizing_mode="stretch_width")  # fmt: skip
        most = max(len(surfaces.constants_of(name)) for name in first_order.names())
        self.boxes = [Box("", f"constant-{number}-{i}", typed.number, 0.0, min_width=90, max_width=150)
                      for i in range(most)]  # fmt: skip
        self.form = Form(self.boxes, self.check, ask, status)
        self.result = page.words(name=f"result-{number}")
        boxes = row(*(box.model for box in self.boxes), sizing_mode="stretch_width", stylesheets=[page.wraps()])
        self.model = column(page.key(key), self.choice, boxes, self.result, sizing_mode="stretch_width", min_width=230)
        self.offer(surface)

    def offer(self, surface: Surface) -> None:
        """Shows the chosen optimizer's constants, as they are at first on the surface."""
        offered = {} if self.choice.value == _NONE else constants(self.choice.value, surface)
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
    def racer(self) -> tuple[str, dict[str, float]] | None:
        return None if self.choice.value == _NONE else (self.choice.value, self.named(self.form.values))

    def empty(self) -> None:
        for source in (self.path, self.values, self.ends):
            page.empty(source)
        self.result.text = ""

    def show(self, surface: Surface, path: Path | None) -> str | None:
        """Draws the path; its verdict."""
        if path is None:
            self.empty()
            return None
        contours.show_path(self.path, self.ends, path.points, surface.window, self.number)
        self.values.data = page.curve(path.values)
        how = surfaces.verdict(path)
        where = f"F = {said(path.values[-1])} at {page.pair(path.points[-1])}"
        kind = "warns" if how == "diverges" else "soft"
        rule = equations.optimizer(self.choice.value) or Markup("")
        self.result.text = str(Markup('<p class="{}"><b>{}</b>: {}</p>').format(kind, how, where) + rule)
        return how


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        first = _first()
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        self.surface = Select(title="surface", options=list(surfaces.surfaces()), value=first.name, name="surface",
                              **wide)  # fmt: skip
        self.steps = page.slider("updates", 1, STEPS, 400, 1, "steps")
        self.start = Start(first.labels, first.start, self.status, self.ask)
        self.lanes = [_Lane(number, name, first, self.ask, self.status) for number, name in enumerate(_FIRST)]
        self.drawing = Drawing("Contours of F over two weights, and the path of each optimizer", 350, first)
        self.plotted = self.drawing.figure
        self.error = contours.error_plot(350)
        for number, lane in enumerate(self.lanes):
            contours.draw_path(self.plotted, lane.path, lane.ends, number)
            self.error.line("x", "y", source=lane.values, color=page.COLORS[number], line_dash=page.DASHES[number],
                            line_width=2)  # fmt: skip
        for lane in self.lanes:
            lane.choice.on_change("value", lambda attribute, old, new, lane=lane: self.other_optimizer(lane))
        self.surface.on_change("value", self.other_surface)
        self.steps.on_change("value", lambda attribute, old, new: self.ask())
        self.plotted.on_event(Tap, lambda event: self.start.tapped(self.plotted, event))
        starts = row(*(box.model for box in self.start.boxes), **wide)
        controls = column(self.surface, self.steps, starts, **wide)
        lanes = row(*(lane.model for lane in self.lanes), stylesheets=[page.wraps()], **wide)
        page.lay_out(document, TITLE, ABOUT, status=self.status.model, controls=controls, main=self.plotted,
                     side=self.error, below=lanes)  # fmt: skip
        self.ask()

    def other_optimizer(self, lane: _Lane) -> None:
        lane.offer(surfaces.surfaces()[self.surface.value])
        self.ask()

    def other_surface(self, attribute, old, new) -> None:
        surface = surfaces.surfaces()[new]
        self.start.move(surface.start, surface.labels)
        for lane in self.lanes:
            lane.offer(surface)
            lane.empty()
        self.drawing.frame(surface)
        self.ask()

    def ask(self) -> None:
        racers = tuple(lane.racer for lane in self.lanes)
        self.live.ask(Question(self.surface.value, self.steps.value, tuple(self.start.values), racers))

    def show(self, found: Answer) -> None:
        question, paths = found
        if question.surface != self.surface.value:
            return  # of a surface that is no longer there; the right paths are on their way
        surface = surfaces.surfaces()[question.surface]
        self.drawing.draw(surface)
        shown = [lane.show(surface, path) for lane, path in zip(self.lanes, paths, strict=True)]
        there = [(racer[0], how, path.values[-1])
                 for racer, how, path in zip(question.racers, shown, paths, strict=True) if racer]  # fmt: skip
        if not there:
            self.status.say("No optimizer is chosen.")
            return
        page.scale_log(self.error, 0, question.steps, [path.values for path in paths if path])
        lost = [name for name, how, _ in there if how == "diverges"]
        left = sorted((F, name) for name, how, F in there if how != "diverges")
        best = f"Lowest after {question.steps} updates: {left[0][1]}, F = {said(left[0][0])}." if left else ""
        if lost:
            self.status.warn(f"{', '.join(lost)} diverges. {best}")
        else:
            self.status.say(best)


DEMONSTRATION = Demonstration("adam", TITLE, ABOUT, _Page, warm_up)
