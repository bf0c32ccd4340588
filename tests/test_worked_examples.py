"""The texts' worked examples give the texts' numbers, and none of the texts' misprints."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "worked_examples.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worked_examples = load(SCRIPT)
ROWS = {(row.example, row.quantity): row for example in worked_examples.EXAMPLES.values() for row in example()}


def computed(example, quantity):
    return np.asarray(ROWS[example, quantity].computed)


@pytest.mark.parametrize("row", ROWS.values(), ids=[f"{example}: {quantity}" for example, quantity in ROWS])
def test_the_library_gives_the_number_of_the_text(row):
    assert row.ok, f"expected {row.expected} to {row.digits} decimals, got {row.computed}"


def test_every_example_has_rows_of_its_own():
    assert {number for number, _ in ROWS} == set(worked_examples.EXAMPLES)
    assert len(ROWS) == sum(len(example()) for example in worked_examples.EXAMPLES.values())


# What the texts print wrongly: (example, quantity, place, misprint, right to the printed decimals)
ERRATA = {
    "Hagan Eq. 3.24: the sign of the constant": (1, "GD step at 0.01: constant (Eq. 3.24)", (0,), 0.04, -0.04, 2),
    "Hagan above Eq. 3.24: the rate is 0.01": (1, "GD step at 0.01: matrix (Eq. 3.24)", (0, 0), -0.2, 0.88, 2),
    "Kordecki: w_22^(1) after the step": (6, "new w^(1)", (1, 1), 0.9881, 0.0988, 4),
    "Kordecki: dE/dw_0^(0)": (6, "dE/dw_0^(0)", (), 0.0008, 0.0024, 4),
    "Kordecki: dE/dy_1^(1), labelled dE/dw_1^(0)": (6, "dE/dy^(1)", (0,), 0.0020, 0.1502, 4),
}


@pytest.mark.parametrize("example, quantity, place, misprint, right, digits", ERRATA.values(), ids=ERRATA)
def test_errata_are_not_copied(example, quantity, place, misprint, right, digits):
    value = computed(example, quantity)[place]
    expected = np.asarray(ROWS[example, quantity].expected)[place]
    assert abs(value - right) <= 0.5 * 10**-digits
    assert abs(expected - right) <= 0.5 * 10**-digits
    assert abs(value - misprint) > 0.5 * 10**-digits


def test_a_shared_bias_sums_over_all_its_neurons():
    deltas = computed(6, "dE/dw^(0)")[0]  # x_1 = 1, so the gradients of its weights are the deltas
    np.testing.assert_allclose(computed(6, "dE/dw_0^(0)"), deltas.sum(), rtol=1e-12)


def test_softmax_needs_its_full_jacobian():
    # Kordecki and Lecture 2 take f' = a (1 - a) element by element, which leaves s = 0 wherever t = 0
    assert np.all(np.abs(computed(5, "softmax, one-hot t: F'(n)' (-t/a) (E3.6)")) > 1e-3)


def test_the_input_connection_multiplies_the_element_j_of_the_input():
    # Hagan P3.2 prints s_i^2 p_i, which would make the two columns of dF/dW^3 equal
    assert np.linalg.matrix_rank(computed(4, "dF/dW, from p1 to 2 (P3.2)")) == 2


# The judge itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expected, given, digits, ok",
    [
        (0.0988, 0.098807, 4, True),
        (0.0988, 0.09886, 4, False),
        ([1.0, 2.0], [1.0, 2.1], 2, False),
        (-0.04, 0.04, 12, False),
        (1.0, [1.0, 1.0], 2, False),  # would broadcast
        (1.0, float("nan"), 2, False),
        (True, False, 12, False),
    ],
)
def test_a_row_is_right_to_the_digits_given_and_no_less(expected, given, digits, ok):
    assert worked_examples.Row(0, "quantity", expected, given, digits).ok is ok


def with_one_wrong():
    """A misprint, and a number that is right."""
    return [
        worked_examples.Row(6, "new w_22^(1)", 0.9881, 0.098807, 4),
        worked_examples.Row(6, "E", 0.5932, 0.593245, 4),
    ]


@pytest.mark.parametrize(
    "example, status, verdicts", [("example9", 0, ["True"] * 3), (with_one_wrong, 1, ["False", "True"])]
)
def test_the_table_says_which_values_differ(example, status, verdicts, tmp_path, capsys, monkeypatch):
    example = getattr(worked_examples, example) if isinstance(example, str) else example
    monkeypatch.setattr(worked_examples, "EXAMPLES", {6: example})
    path = tmp_path / "results" / "worked_examples.csv"
    assert worked_examples.main(["--csv", str(path)]) == status
    with path.open(newline="") as file:
        assert [row["ok"] for row in csv.DictReader(file)] == verdicts
    printed = capsys.readouterr().out
    assert f"{verdicts.count('True')} of {len(verdicts)} quantities agree" in printed
    assert ("NO" in printed) == (status == 1)
