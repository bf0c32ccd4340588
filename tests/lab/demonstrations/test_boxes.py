"""Boxes: a refused text stays, marked, with the reason; what belongs together is taken together, or in part."""

import pytest
from bokeh.events import Tap

from functional_nn.lab.demonstrations import page, typed
from functional_nn.lab.demonstrations.boxes import Box, Form, Start
from functional_nn.optimizers import first_order


class Made:
    """A form of rprop's shortest and longest step, and how often it was accepted."""

    def __init__(self):
        self.accepted, self.status = 0, page.Status()
        self.low, self.high = (Box(name, name, typed.number, value) for name, value in (("low", 1.0), ("high", 2.0)))
        self.form = Form([self.low, self.high], self.check, self.count, self.status)

    def check(self, values):
        if not values[0] < values[1]:
            raise ValueError(f"low must be below high, got {values[0]} and {values[1]}")

    def count(self):
        self.accepted += 1


def state(box):
    return box.input.value, "refused" in box.input.css_classes, box.refused


def test_a_refused_text_stays_until_it_is_corrected():
    made = Made()
    made.low.input.value = "abc"
    assert state(made.low) == ("abc", True, True) and made.form.values == [1.0, 2.0] and made.accepted == 0
    assert (
        "expected a finite number, as in 0.05 or 1e-3, got &#39;abc&#39;; the last valid value stays"
        in made.low.why.text
    )
    assert 'class="status refuses"' in made.status.model.text and "low: expected" in made.status.model.text
    made.high.input.value = "3"  # what else is typed is taken, and the mark stays
    assert state(made.low) == ("abc", True, True) and made.form.values == [1.0, 3.0] and made.accepted == 1
    made.low.input.value = "0,5"
    assert state(made.low) == ("0.5", False, False) and made.form.values == [0.5, 3.0] and made.accepted == 2
    made.low.input.value = "abc"
    made.low.input.value = "0.5"  # as it was
    assert state(made.low) == ("0.5", False, False) and made.accepted == 2


def test_values_that_do_not_fit_together_are_refused():
    """The one that was changed is marked; when the other follows, both are taken."""
    made = Made()
    made.low.input.value = "5"
    assert state(made.low) == ("5", True, True) and "low must be below high, got 5.0 and 2.0" in made.low.why.text
    made.high.input.value = "4"  # still not, but it goes with the last low
    assert state(made.low) == ("5", True, True) and made.form.values == [1.0, 4.0]
    made.high.input.value = "6"
    assert state(made.low) == ("5", False, False) and made.form.values == [5.0, 6.0] and made.accepted == 2


def test_several_are_refused_each_with_its_reason():
    made = Made()
    made.low.input.value, made.high.input.value = "x", "y"
    for box, letter in ((made.low, "x"), (made.high, "y")):
        assert state(box) == (letter, True, True) and f"&#39;{letter}&#39;" in box.why.text
    assert "low: " in made.status.model.text and "high: " in made.status.model.text
    assert made.form.values == [1.0, 2.0] and made.accepted == 0


def test_values_written_by_the_page_do_not_count_as_typed():
    made = Made()
    made.low.input.value = "abc"
    made.low.follow(1.5)  # such as a weight that an update changes
    assert made.low.value == 1.5 and state(made.low) == ("abc", True, True)
    made.low.write(1.25)  # such as another example's
    assert state(made.low) == ("1.25", False, False) and made.accepted == 0
    made.low.follow(1e-8)
    assert made.low.input.value == "1e-8" and made.accepted == 0


def test_markup_is_escaped():
    made = Made()
    made.low.input.value = "<img src=x onerror=alert(1)>"
    assert "<img" not in made.low.why.text + made.status.model.text and "&lt;img" in made.low.why.text


def test_a_check_that_starts_to_refuse_the_current_value():
    """Such as another optimizer's: nothing changes but the mark, which goes when it is taken again."""
    highest, box = [10.0], Box("rate", "rate", typed.number, 5.0)

    def check(values):
        if values[0] > highest[0]:
            raise ValueError(f"rate must be at most {highest[0]}")

    form = Form([box], check, lambda: pytest.fail("nothing has changed"), page.Status())
    highest[0] = 1.0
    form.read_boxes()
    assert state(box) == ("5", True, True) and box.value == 5.0
    highest[0] = 10.0
    form.read_boxes()
    assert state(box) == ("5", False, False)


@pytest.mark.parametrize("name", first_order.names())
def test_a_box_for_each_constant_marks_the_one_that_is_wrong(name):
    """By the optimizers' own checks: a text that is no number for any of them, and -1 where that is refused."""
    from functional_nn.lab.demonstrations import surfaces

    constants = surfaces.constants_of(name)
    boxes = [Box(each, each, typed.number, value) for each, value in constants.items()]
    form = Form(
        boxes,
        lambda values: first_order.factory(name)(**dict(zip(constants, values, strict=True))),
        lambda: None,
        page.Status(),
    )
    for box in boxes:
        for text in ("x", "-1", "inf"):
            box.input.value = text
            refused = [each for each in boxes if each.refused]
            assert refused in ([box], []) and (refused or text == "-1")
            box.write(constants[box.input.name])
    assert form.values == list(constants.values())


def test_a_click_and_boxes_set_the_start():
    moved, status = [], page.Status()
    start = Start(("x", "y"), (7.0, 5.0), status, lambda: moved.append(tuple(start.values)))
    plotted = page.plot("a plane", x_range=(0, 10), y_range=(0, 10))
    assert [box.input.title for box in start.boxes] == ["start, x", "start, y"] and not moved
    start.boxes[0].input.value = "0,05"
    start.tapped(plotted, Tap(plotted, x=1.23456789, y=2 / 3))
    assert moved == [(0.05, 5.0), (1.23457, 0.666667)] and start.boxes[1].input.value == "0.666667"
    start.boxes[0].input.value = "x"
    start.tapped(plotted, Tap(plotted, x=-1, y=2))
    assert len(moved) == 2 and "outside the plot" in status.model.text and state(start.boxes[0])[1]
