"""The texts' worked examples come out as the texts' numbers, and as none of their misprints."""

import csv
import importlib.util
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn import optimizers
from functional_nn.optimizers import first_order

SCRIPT = Path(__file__).parents[1] / "scripts" / "worked_examples.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worked_examples = load(SCRIPT)
FOUND = [row for example in worked_examples.EXAMPLES.values() for row in example()]
ROWS = {(row.example, row.quantity): row for row in FOUND}


def computed(example, quantity):
    return np.asarray(ROWS[example, quantity].computed)


@pytest.mark.parametrize("row", ROWS.values(), ids=[f"{example}: {quantity}" for example, quantity in ROWS])
def test_the_library_gives_the_number_of_the_text(row):
    assert row.ok, f"expected {row.expected} to {row.digits} decimals, got {row.computed}"


def test_every_example_has_rows_and_no_row_is_repeated():
    assert {number for number, _ in ROWS} == set(worked_examples.EXAMPLES)
    assert len(ROWS) == len(FOUND)


# Misprints of the texts: (example, quantity, place, misprint, right to the printed decimals)
ERRATA = {
    "Hagan Eq. 3.24: the sign of the constant": (1, "GD step at 0.01: constant (Eq. 3.24)", (0,), 0.04, -0.04, 2),
    "Hagan above Eq. 3.24: the rate is 0.01": (1, "GD step at 0.01: matrix (Eq. 3.24)", (0, 0), -0.2, 0.88, 2),
    "Kordecki: w_22^(1) after the step": (6, "new w^(1)", (1, 1), 0.9881, 0.0988, 4),
    "Kordecki: dE/dw_0^(0)": (6, "dE/dw_0^(0)", (), 0.0008, 0.0024, 4),
    "Kordecki: dE/dy_1^(1), labelled dE/dw_1^(0)": (6, "dE/dy^(1)", (0,), 0.0020, 0.1502, 4),
    "Kordecki: dE/dy_2^(1), labelled dE/dw_12^(0)": (6, "dE/dy_2^(1)", (), 0.0004, 0.0818, 4),
    "Hagan P3.3: -A^-1 d without its minus": (2, "minimum x* = -A^-1 d", (0,), -0.4, 0.4, 1),
}


@pytest.mark.parametrize("example, quantity, place, misprint, right, digits", ERRATA.values(), ids=ERRATA)
def test_misprints_of_the_texts_are_not_copied(example, quantity, place, misprint, right, digits):
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


# Where the numbers come from ------------------------------------------------------------------------------------------

# The results that each text prints, in its order, with slips; the blog prints none
PRINTED = {
    "Hagan": [
        [12, -8, -8, 12],
        [4, 4],
        4,  # Eq. 3.23
        [0.88, 0.08, 0.08, 0.88],
        [0.04, 0.04],  # Eq. 3.24
        [4, 20],
        1,  # below Figure 3.4, "in one iteration"
        2,
        [-10, 0],
        [34, -12, -12, 16],
        [1, -50, 400],
        [10, 40],
        [24, -12, -12, 6],
        [-1, -2],
        [-6, -12, -12, -24],
        [-2, 1],
        [0.4, 0.3],
        0.05,  # P3.3
    ],
    "Kordecki": [
        4.3,
        0.9866,
        5.3,
        0.9950,
        2.0862,
        0.8896,
        1.3888,
        0.8004,
        0.5933,
        -0.7896,
        -0.7504,  # forward
        0.0765,
        0.1183,
        0.0772,
        0.1193,
        0.1974,  # backward, 2nd layer
        1,
        0.0132,
        0.1502,
        0.0020,
        1,
        0.0050,
        0.0818,
        0.0004,
        0.0079,
        0.0016,
        0.0099,
        0.0020,  # 1st layer
        0.8992,
        0.9881,
        0.0008,
        0.5000,
        0.1975,
        0.4980,  # update
    ],
    "CSE 475": [False],  # 17.61.2: one neuron and EXOR
    "Lecture 2": [[0, 1, 1, 0], 1, 20],
}
MENDED = {"Hagan": {(0.04, 0.04): (-0.04, -0.04)}, "Kordecki": {(0.9881,): (0.0988,), (0.0008,): (0.0024,)}}


@pytest.mark.parametrize("text", PRINTED)
def test_no_number_that_a_text_prints_is_missing(text):
    printed = [tuple(map(float, np.ravel(number))) for number in PRINTED[text]]
    rows = [row for row in ROWS.values() if row.provenance.startswith("printed") and row.place.startswith(text)]
    mended = MENDED.get(text, {})
    assert sorted(tuple(np.ravel(row.expected).astype(float)) for row in rows) == sorted(
        mended.get(number, number) for number in printed
    )
    found = [tuple(np.ravel(row.expected).astype(float)) for row in rows if row.provenance == "printed, mended"]
    assert set(mended.values()) <= set(found)


def test_every_row_has_a_provenance_and_a_place():
    assert {row.provenance for row in ROWS.values()} == set(worked_examples.PROVENANCES)
    assert all(row.place for row in ROWS.values())
    texts = tuple(PRINTED)
    assert all(row.place.startswith(texts) for row in ROWS.values() if row.provenance != "equation")


# The three values that Kordecki's rounding moves, computed from the rounded numbers on his slides
ROUNDED = {
    "E, of rounded y": ((0.1 - 0.8896) ** 2 + (0.05 - 0.8004) ** 2) / 2,
    "dE/dw_0^(1), of rounded y": 0.7896 * 0.8896 * 0.1104 + 0.7504 * 0.8004 * 0.1996,
    "dy_2^(1)/dv_2^(1), of rounded y": 0.9950 * 0.0050,
}


def test_kordecki_s_roundings_move_three_last_digits_by_one_and_no_other():
    shifted = {row.quantity: row for row in ROWS.values() if row.shift}
    assert set(shifted) == set(ROUNDED)
    for quantity, row in shifted.items():
        assert round(ROUNDED[quantity], 4) == row.expected
        assert not row._replace(shift=0.0).ok and row.difference < 1e-4
        assert row.shift == pytest.approx(abs(ROUNDED[quantity] - float(row.computed)), abs=1e-6)


# Rows disagree where the library is wrong -----------------------------------------------------------------------------


def disagreeing(monkeypatch, example, method, module, name, replacement):
    """Returns the quantities of an example that disagree when a method of the library is replaced by a wrong one."""
    monkeypatch.setattr(module, name, replacement)
    monkeypatch.setattr(
        optimizers, method, getattr(optimizers, method).remembers
    )  # else the cached right one is returned
    return {row.quantity for row in getattr(load(SCRIPT), example)() if not row.ok}


def test_half_a_newton_step_makes_rows_disagree(monkeypatch):
    def half_step(H, g, damping):
        return -jnp.linalg.solve(H, g) / 2, jnp.asarray(False)

    module = sys.modules["functional_nn.optimizers.second_order.newton"]
    assert disagreeing(monkeypatch, "example3", "newton", module, "_by_shifts", half_step) == {
        "Newton step: (w, b) (Eq. 3.28)",
        "Newton step: F",
        "Newton step: dF/d(w, b)",
    }


def late(decay, k):
    return 1 - decay ** (k + 1)


def mixed(now, g, m, v):
    return now.b1 * m + (1 - now.b1) * g, now.b2 * v + (1 - now.b2) * jnp.mean(g**2)


@pytest.mark.parametrize(
    "name, slip", [("_total_weight", late), ("_moments", mixed)], ids=["correction from step 2", "one second moment"]
)
def test_the_slips_of_the_demonstration_of_adam_make_rows_disagree(name, slip, monkeypatch):
    rows = disagreeing(monkeypatch, "example8", "adam", first_order, name, slip)
    assert {"x_1: a step of the rate in each weight", "x_10", "x_100", "F(x_100)"} <= rows
    assert not rows & {"F at (10, 1)", "F at (4, 4)", "dF/dx at (4, 4)"}


# Rows and the table ---------------------------------------------------------------------------------------------------


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
def test_a_row_is_right_if_it_agrees_to_its_digits(expected, given, digits, ok):
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


def of_two_kinds():
    """A number that a rounding moves, and an exercise."""
    moved = worked_examples.Row(6, "E", 0.5933, 0.593245, 4, 4e-5, "printed", "Kordecki")
    return [moved, worked_examples.Row(3, "F", 8.75, 8.75, provenance="exercise", place="Hagan E3.1")]


def test_the_table_says_where_the_numbers_come_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(worked_examples, "EXAMPLES", {6: of_two_kinds})
    assert worked_examples.main(["--csv", str(tmp_path / "table.csv")]) == 0
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["provenance"], row["place"], row["shift"]) for row in rows]
    assert found == [("printed", "Kordecki", "4e-05"), ("exercise", "Hagan E3.1", "0.0")]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "printed: Kordecki" in lines and "exercise: Hagan E3.1" in lines
    *kinds, last = lines[-6:]
    assert kinds[0].startswith("printed 1 of 1 agree, 1 of them to one in the last digit")
    assert kinds[1:] == [
        "printed, mended 0 of 0 agree",
        "recomputed 0 of 0 agree",
        "exercise 1 of 1 agree",
        "equation 0 of 0 agree",
    ]
    assert last == "2 of 2 quantities agree to the digits given"
