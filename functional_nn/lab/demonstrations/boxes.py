"""Boxes for text: what is typed is read, or refused with the reason below the box until it is corrected."""

from collections.abc import Callable, Sequence
from typing import Any

from bokeh.events import Tap
from bokeh.layouts import column
from bokeh.models import TextInput
from bokeh.plotting import figure

from functional_nn.lab.demonstrations import page, typed
from functional_nn.lab.demonstrations.page import Status


class Box:
    """A box for text. value: the last accepted value; a refused text stays in the box, with the reason below it.

    read(text) -> value raises ValueError; written(value) -> text, for numbers by default.
    """

    def __init__(
        self,
        title: str,
        name: str,
        read: Callable[[str], Any],
        value: Any,
        written: Callable[[Any], str] = typed.written,
        **settings: Any,
    ):
        self.read, self.written, self.quiet, self.changed = read, written, False, lambda: None
        self.input = TextInput(title=title, name=name, sizing_mode="stretch_width")
        self.why = page.words(name=f"{name}-refused", visible=False)
        self.model = column(self.input, self.why, sizing_mode="stretch_width", **settings)
        self.write(value)
        self.input.on_change("value", self._typed)

    def _typed(self, attribute, old, new) -> None:
        if not self.quiet:
            self.changed()

    @property
    def refused(self) -> bool:
        return self.why.visible

    def write(self, value: Any) -> None:
        """Takes a value and shows it, without calling `changed`."""
        self.value, self.quiet = value, True
        self.input.update(value=self.written(value), css_classes=[])
        self.why.visible, self.quiet = False, False

    def follow(self, value: Any) -> None:
        """Takes a value that the page has changed; a refused text stays."""
        if self.refused:
            self.value = value
        else:
            self.write(value)

    def refuse(self, reason: str, so: str = "the last valid value stays") -> None:
        """Marks the text in the box and shows the reason below; so: the consequence."""
        self.input.css_classes = ["refused"]
        self.why.text = page.refusal(f"{reason}; {so}")
        self.why.visible = True


class Form:
    """Boxes whose values belong together, like an optimizer's constants.

    check(values) raises ValueError and names what it refuses; accepted() is called when a value has changed. Refusals
    are also shown in `status`.
    """

    def __init__(
        self, boxes: Sequence[Box], check: Callable[[list], None], accepted: Callable[[], None], status: Status
    ):
        self.boxes, self.check, self.accepted, self.status = boxes, check, accepted, status
        for box in boxes:
            box.changed = self.read_boxes

    @property
    def values(self) -> list:
        return [box.value for box in self.boxes]

    def read_boxes(self) -> None:
        """Reads the text in the boxes: takes all values, or those that are accepted, and marks the others."""
        before, read, refused = self.values, {}, {}
        for box in self.boxes:
            try:
                read[box] = box.read(box.input.value)
            except ValueError as error:
                refused[box] = str(error)
        if self._objection(read):
            for box, value in read.items():
                if reason := self._objection({box: value}):
                    refused[box] = reason
                else:
                    box.value = value
        for box in read.keys() - refused.keys():
            box.write(read[box])
        for box, reason in refused.items():
            box.refuse(reason)
        if self.values != before:
            self.accepted()
        if refused:
            reasons = "; ".join(f"{box.input.title}: {reason}" for box, reason in refused.items())
            self.status.refuse(f"{reasons}; the last valid {'values stay' if len(refused) > 1 else 'value stays'}")

    def _objection(self, changes: dict[Box, Any]) -> str:
        """Why the values would be refused with these changes; empty if they would not."""
        try:
            self.check([changes.get(box, box.value) for box in self.boxes])
        except ValueError as error:
            return str(error)
        return ""


class Start(Form):
    """The start of paths: two boxes for numbers, which a click on a figure also fills."""

    def __init__(self, labels: Sequence[str], value: Sequence[float], status: Status, moved: Callable[[], None]):
        boxes = [Box("", f"start-{i}", typed.number, each) for i, each in enumerate(value)]
        super().__init__(boxes, lambda values: None, moved, status)
        self.move(value, labels)

    def move(self, value: Sequence[float], labels: Sequence[str] | None = None) -> None:
        """Moves the start, without calling `accepted`."""
        for box, each in zip(self.boxes, value, strict=True):
            box.write(each)
        for box, label in zip(self.boxes, labels or (), strict=False):
            box.input.title = f"start, {label}"

    def tapped(self, plotted: figure, event: Tap) -> None:
        """Moves the start to where the figure was clicked, with six digits; clicks outside its axes change nothing."""
        if not page.inside(plotted, event.x, event.y):
            self.status.refuse("that click was outside the plot; the start has not changed")
            return
        self.move([float(f"{each:.6g}") for each in (event.x, event.y)])
        self.accepted()
