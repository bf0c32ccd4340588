"""Learning rules: two networks side by side, each with its own rule, and how far each rule is from the gradient."""

from collections.abc import Callable, Iterator

import numpy as np
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import (
    Button,
    ColumnDataSource,
    CustomJS,
    FixedTicker,
    Legend,
    LegendItem,
    Range1d,
    Select,
    Span,
    Toggle,
)
from bokeh.palettes import interp_palette
from bokeh.plotting import figure
from markupsafe import Markup

from functional_nn.gradients import rules
from functional_nn.lab.demonstrations import classifier, page, two_networks, typed
from functional_nn.lab.demonstrations.boxes import Box, Form
from functional_nn.lab.demonstrations.classifier import EPOCHS
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text
from functional_nn.lab.demonstrations.plane import Plane
from functional_nn.lab.demonstrations.two_networks import (
    CLASSES,
    DIGITS,
    Answer,
    Choice,
    Learner,
    Question,
    Training,
    answer,
)

TITLE = "Learning rules"
ABOUT = "The same network twice, with the same initial weights and batches: only the backward pass differs."
_FIRST = (Learner("exact", 0.01), Learner("feedback_alignment(0)", 0.01))
_FRAME = 60  # milliseconds between two pictures, at least
_LONGEST = 2000  # epochs, after which training pauses
_LAYERS = ("0", "1", "2", "3", "4")
_WIDTHS = ("4", "8", "16", "32", "64")
# Constants for rules that have no defaults or that show more with these.
_WRITTEN = {
    "feedback_alignment": "feedback_alignment(0)",
    "direct_feedback": "direct_feedback(0)",
    "noisy": "noisy(1)",
    "kolen_pollack": "kolen_pollack(0.01)",
    "rounded": "rounded(2)",
    "dropped_back": "dropped_back(0.5)",
    "clipped_back": "clipped_back(0.1)",
}
_BY_LAYER = "by layer"
_MIXED = "{layer1: noisy(1), others: exact}"
_SIDES = ("left", "right")
_COLORS = (*page.COLORS, page.INK)  # of layers
_DASHES = (*page.DASHES, "dashdot")
_BLUES = interp_palette(("#ffffff", "#08467e"), 65)  # for shares, 0 to 1
_DARK = 0.6  # on darker shades white text is easier to read
_NOTHING = "there is no training on this side"
_KEY = Markup(
    '<p class="soft">For each layer: the angle between the rule\'s direction and the exact gradient, and the ratio of '
    "their norms, over all examples; for a random rule, one draw. Below 90° a small step lowers the loss.</p>"
)


def warm_up() -> Iterator[None]:
    """Compiles what the page starts with; then, for the same networks, the most likely other rules, and digits."""

    def compiled(choice: Choice, *names: str) -> None:
        learners = [Learner(_WRITTEN.get(name, name), 0.01) for name in names]
        answer(Question(choice, (learners[0], learners[-1]), None, 1))

    compiled(Choice(), "exact", "feedback_alignment")
    yield
    for names in (("direct_feedback", "sign_symmetric"), ("kolen_pollack", "noisy")):
        compiled(Choice(), *names)
        yield
    compiled(Choice(DIGITS), "exact", "feedback_alignment")
    yield


def short(rule: str) -> str:
    """A rule's name in running text; mappings are shortened."""
    return rule if len(rule) <= 30 else f"{rule[:28]}…"


class _Side:
    """One network's controls and figures."""

    def __init__(self, number: int, first: Learner, restart: Callable, check_rate: Callable, status: Status):
        self.number, self.quiet, self.status = number, False, status
        wide = {"sizing_mode": "stretch_width"}
        color, dash = page.COLORS[number], page.DASHES[number]
        key = Markup('<div style="border-top: 4px {} {}"></div>').format(dash, color)
        self.choice = Select(
            title=f"learning rule, {_SIDES[number]}",
            options=[*rules.names(), _BY_LAYER],
            min_width=170,
            name=f"rule-{number}",
            **wide,
        )
        self.text = Box(
            f"the {_SIDES[number]} rule, with its constants",
            f"text-{number}",
            two_networks.read,
            first.rule,
            written=str,
            min_width=230,
        )
        self.rate = Box("learning rate", f"rate-{number}", typed.number, first.rate, min_width=90, max_width=110)
        self.rule = Form([self.text], lambda values: None, restart, status)
        self.rates = Form([self.rate], check_rate, lambda: None, status)
        self.show_name()
        self.choice.on_change("value", self.chosen)

        where = f"of the {_SIDES[number]} network"
        self.plane = Plane(f"The plane of both inputs coloured by the output {where}, and the examples", 280, number)
        self.cells = page.source(f"confusion-{number}", "x", "y", "color", "text", "ink")
        self.confusion = self.confusion_plot(f"Held-out digits by class and by predicted class, {where}")
        self.angles = page.source(f"angles-{number}", "x", *map(str, range(len(_COLORS))))
        self.ratios = page.source(f"ratios-{number}", "x", *map(str, range(len(_COLORS))))
        self.angle = page.plot(
            f"Angle to the exact gradient by layer against epochs, {where}",
            tools="save",
            height=190,
            toolbar_location=None,
            x_range=Range1d(0, 1),
            y_range=Range1d(-6, 180),
            min_width=160,
            name=f"angle-{number}",
        )
        self.angle.xaxis.axis_label, self.angle.yaxis.axis_label = "epoch", "angle by layer, °"
        self.angle.yaxis.ticker = FixedTicker(ticks=[0, 45, 90, 135, 180])
        self.angle.add_layout(Span(location=90, dimension="width", line_color=page.GREY, line_width=1))
        self.ratio = page.log_plot(
            f"Ratio of the norm to the exact gradient's by layer against epochs, {where}",
            "epoch",
            "ratio of norms",
            tools="save",
            height=190,
            toolbar_location=None,
            min_width=190,
            name=f"ratio-{number}",
        )
        self.ratio.yaxis.ticker = FixedTicker(ticks=[10.0**k for k in range(-16, 17)], num_minor_ticks=0)
        self.ends = {
            plotted: self.draw(plotted, curves)
            for plotted, curves in ((self.angle, self.angles), (self.ratio, self.ratios))
        }
        self.legend = self.name_layers()
        self.readout = page.words(name=f"readout-{number}", min_width=205, max_width=205)
        boxes = row(self.choice, self.rate.model, stylesheets=[page.wraps()], **wide)
        self.model = column(
            page.key(key), boxes, self.text.model, self.plane.figure, self.confusion, min_width=230, **wide
        )
        aligned = row(self.angle, self.ratio, self.readout, stylesheets=[page.wraps()], **wide)
        self.alignment = column(page.key(key), aligned, min_width=230, **wide)

    def draw(self, plotted: figure, source: ColumnDataSource) -> ColumnDataSource:
        """Draws a curve for each layer, and a dot at the end of each; returns the dots' columns."""
        for i, (color, dash) in enumerate(zip(_COLORS, _DASHES, strict=True)):
            plotted.line("x", str(i), source=source, color=color, line_dash=dash, line_width=2)
        ends = page.source(f"{source.name}-ends", "x", "y", "color")
        plotted.scatter("x", "y", source=ends, color="color", size=6)
        plotted.xaxis.ticker.desired_num_ticks = 3
        return ends

    def name_layers(self) -> Legend:
        """The legend of both figures, next to the second one."""
        lines = self.ratio.renderers[: len(_COLORS)]
        items = [LegendItem(label=f"{i + 1}", renderers=[line]) for i, line in enumerate(lines)]
        legend = Legend(
            items=items,
            padding=0,
            margin=4,
            spacing=0,
            glyph_width=18,
            label_standoff=3,
            label_text_font_size="11px",
            border_line_color=None,
        )
        self.ratio.add_layout(legend, "right")
        return legend

    def confusion_plot(self, alternative: str):
        plotted = page.plot(
            alternative,
            tools="",
            toolbar_location=None,
            height=280,
            visible=False,
            x_range=Range1d(-0.5, CLASSES - 0.5),
            y_range=Range1d(CLASSES - 0.5, -0.5),
        )
        plotted.rect("x", "y", 1, 1, source=self.cells, fill_color="color", line_color="#e4e7ed")
        plotted.text(
            "x",
            "y",
            "text",
            source=self.cells,
            text_color="ink",
            text_font_size="11px",
            text_align="center",
            text_baseline="middle",
        )
        plotted.grid.visible = False
        for axis in plotted.axis:
            axis.ticker = FixedTicker(ticks=list(range(CLASSES)))
        plotted.xaxis.axis_label, plotted.yaxis.axis_label = "predicted class", "class, held out"
        return plotted

    # What the visitor does -------------------------------------------------------------------------------------------

    @property
    def learner(self) -> Learner:
        return Learner(self.text.value, self.rate.value)

    def show_name(self) -> None:
        """Shows the name of the rule in the box as the choice."""
        name = self.text.value.partition("(")[0].strip()
        self.quiet = True
        self.choice.value = name if name in self.choice.options else _BY_LAYER
        self.quiet = False

    def chosen(self, attribute, old, new) -> None:
        if not self.quiet:
            self.text.input.value = _MIXED if new == _BY_LAYER else _WRITTEN.get(new, new)

    # What is seen ----------------------------------------------------------------------------------------------------

    def show(self, choice: Choice, found: Training | str) -> None:
        self.plane.figure.visible, self.confusion.visible = choice.task != DIGITS, choice.task == DIGITS
        if isinstance(found, str):
            if self.text.input.value == self.text.value:  # otherwise the message about the text in the box stays
                self.text.refuse(found, _NOTHING)
            self.plane.empty()
            for source in (self.cells, self.angles, self.ratios, *self.ends.values()):
                page.empty(source)
            self.readout.text = ""
            return
        if self.text.refused and self.text.input.value == self.text.value:  # refused for an older network
            self.text.write(self.text.value)
        if choice.task == DIGITS:
            self.cells.data = _cells(found.seen)
        else:
            examples = classifier.data(choice.task)
            self.plane.show(examples.inputs[0], examples.targets[0, :, 0], found.seen)
        measured, layers = found.measured, found.measured.angles.shape[1]
        positive = np.where(measured.ratios > 0, measured.ratios, np.nan)
        pairs = ((self.angle, self.angles, measured.angles), (self.ratio, self.ratios, positive))
        blank = np.full(len(measured.epochs), np.nan)
        for plotted, curves, values in pairs:
            each = [values[:, i] if i < layers else blank for i in range(len(_COLORS))]
            curves.data = {"x": measured.epochs, **{str(i): own for i, own in enumerate(each)}}
            self.ends[plotted].data = {
                "x": np.repeat(measured.epochs[-1:], layers),
                "y": values[-1],
                "color": _COLORS[:layers],
            }
        for i, item in enumerate(self.legend.items):
            item.visible = i < layers
        last = max(1, int(measured.epochs[-1]))
        self.angle.x_range.end = last
        page.scale_log(self.ratio, 0, last, [np.array([0.2, 5.0]), *positive.T])
        self.readout.text = str(_table(found))


def _cells(counts: np.ndarray) -> dict[str, list]:
    """The counts of each class (rows) and predicted class (columns), shaded by the share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    y, x = np.indices(counts.shape)
    return {
        "x": x.ravel(),
        "y": y.ravel(),
        "text": [str(n) if n else "" for n in counts.ravel()],
        "color": [_BLUES[round(64 * each)] for each in shares.ravel()],
        "ink": ["#ffffff" if each > _DARK else page.INK for each in shares.ravel()],
    }


def _table(found: Training) -> Markup:
    """Each layer's current angle and ratio."""
    angles, ratios = found.measured.angles[-1], found.measured.ratios[-1]
    if not np.isfinite(angles).all():
        return Markup('<p class="soft">{}</p>').format("This network has no exact gradient to compare with.")
    last = len(angles)
    rows = [
        (f"{i + 1}{' (output)' if i + 1 == last else ''}", f"{angle:.1f}°", number_text(ratio))
        for i, (angle, ratio) in enumerate(zip(angles, ratios, strict=True))
    ]
    return page.tables(page.Table(("layer", "angle", "ratio"), rows, short(rules.written(found.rule))))


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        self.document, self.now, self.frames, self.seed, self.turn = document, None, None, 0, 0
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide, first = {"sizing_mode": "stretch_width"}, Choice()
        self.go = Toggle(label="Train", name="go", button_type="primary", **wide)
        self.step = Button(label="Step", name="step", **wide)
        self.again = Button(label="Reset", name="again", **wide)
        self.speed = page.slider("epochs per picture", 1, EPOCHS, 5, 1, "speed")
        self.task = Select(title="task", options=list(two_networks.TASKS), value=first.task, name="task", **wide)
        self.depth = Select(
            title="hidden layers", options=list(_LAYERS), value=str(len(first.hidden)), name="depth", **wide
        )
        self.width = Select(
            title="neurons in each", options=list(_WIDTHS), value=str(first.hidden[0]), name="width", **wide
        )
        self.activation = Select(
            title="activation",
            options=list(two_networks.ACTIVATIONS),
            value=first.activation,
            name="activation",
            **wide,
        )
        self.optimizer = Select(
            title="optimizer", options=list(two_networks.OPTIMIZERS), value=first.optimizer, name="optimizer", **wide
        )
        self.sides = [
            _Side(number, learner, self.restart, self.check_rate, self.status) for number, learner in enumerate(_FIRST)
        ]
        self.curves = [page.source(f"curves-{number}", "x", "training", "held_out", "right") for number in (0, 1)]
        self.error = page.log_plot(
            "Training and held-out loss of both networks against epochs", "epoch", "loss", height=210, min_width=230
        )
        self.right = page.plot(
            "Held-out accuracy of both networks against epochs",
            height=210,
            x_range=Range1d(0, 1),
            y_range=Range1d(0, 103),
            min_width=230,
        )
        self.right.xaxis.axis_label, self.right.yaxis.axis_label = "epoch", "held-out accuracy, %"
        self.draw()
        # A new picture is computed only after the browser has drawn the last one, so that it never falls behind.
        self.picture, self.drawn = page.source("picture", "number"), True
        self.picture.js_on_change(
            "data",
            CustomJS(code="requestAnimationFrame(() => setTimeout(() => { cb_obj.tags = [...cb_obj.data.number] }))"),
        )
        self.picture.on_change("tags", lambda attribute, old, new: self.seen())
        self.go.tags = [self.picture]  # which puts it into the document

        for control in (self.task, self.depth, self.width, self.activation, self.optimizer):
            control.on_change("value", lambda attribute, old, new: self.restart())
        self.go.on_change("active", lambda attribute, old, new: self.run(new))
        self.go.js_on_change("label", page.keeps_focus())
        self.step.on_click(lambda: self.ask(self.speed.value))
        self.again.on_click(self.new_weights)
        controls = column(
            row(self.go, self.step, self.again, **wide),
            self.speed,
            self.task,
            row(self.depth, self.width, **wide),
            self.activation,
            self.optimizer,
            **wide,
        )
        both = row(*(side.model for side in self.sides), stylesheets=[page.wraps()], **wide)
        aligned = row(*(side.alignment for side in self.sides), stylesheets=[page.wraps()], **wide)
        curves = row(self.error, self.right, stylesheets=[page.wraps()], **wide)
        below = column(page.words(_KEY), aligned, curves, **wide)
        page.lay_out(document, TITLE, ABOUT, status=self.status.model, controls=controls, main=both, below=below)
        self.restart()

    def draw(self) -> None:
        for side, source in zip(self.sides, self.curves, strict=True):
            look = {"color": page.COLORS[side.number], "line_dash": page.DASHES[side.number], "source": source}
            name = _SIDES[side.number]
            self.error.line("x", "training", line_width=2, legend_label=name, **look)
            self.error.line("x", "held_out", line_width=1, legend_label=f"{name}, held out", **look)
            self.right.line("x", "right", line_width=2, legend_label=name, **look)
        for plotted, where in ((self.error, "bottom_left"), (self.right, "bottom_right")):
            plotted.legend.location, plotted.legend.background_fill_alpha = where, 0.6
            plotted.legend.label_text_font_size, plotted.legend.padding, plotted.legend.spacing = "11px", 4, 0

    # What the visitor does -------------------------------------------------------------------------------------------

    @property
    def choice(self) -> Choice:
        return Choice(
            self.task.value,
            (int(self.width.value),) * int(self.depth.value),
            self.activation.value,
            self.optimizer.value,
            self.seed,
        )

    def check_rate(self, values: list) -> None:
        classifier.check_rate(self.optimizer.value, *values)

    def restart(self) -> None:
        """Starts new networks with the values of the controls."""
        self.now, self.drawn, self.turn = None, True, self.turn + 1
        self.width.disabled = self.depth.value == "0"
        self.status.say("compiling both networks' programs ...")
        for side in self.sides:
            side.show_name()
            side.rates.read_boxes()  # another optimizer may accept what one refuses
        self.live.ask(Question(self.choice, self.learners, None, 0, self.turn))

    @property
    def learners(self) -> tuple[Learner, Learner]:
        return tuple(side.learner for side in self.sides)

    def new_weights(self) -> None:
        self.seed += 1
        self.restart()

    def run(self, goes: bool) -> None:
        self.go.label = "Pause" if goes else "Train"
        self.drawn = True
        if goes and self.frames is None:
            self.frames = self.document.add_periodic_callback(self.tick, _FRAME)
        elif not goes and self.frames is not None:
            self.document.remove_periodic_callback(self.frames)
            self.frames = None

    @property
    def running(self) -> list[Training]:
        """The runs that can be continued."""
        return [side for side in self.now.sides if not (isinstance(side, str) or side.ended)] if self.now else []

    def tick(self) -> None:
        if self.drawn and not self.live.busy and self.now is not None:
            if not self.running or max(len(side.history.epoch) for side in self.running) >= _LONGEST:
                self.go.active = False
                self.say(self.now)
            else:
                self.drawn = False
                self.ask(self.speed.value)

    def seen(self) -> None:
        self.drawn = True

    def ask(self, epochs: int) -> None:
        if self.now is not None:
            self.live.ask(Question(self.now.question.choice, self.learners, self.now.sides, epochs, self.turn))

    # What is seen ----------------------------------------------------------------------------------------------------

    def show(self, found: Answer) -> None:
        if found.question.turn != self.turn:
            return  # older networks; the new ones will follow
        self.now = found
        self.picture.data = {"number": [(*self.picture.data["number"], 0)[0] + 1]}
        losses, last = [], 1
        for side, curves, result in zip(self.sides, self.curves, found.sides, strict=True):
            side.show(found.question.choice, result)
            if isinstance(result, str):
                page.empty(curves)
                continue
            history = result.history
            both = history.training_loss, history.validation_loss
            shown, held_out = (page.curve(each, 1) for each in both)
            curves.data = {
                "x": shown["x"],
                "training": shown["y"],
                "held_out": held_out["y"],
                "right": 100 * history.validation_accuracy,
            }
            losses += both
            last = max(last, len(history.epoch))
        page.scale_log(self.error, 0, last, losses)
        self.right.x_range.update(start=0, end=last, reset_start=0, reset_end=last)
        self.say(found)

    def say(self, found: Answer) -> None:
        sides = list(zip(_SIDES, self.learners, found.sides, strict=True))
        learning = [each for each in sides if not isinstance(each[2], str)]
        epochs = max((len(run.history.epoch) for *_, run in learning), default=0)
        refused = [f"{name}: {reason}" for name, _, reason in sides if isinstance(reason, str)]
        if refused and not epochs:
            self.status.refuse(f"{'; '.join(refused)}; {_NOTHING}")
        elif not epochs:
            choice = found.question.choice
            sizes = " - ".join(map(str, two_networks.sizes(choice)))
            by_rule = ", ".join(f"{name} by {short(learner.rule)}" for name, learner, _ in learning)
            self.status.say(f"{choice.task}: {sizes} {choice.activation}; {by_rule}. Press Train or Step.")
        else:
            results = "; ".join(f"{short(learner.rule)} {_result(run)}" for _, learner, run in learning)
            pauses = f" Train pauses after {_LONGEST}; Step continues." if epochs >= _LONGEST else ""
            ended = any(run.ended for *_, run in learning)
            (self.status.warn if ended else self.status.say)(
                f"Held out, after {epochs} epoch{'s' if epochs > 1 else ''}: {results}.{pauses}"
            )


def _result(run: Training) -> str:
    """The result in words."""
    if not len(run.history.epoch):
        return f"ended: {run.reason}"
    right = f"{100 * run.history.validation_accuracy[-1]:.1f} % right"
    return f"{number_text(run.history.validation_loss[-1])}, {right}{f' (ended: {run.reason})' if run.ended else ''}"


DEMONSTRATION = Demonstration("learning-rules", TITLE, ABOUT, _Page, warm_up)
