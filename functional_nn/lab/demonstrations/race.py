"""Adam and its relatives on a performance surface (Hagan's dl3aa): up to four optimizers start from one click."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bokeh.document import Document
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import InlineStyleSheet, Select
from markupsafe import Markup

from functional_nn.lab import equations
from functional_nn.lab.demonstrations import contours, page, surfaces
from functional_nn.lab.demonstrations.page import Demonstration, Live, Start, Status, said
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
    paths = [racer and surfaces.descend(surface, question.start, question.steps, *racer) for racer in question.racers]
    return Answer(question, tuple(paths))


def warm_up() -> None:
    """Compiles the four that race first, on every surface."""
    for _ in _compile(_FIRST):
        pass


def warm_up_more() -> Iterator[None]:
    """Compiles the others."""
    return _compile(name for name in first_order.names() if name not in _FIRST)


def _compile(names: Iterable[str]) -> Iterator[None]:
    for name in names:
        for surface in surfaces.surfaces().values():
            answer(Question(surface.name, 1, surface.start, ((name, constants(name, surface)),)))
            yield


class _Lane:
    """One racer's controls: which optimizer, and a box for each of its constants."""

    def __init__(self, number: int, optimizer: str, surface: Surface, ask: Callable[[], None]):
        self.number, self.ask, self.quiet = number, ask, False
        self.path, self.values = page.source(f"path-{number}", "x", "y"), page.source(f"values-{number}", "x", "y")
        self.ends = page.source(f"ends-{number}", "x", "y", "marker", "fill")
        border = ("solid", "dashed", "dashed", "dotted")[number]
        key = InlineStyleSheet(css=f":host {{ border-top: 4px {border} {page.COLORS[number]}; padding-top: 4px; }}")
        self.choice = Select(title=f"optimizer {number + 1}", value=optimizer, name=f"optimizer-{number}",
                             options=[_NONE, *first_order.names()], sizing_mode="stretch_width")  # fmt: skip
        most = max(len(surfaces.constants_of(name)) for name in first_order.names())
        self.boxes = [page.number("", 0.0, f"constant-{number}-{i}", min_width=90, max_width=150) for i in range(most)]
        self.result = page.words(name=f"result-{number}")
        boxes = row(*self.boxes, sizing_mode="stretch_width", stylesheets=[page.wraps()])
        self.model = column(self.choice, boxes, self.result, stylesheets=[key], sizing_mode="stretch_width",
                            min_width=230)  # fmt: skip
        self.offer(surface)
        for box in self.boxes:
            box.on_change("value", self.changed)

    def offer(self, surface: Surface) -> None:
        """Shows the chosen optimizer's constants, as they are at first on the surface."""
        self.constants = {} if self.choice.value == _NONE else constants(self.choice.value, surface)
        self.quiet = True
        for i, box in enumerate(self.boxes):
            box.visible = i < len(self.constants)
        for box, (name, value) in zip(self.boxes, self.constants.items(), strict=False):
            box.update(title=name, value=value)
        self.quiet = False

    def changed(self, attribute, old, new) -> None:
        if not self.quiet:
            self.ask()

    @property
    def racer(self) -> tuple[str, dict[str, float]] | None:
        """Raises ValueError for an empty box."""
        given = {name: box.value for box, name in zip(self.boxes, self.constants, strict=False)}
        for name, value in given.items():
            if value is None:
                raise ValueError(f"{self.choice.value} {name}: expected a number, got nothing")
        return None if self.choice.value == _NONE else (self.choice.value, given)

    def show(self, surface: Surface, path: Path | None) -> str | None:
        """Draws the path; its verdict."""
        if path is None:
            for source in (self.path, self.values, self.ends):
                source.data = {name: [] for name in source.data}
            self.result.text = ""
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
        every = surfaces.surfaces()
        first = list(every.values())[2]
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        self.surface = Select(title="surface", options=list(every), value=first.name, name="surface", **wide)
        self.steps = page.slider("updates", 1, STEPS, 400, 1, "steps")
        self.start = Start(first.labels, first.start, self.status, self.ask)
        self.lanes = [_Lane(number, name, first, self.ask) for number, name in enumerate(_FIRST)]
        self.plotted = contours.surface_plot("Contours of F over two weights, and the path of each optimizer", 350)
        self.error = contours.error_plot(350)
        for number, lane in enumerate(self.lanes):
            self.error.line("x", "y", source=lane.values, color=page.COLORS[number], line_dash=page.DASHES[number],
                            line_width=2)  # fmt: skip
        self.draw(first)
        for lane in self.lanes:
            lane.choice.on_change("value", lambda attribute, old, new, lane=lane: self.other_optimizer(lane))
        self.surface.on_change("value", self.other_surface)
        self.steps.on_change("value", lambda attribute, old, new: self.ask())
        self.plotted.on_event(Tap, lambda event: self.start.tapped(self.plotted, event))
        controls = column(self.surface, self.steps, row(*self.start.boxes, **wide), **wide)
        lanes = row(*(lane.model for lane in self.lanes), stylesheets=[page.wraps()], **wide)
        page.lay_out(document, TITLE, ABOUT, status=self.status.model, controls=controls, main=self.plotted,
                     side=self.error, below=lanes)  # fmt: skip
        self.ask()

    def draw(self, surface: Surface) -> None:
        contours.draw_surface(self.plotted, surface)
        for number, lane in enumerate(self.lanes):
            contours.draw_path(self.plotted, lane.path, lane.ends, number)

    def other_optimizer(self, lane: _Lane) -> None:
        lane.offer(surfaces.surfaces()[self.surface.value])
        self.ask()

    def other_surface(self, attribute, old, new) -> None:
        surface = surfaces.surfaces()[new]
        self.start.move(surface.start, surface.labels)
        for lane in self.lanes:
            lane.offer(surface)
        self.draw(surface)
        self.ask()

    def ask(self) -> None:
        try:
            racers = tuple(lane.racer for lane in self.lanes)
        except ValueError as error:
            self.status.refuse(f"{error}; the last race stays")
            return
        self.live.ask(Question(self.surface.value, self.steps.value, self.start.value, racers))

    def show(self, found: Answer) -> None:
        question, paths = found
        if question.surface != self.surface.value:
            return  # of a surface that is no longer there; the right paths are on their way
        surface = surfaces.surfaces()[question.surface]
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


DEMONSTRATION = Demonstration("adam", TITLE, ABOUT, _Page, warm_up, warm_up_more)
