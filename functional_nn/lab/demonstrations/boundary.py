"""A decision boundary that moves while a network learns, with the boundaries of its hidden neurons."""

from collections.abc import Iterator
from typing import NamedTuple

from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import Button, Select, Toggle

from functional_nn.lab.demonstrations import classifier, page, typed
from functional_nn.lab.demonstrations.boxes import Box, Form
from functional_nn.lab.demonstrations.classifier import EPOCHS, Choice, Field, Training
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text
from functional_nn.lab.demonstrations.plane import Plane
from functional_nn.optimizers import first_order, second_order

TITLE = "Decision boundary"
ABOUT = "Thick line: the output is 1/2. Thin lines: the net inputs of hidden neurons are 0; the boundary combines them."
_FRAME = 60  # milliseconds between two pictures, at least
_LONGEST = 5000  # epochs, after which training pauses
_SIZES = {"all at once": 0, "50": 50, "20": 20, "5": 5, "1": 1}


class Question(NamedTuple):
    """now: the run to continue for `epochs` epochs; None for a new one of `choice`."""

    choice: Choice
    rate: float
    now: Training | None
    epochs: int


class Answer(NamedTuple):
    """The run, and its outputs over the plane."""

    training: Training
    field: Field


def answer(question: Question) -> Answer:
    """The continued run. Raises ValueError for what is refused."""
    now = question.now or classifier.begin(question.choice, question.rate)
    if question.epochs and not now.ended:
        now = classifier.advance(now, question.rate, question.epochs)
    return Answer(now, classifier.field(now))


def warm_up() -> Iterator[None]:
    """Compiles what the page starts with; then, for the same network, the methods that are most likely to be chosen."""
    for optimizer in ("adam", "levenberg_marquardt", "lbfgs", "gd", "momentum", "rmsprop"):
        answer(Question(Choice(optimizer=optimizer).suited, 0.01, None, 1))
        yield


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        self.document, self.now, self.frames = document, None, None
        self.seed, self.quiet = 0, False
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        first = Choice()
        self.data = Select(title="data", options=list(classifier.DATA), value=first.data, name="data", **wide)
        self.hidden = Box("hidden neurons", "hidden", classifier.hidden_sizes, first.hidden)
        Form([self.hidden], lambda values: None, self.restart, self.status)
        self.activation = Select(
            title="activation", options=list(classifier.ACTIVATIONS), value=first.activation, name="activation", **wide
        )
        self.loss = Select(title="loss", options=list(classifier.LOSSES), value=first.loss, name="loss", **wide)
        options = {"first order": list(first_order.names()), "second order": list(second_order.names())}
        self.optimizer = Select(title="optimizer", options=options, value=first.optimizer, name="optimizer", **wide)
        self.size = Select(
            title="batch size", options=list(_SIZES), value=str(first.batch_size), name="batch-size", **wide
        )
        self.rate = Box("learning rate", "rate", typed.number, 0.01)
        self.rates = Form(
            [self.rate], lambda values: classifier.check_rate(self.optimizer.value, *values), lambda: None, self.status
        )
        self.speed = page.slider("epochs per picture", 1, EPOCHS, 5, 1, "speed")
        self.layer = Select(title="boundaries of", options=["layer1"], value="layer1", name="layer", **wide)
        self.go = Toggle(label="Train", name="go", button_type="primary", **wide)
        self.step = Button(label="Step", name="step", **wide)
        self.again = Button(label="Reset", name="again", **wide)

        self.plane = Plane("The plane of both inputs coloured by the output, examples and boundaries", 500)
        self.curves = page.source("curves", "x", "training", "held_out")
        self.readout = page.words(name="readout")
        self.error = self.curve()
        for control in (self.data, self.activation, self.loss, self.optimizer, self.size):
            control.on_change("value", lambda attribute, old, new: self.restart())
        self.layer.on_change("value", lambda attribute, old, new: self.ask(0))
        self.go.on_change("active", lambda attribute, old, new: self.run(new))
        self.go.js_on_change("label", page.keeps_focus())
        self.step.on_click(lambda: self.ask(self.speed.value))
        self.again.on_click(self.new_weights)
        controls = column(
            row(self.go, self.step, self.again, **wide),
            self.data,
            row(self.hidden.model, self.activation, **wide),
            self.optimizer,
            row(self.rate.model, self.size, **wide),
            self.loss,
            self.speed,
            self.layer,
            **wide,
        )
        page.lay_out(
            document,
            TITLE,
            ABOUT,
            status=self.status.model,
            controls=controls,
            main=self.plane.figure,
            side=column(self.error, self.readout, **wide),
        )
        self.restart()

    def curve(self):
        plotted = page.log_plot("Training and held-out loss against epochs", "epoch", "loss", height=300)
        for name, color, dash, label in (
            ("training", page.COLORS[0], "solid", "training"),
            ("held_out", page.COLORS[1], "dashed", "held out"),
        ):
            plotted.line("x", name, source=self.curves, color=color, line_dash=dash, line_width=2, legend_label=label)
        plotted.legend.location, plotted.legend.background_fill_alpha = "bottom_left", 0.6
        return plotted

    # What the visitor does -------------------------------------------------------------------------------------------

    def choice(self) -> Choice:
        return Choice(
            self.data.value,
            self.hidden.value,
            self.activation.value,
            self.loss.value,
            self.optimizer.value,
            _SIZES[self.size.value],
            self.seed,
        ).suited

    def restart(self) -> None:
        """Starts a new network with the values of the controls."""
        if self.quiet:
            return
        choice, self.quiet = self.choice(), True
        layers = [f"layer{i + 1}" for i in range(len(choice.hidden))]
        self.layer.options = layers
        self.layer.value = self.layer.value if self.layer.value in layers else layers[-1]
        self.loss.value = choice.loss
        self.size.disabled = choice.batch_size != _SIZES[self.size.value]
        self.rate.input.disabled = choice.second_order
        self.speed.value = 1 if choice.second_order else self.speed.value
        self.quiet, self.now = False, None
        self.status.say(f"compiling {choice.optimizer} for this network ...")
        self.rates.read_boxes()  # another optimizer may accept what one refuses
        self.live.ask(Question(choice, self.rate.value, None, 0))

    def new_weights(self) -> None:
        self.seed += 1
        self.restart()

    def run(self, goes: bool) -> None:
        self.go.label = "Stop" if goes else "Train"
        if goes and self.frames is None:
            self.frames = self.document.add_periodic_callback(self.tick, _FRAME)
        elif not goes and self.frames is not None:
            self.document.remove_periodic_callback(self.frames)
            self.frames = None

    def tick(self) -> None:
        if not self.live.busy and self.now is not None:
            if self.now.ended or len(self.now.history.epoch) >= _LONGEST:
                self.go.active = False
                self.say(self.now.choice)
            else:
                self.ask(self.speed.value)

    def ask(self, epochs: int) -> None:
        if not self.quiet and self.now is not None:
            self.live.ask(Question(self.now.choice, self.rate.value, self.now, epochs))

    # What is seen ----------------------------------------------------------------------------------------------------

    def show(self, found: Answer) -> None:
        if found.training.choice != self.choice():
            return  # an older network; the new one will follow
        self.now, (outputs, net_inputs) = found
        choice, history = self.now.choice, self.now.history
        examples = classifier.data(choice.data)
        x, t = examples.inputs[0], examples.targets[0, :, 0]
        layer = self.layer.options.index(self.layer.value)
        self.plane.show(x, t, outputs, net_inputs[min(layer, len(net_inputs) - 1)])
        losses = history.training_loss, history.validation_loss
        shown, held_out = (page.curve(each, 1) for each in losses)
        self.curves.data = {"x": shown["x"], "training": shown["y"], "held_out": held_out["y"]}
        page.scale_log(self.error, 1, max(2, len(shown["x"])), losses)
        self.say(choice)

    def say(self, choice: Choice) -> None:
        history, epochs = self.now.history, len(self.now.history.epoch)
        word = "steps" if choice.second_order else "epochs"
        if not epochs:
            self.status.say(
                f"{choice.data}: {' - '.join(map(str, (2, *choice.hidden, 1)))} {choice.activation}, "
                f"{choice.optimizer}, {choice.loss}. Press Train or Step."
            )
            self.readout.text = ""
            return
        last = f"loss {number_text(history.training_loss[-1])}, held out {number_text(history.validation_loss[-1])}"
        if self.now.ended:
            diverged = int(self.now.run.ended) == 1
            (self.status.warn if diverged else self.status.say)(f"Ended: {self.now.reason}; {last}.")
        else:
            pauses = f" Train pauses after {_LONGEST}; Step continues." if epochs >= _LONGEST else ""
            self.status.say(f"{epochs} {word} of {choice.optimizer}: {last}.{pauses}")
        accuracy = history.training_accuracy[-1], history.validation_accuracy[-1]
        rows = [
            ("training", number_text(history.training_loss[-1]), f"{100 * accuracy[0]:.1f} %"),
            ("held out", number_text(history.validation_loss[-1]), f"{100 * accuracy[1]:.1f} %"),
        ]
        rate = "" if choice.second_order else f", learning rate {number_text(self.rate.value)}"
        caption = f"{choice.optimizer}{rate}; |gradient| {number_text(history.gradient_norm[-1])}"
        self.readout.text = str(page.tables(page.Table(("", choice.loss, "accuracy"), rows, caption)))


DEMONSTRATION = Demonstration("decision-boundary", TITLE, ABOUT, _Page, warm_up)
