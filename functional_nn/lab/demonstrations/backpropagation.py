"""Backpropagation step by step: a drawn graph, each step's equation and numbers, and jax.grad for comparison."""

import collections
from collections.abc import Iterator

import numpy as np
from bokeh.document import Document
from bokeh.events import Tap
from bokeh.layouts import column, row
from bokeh.models import Arrow, Button, NormalHead, Range1d, Select
from markupsafe import Markup

import functional_nn as fnn
from functional_nn.lab.demonstrations import page, typed
from functional_nn.lab.demonstrations.boxes import Box, Form
from functional_nn.lab.demonstrations.explanations import comparison, explain
from functional_nn.lab.demonstrations.one_example import (
    Entry,
    Example,
    Found,
    Question,
    Step,
    answer,
    check,
    examples,
    neuron,
    readers,
    steps,
)
from functional_nn.lab.demonstrations.page import Demonstration, Live, Status, number_text

TITLE = "Backpropagation, step by step"
ABOUT = (
    "Values go forward, then sensitivities go back, each with its equation and numbers. Click a weight to change it."
)
_FORWARD, _BACKWARD = page.COLORS[0], page.COLORS[1]
_CLEAR = 44  # pixels from a neuron's middle to the middle of a number it does not cover
_NEAR = 0.12  # of a column's width: a click this close to an edge means the edge


def warm_up() -> Iterator[None]:
    """Compiles every example."""
    for example in examples().values():
        answer(example.start)
        yield


# The drawing ----------------------------------------------------------------------------------------------------------


def spots(example: Example) -> dict[str, np.ndarray]:
    """(S, 2) places of each input's and layer's neurons, the first one on top."""
    sizes, found = example.network.sizes, {}
    for name, (x, y) in example.places.items():
        ys = y + (sizes[name] - 1) / 2 - np.arange(sizes[name])
        found[name] = np.stack([np.full(sizes[name], float(x)), ys], axis=1)
    return found


def active(network: fnn.Network, step: Step) -> tuple[set[str], set[tuple[str, str]]]:
    """What takes part in a step: inputs and layers, and pairs (source, layer) between which values flow."""
    into = {layer.name: {(source, layer.name) for source in layer.sources} for layer in network.layers}
    if step.kind in ("net inputs", "gradient"):
        edges = into[step.layer]
    elif step.kind == "derivatives by the activations":
        edges = {(step.layer, reader) for reader in readers(network, step.layer)}
    elif step.kind == "update":
        edges = set().union(*into.values())
    else:
        return {step.layer}, set()
    return {name for edge in edges for name in edge}, edges


def nodes(example: Example, question: Question, found: Found, at: int) -> dict[str, list]:
    """Columns of the neurons, with what is known about them at a step."""
    every = steps(example.network)
    seen, (part, _) = set(every[: at + 1]), active(example.network, every[at])
    known = {(kind, name) for kind, name in seen} | {("sensitivities", name) for kind, name in seen if kind == "start"}
    fill, line_color = ("#cfe3f3", _FORWARD) if every[at].forward else ("#fbdcc3", _BACKWARD)
    rows = []
    for name, places in spots(example).items():
        own = question.params.get(name, {})
        for i, (x, y) in enumerate(places):
            a, n, s = found.activations[name][i], found.net_inputs.get(name), found.sensitivities.get(name)
            bias = own.get("bias")
            rows.append(
                {
                    "x": x,
                    "y": y,
                    "name": neuron("a", name, i),
                    "a": float(a),
                    "n": np.nan if n is None else float(n[i]),
                    "s": np.nan if s is None else float(s[i]),
                    "value": number_text(a) if n is None or ("activations", name) in known else "",
                    "net": f"n {number_text(n[i])}" if ("net inputs", name) in known else "",
                    "back": f"s {number_text(s[i] + 0)}" if ("sensitivities", name) in known else "",
                    "bias": "" if bias is None else f"b {number_text(bias[min(i, len(bias) - 1)])}",
                    "fill": fill if name in part else "white",
                    "line": line_color if name in part else page.GREY,
                    "width": 3 if name in part else 1.5,
                }
            )
    return _columns(rows)


def edges(example: Example, question: Question, found: Found, at: int, wide: float) -> dict[str, list]:
    """Columns of the edges: their weights, or at the gradient and update steps their gradients and new weights.

    wide: the distance between two columns of neurons, in pixels.
    """
    step = steps(example.network)[at]
    _, pairs = active(example.network, step)
    largest = max(abs(entry.of(question.params)) for entry in example.entries if entry.source) or 1.0
    at_labels, rows = labels(example, wide), []
    for entry, start, end in _drawn_edges(example):
        weight, takes_part = entry.of(question.params), (entry.source, entry.layer) in pairs
        shown = {"gradient": found.gradients, "update": found.updated}.get(step.kind, question.params)
        value = entry.of(shown if takes_part else question.params)
        lx, ly = at_labels[entry]
        rows.append(
            {
                "x0": start[0],
                "y0": start[1],
                "x1": end[0],
                "y1": end[1],
                "lx": lx,
                "ly": ly,
                "entry": entry.words,
                "weight": weight,
                "gradient": entry.of(found.gradients),
                "label": number_text(value),
                "color": page.COLORS[0] if weight >= 0 else page.COLORS[1],
                "dash": "solid" if weight >= 0 else "dashed",
                "width": 1 + 4 * min(1.0, abs(weight) / largest),
                "alpha": 1.0 if takes_part else 0.3,
                "text": "#1c2330" if takes_part else "#4d586a",
            }
        )
    return _columns(rows)


def flow(example: Example, at: int) -> dict[str, list]:
    """Arrows along the edges that take part, in the direction in which values flow."""
    step = steps(example.network)[at]
    _, pairs = active(example.network, step)
    rows = []
    moving = step.kind in ("net inputs", "derivatives by the activations")
    for entry, start, end in _drawn_edges(example):
        if moving and (entry.source, entry.layer) in pairs:
            tail, tip = (start + share * (end - start) for share in ((0.62, 0.72) if step.forward else (0.72, 0.62)))
            rows.append({"x0": tail[0], "y0": tail[1], "x1": tip[0], "y1": tip[1]})
    return _columns(rows) if rows else {name: [] for name in ("x0", "y0", "x1", "y1")}


def _drawn_edges(example: Example) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
    at = spots(example)
    for entry in example.entries:
        if entry.source:
            yield entry, at[entry.source][entry.start], at[entry.layer][entry.end]


def _columns(rows: list[dict]) -> dict[str, list]:
    return {name: [each[name] for each in rows] for name in rows[0]}


def labels(example: Example, wide: float) -> dict[Entry, np.ndarray]:
    """Where each edge's number is: evenly spaced next to a column of neurons. If columns are so close that the
    neuron would cover it, it is further on, as long as any two are at least a fifth of a row apart.
    """
    beside = collections.Counter(x for places in spots(example).values() for x in places[:, 0])
    found = {}
    for entry, start, end in _drawn_edges(example):
        count = beside[example.places[entry.layer][0]]
        found[entry] = start + (end - start) * max(1 / (1 + count), min(_CLEAR / wide, 0.8 / count, 0.5))
    return found


def clicked(example: Example, x: float, y: float, shape: tuple[float, float]) -> Entry | None:
    """The edge, or the neuron's bias, that a click means; shape: a column's and a neuron's size in pixels.

    Where edges cross, the number that was clicked decides.
    """
    unit = np.array(shape)
    point, near, distances = np.array([x, y]) * unit, _NEAR * shape[0], {}
    for entry, label in labels(example, shape[0]).items():
        distances[entry] = np.linalg.norm(point - label * unit)
    if min(distances.values()) > near / 2:
        for entry, *ends in _drawn_edges(example):
            start, end = (each * unit for each in ends)
            along = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0.15, 0.85)
            distances[entry] = np.linalg.norm(point - start - along * (end - start))
    for entry in example.entries:
        if not entry.source:  # a click on any neuron means the bias that all neurons share
            ends, alike = spots(example)[entry.layer] * unit, len(example.params[entry.layer]["bias"]) == 1
            distances[entry] = min(np.linalg.norm(point - each) for each in (ends if alike else ends[[entry.end]]))
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] < near else None


class _Page:
    """One session's models, and what their changes do."""

    def __init__(self, document: Document):
        self.example = next(iter(examples().values()))
        self.question, self.found, self.updates = self.example.start, None, 0
        self.quiet = False  # while the page itself sets a control
        self.pixels = {"inner_width": 480, "inner_height": 350}  # of the drawing, until the browser reports its size
        self.status = Status()
        self.live = Live(document, answer, self.show, self.status)
        wide = {"sizing_mode": "stretch_width"}
        self.choice = Select(title="example", options=list(examples()), value=self.example.name, name="example", **wide)
        self.slot = column(**wide)
        back, forward = Button(label="◀ back", name="back", **wide), Button(label="next ▶", name="next", **wide)
        self.inputs = Box("inputs", "inputs", lambda text: self.read(text, self.inputs), self.question.inputs)
        self.targets = Box("targets", "targets", lambda text: self.read(text, self.targets), self.question.targets)
        self.rate = Box("learning rate", "rate", typed.number, self.question.rate)
        self.given = Form([self.inputs, self.targets, self.rate], self.check, self.restart, self.status)
        self.entry = Select(title="parameter", name="entry", **wide)
        self.value = Box("value", "value", typed.number, 0.0)
        self.weight = Form([self.value], lambda values: None, self.weighed, self.status)
        update = Button(label="apply the update", button_type="primary", name="update", **wide)
        again = Button(label="start again", name="again", **wide)
        self.nodes = page.source(
            "nodes", "x", "y", "name", "a", "n", "s", "value", "net", "back", "bias", "fill", "line", "width"
        )
        self.edges = page.source(
            "edges",
            "x0",
            "y0",
            "x1",
            "y1",
            "lx",
            "ly",
            "entry",
            "weight",
            "gradient",
            "label",
            "color",
            "dash",
            "width",
            "alpha",
            "text",
        )
        self.flow, self.titles = page.source("flow", "x0", "y0", "x1", "y1"), page.source("titles", "x", "y", "text")
        self.plotted = self.drawing()
        self.key, self.panel = page.words(name="about"), page.words(name="panel", min_height=300)
        self.compared = page.words(name="compared")

        self.choice.on_change("value", lambda attribute, old, new: self.begin(examples()[new]))
        back.on_click(lambda: self.go(self.step.value - 1))
        forward.on_click(lambda: self.go(self.step.value + 1))
        self.entry.on_change("value", lambda attribute, old, new: self.show_entry())
        self.plotted.on_event(Tap, self.tapped)
        for side in self.pixels:
            self.plotted.on_change(side, self.resized)
        update.on_click(self.update)
        again.on_click(lambda: self.begin(self.example))
        controls = column(
            self.choice,
            self.slot,
            row(back, forward, **wide),
            *(box.model for box in self.given.boxes),
            row(self.entry, self.value.model, **wide),
            row(update, again, **wide),
            **wide,
        )
        page.lay_out(
            document,
            TITLE,
            ABOUT,
            status=self.status.model,
            controls=controls,
            main=column(self.plotted, self.key, **wide),
            side=self.panel,
            below=self.compared,
        )
        self.begin(self.example)

    def drawing(self):
        plotted = page.plot(
            "The network: neurons in columns, an arrow where values flow at this step",
            tools="",
            toolbar_location=None,
            x_range=Range1d(0, 1),
            y_range=Range1d(0, 1),
            height=380,
            name="drawing",
        )
        plotted.axis.visible = plotted.grid.visible = False
        plotted.segment(
            "x0",
            "y0",
            "x1",
            "y1",
            source=self.edges,
            line_color="color",
            line_width="width",
            line_dash="dash",
            line_alpha="alpha",
        )
        head = NormalHead(size=11, fill_color="#1c2330", line_color="#1c2330")
        plotted.add_layout(
            Arrow(
                end=head,
                source=self.flow,
                x_start="x0",
                y_start="y0",
                x_end="x1",
                y_end="y1",
                line_color="#1c2330",
                line_width=3,
            )
        )
        small = {"text_align": "center", "text_baseline": "middle", "text_font_size": "11px", "text_color": "#1c2330"}
        plotted.scatter("x", "y", source=self.nodes, size=44, fill_color="fill", line_color="line", line_width="width")
        plotted.text(
            "lx",
            "ly",
            "label",
            source=self.edges,
            background_fill_color="white",
            padding=1,
            background_fill_alpha=0.85,
            **(small | {"text_color": "text"}),
        )
        plotted.text("x", "y", "value", source=self.nodes, **(small | {"text_font_size": "12px"}))
        paper = {"background_fill_color": "white", "background_fill_alpha": 0.8}
        plotted.text("x", "y", "name", source=self.nodes, x_offset=-14, y_offset=-31, **small, **paper)
        plotted.text("x", "y", "bias", source=self.nodes, x_offset=18, y_offset=-31, **small, **paper)
        plotted.text("x", "y", "net", source=self.nodes, y_offset=30, **small, **paper)
        plotted.text("x", "y", "back", source=self.nodes, y_offset=43, **(small | {"text_color": "#a34700"}), **paper)
        plotted.text("x", "y", "text", source=self.titles, **(small | {"text_color": "#4d586a"}))
        return plotted

    # What the visitor does -----------------------------------------------------------------------------------------

    def begin(self, example: Example) -> None:
        """Shows an example as it is at the start."""
        self.example, self.question, self.updates, self.found, self.quiet = example, example.start, 0, None, True
        at = np.concatenate(list(spots(example).values()))
        (left, low), (right, high) = at.min(axis=0), at.max(axis=0)
        self.plotted.x_range.update(start=left - 0.4, end=right + 0.4)
        self.plotted.y_range.update(start=low - 0.58, end=high + 0.68)
        tops = {name: places[0] for name, places in spots(example).items()}
        names = {layer.name: f"layer {layer.name}: {layer.activation.name}" for layer in example.network.layers}
        self.titles.data = {
            "x": [x for x, _ in tops.values()],
            "y": [y + 0.55 for _, y in tops.values()],
            "text": [names.get(name, "input") for name in tops],
        }
        # a new slider: in the old one the key End would go to the other example's last step
        self.step = page.slider("step", 1, len(steps(example.network)), 1, 1, "step")
        self.step.on_change("value", self.moved)
        self.slot.children = [self.step]
        for box, value in zip(self.given.boxes, (example.inputs, example.targets, example.rate), strict=True):
            box.write(value)
        for box in self.inputs, self.targets:
            box.input.title = f"{box.input.name} ({len(box.value)} number{'s' if len(box.value) > 1 else ''})"
        self.entry.options = [entry.words for entry in example.entries]
        self.entry.value = self.entry.options[0]
        self.key.text = str(
            Markup(
                '<p class="soft">{} Blue edges: positive weights; orange dashed edges: negative ones; thicker edges: '
                "larger ones. In a neuron: its output a; above it: its bias b; below it: net input n and sensitivity "
                "s.</p>"
            ).format(example.about)
        )
        self.quiet = False
        self.show_entry()
        self.live.ask(self.question)

    def go(self, step: int) -> None:
        self.step.value = min(max(step, self.step.start), self.step.end)

    def moved(self, attribute, old, new) -> None:
        if not self.quiet and self.found is not None:
            self.draw()

    def ask(self, question: Question) -> None:
        self.question = question
        self.live.ask(question)

    def read(self, text: str, box: Box) -> tuple[float, ...]:
        return typed.numbers(text, len(box.value))

    def asked(self, values: list) -> Question:
        return self.question._replace(**dict(zip(("inputs", "targets", "rate"), values, strict=True)))

    def check(self, values: list) -> None:
        """Raises ValueError for targets and rates that are refused."""
        check(self.asked(values))

    def restart(self) -> None:
        """Computes with the values in the boxes."""
        self.ask(self.asked(self.given.values))

    @property
    def chosen(self) -> Entry:
        return next(entry for entry in self.example.entries if entry.words == self.entry.value)

    def show_entry(self) -> None:
        if not self.quiet:
            self.value.write(self.chosen.of(self.question.params))

    def weighed(self) -> None:
        self.ask(self.question._replace(params=self.chosen.put(self.question.params, self.value.value)))

    @property
    def shape(self) -> tuple[float, float]:
        """A column's and a neuron's size in pixels."""
        ranges = self.plotted.x_range, self.plotted.y_range
        return tuple(size / (r.end - r.start) for size, r in zip(self.pixels.values(), ranges, strict=True))

    def resized(self, attribute, old, new) -> None:
        self.pixels[attribute] = new
        self.moved(attribute, old, new)

    def tapped(self, event: Tap) -> None:
        if not page.inside(self.plotted, event.x, event.y):
            return
        entry = clicked(self.example, event.x, event.y, self.shape)
        if entry is None:
            self.status.refuse("there is no edge here; click one, or choose it under parameter")
            return
        self.entry.value = entry.words
        self.status.say(f"{entry.words}: {number_text(entry.of(self.question.params))}; type another one under value.")

    def update(self) -> None:
        if self.found is None:
            return  # the update is still being computed
        found, self.found, self.quiet = self.found, None, True
        self.updates += 1
        self.step.value = 1
        self.quiet = False
        self.ask(self.question._replace(params=found.updated))
        self.value.follow(self.chosen.of(found.updated))

    # What is seen --------------------------------------------------------------------------------------------------

    def show(self, answered: tuple[Question, Found]) -> None:
        question, found = answered
        if question is not self.question:
            return  # an older question; the answer to the current one will follow
        self.found = found
        self.compared.text = str(comparison(self.example, found))
        self.draw()

    def draw(self) -> None:
        at, every = self.step.value - 1, steps(self.example.network)
        shown = self.example, self.question, self.found
        self.nodes.data, self.edges.data = nodes(*shown, at), edges(*shown, at, self.shape[0])
        self.flow.data = flow(self.example, at)
        step = page.templates().get_template("backpropagation.html")
        self.panel.text = step.render(explain(*shown, every[at])._asdict())
        made = f" after {self.updates} update{'s' if self.updates > 1 else ''}" if self.updates else ""
        F, new = self.found.value.item(), self.found.updated_value.item()
        where = f"Step {at + 1} of {len(every)}, {every[at].words}"
        text = f"{where}. F = {number_text(F)}{made}; the update changes it to {number_text(new)}."
        if np.isfinite(F) and np.isfinite(new) and new <= F:
            self.status.say(text)
        else:
            self.status.warn(text)


DEMONSTRATION = Demonstration("backpropagation", TITLE, ABOUT, _Page, warm_up)
