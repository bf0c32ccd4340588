"""The weights that answer every example rightly: the questions of CSE 475 17.61, against a search and scikit-learn."""

import itertools

import numpy as np
import pytest
from scipy.optimize import nnls

from functional_nn.lab.separability import separability

TABLE = np.array(list(itertools.product((0, 1), repeat=2)))
GATES = {"AND": [0, 0, 0, 1], "OR": [0, 1, 1, 1], "NAND": [1, 1, 1, 0], "NOR": [1, 0, 0, 0], "XOR": [0, 1, 1, 0]}
# worked example 7, phi(0) = 1: all but XOR with a bias; without, NOR in 0/1 logic, OR and NAND in -1/+1
BARE = {0.0: {"NOR"}, -1.0: {"OR", "NAND"}}
GRID = np.stack(np.meshgrid(*[np.arange(-2, 2.1, 0.5)] * 3), axis=-1).reshape(-1, 3)


def gate(name, false):
    return np.where(TABLE, 1.0, false), np.where(GATES[name], 1.0, false)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("false", [0.0, -1.0])
@pytest.mark.parametrize("name", GATES)
def test_the_texts_questions_are_answered(name, false, bias):
    p, t = gate(name, false)
    found = separability(p, t, bias)
    assert found.separable == (name in BARE[false] if not bias else name != "XOR")
    tried = GRID if bias else np.unique(GRID[:, :2], axis=0)
    n = tried @ (np.hstack([p, np.ones((4, 1))]) if bias else p).T
    right = ((n >= 0) == (t > 0)).all(axis=1)
    np.testing.assert_array_equal(found.answers(tried), right)
    cone = found.cone()
    assert found.separable or len(cone.rays) == 0
    for w in tried[right]:  # what answers rightly is a sum of rays
        assert nnls(cone.rays.T, w)[1] < 1e-9, w
    if found.separable:  # they are not the only ones: a sum of all rays, and each multiple of it, is right, too
        assert found.answers(np.array([[0.1], [3.0]]) * cone.rays.sum(axis=0)).all()


def test_the_margins_of_logical_and_are_the_texts():
    """By hand: w1 + w2 + b >= 0, w1 + b <= 0, w2 + b <= 0, of which any two meet in a ray; the margin at (2, 2, -3)."""
    found = separability(*gate("AND", 0.0))
    assert sorted(found.cone().rays.tolist()) == [[0, 1, -1], [1, 0, -1], [1, 1, -1]]
    np.testing.assert_allclose(found.weights, np.array([2, 2, -3]) / np.sqrt(17), atol=1e-12)
    np.testing.assert_allclose([found.margin, found.radius, found.bound], [17**-0.5, 3**0.5, 51], rtol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(4))
def test_the_margin_is_that_of_a_support_vector_machine(seed):
    from sklearn.svm import SVC

    draw = np.random.default_rng(seed)
    p = draw.normal(size=(40, 1 + seed))
    n = p @ draw.normal(size=1 + seed) + 0.2
    p, t = p[np.abs(n) > 0.1], np.where(n > 0, 1, -1)[np.abs(n) > 0.1]
    found = separability(p, t)
    x = np.hstack([p, np.ones((len(p), 1))])
    # without an offset of its own, which its penalty would spare, and mirrored, so that none is of use
    machine = SVC(kernel="linear", C=1e9, tol=1e-10).fit(np.vstack([x, -x]), np.hstack([t, -t]))
    w = machine.coef_[0]
    np.testing.assert_allclose(found.margin, 1 / np.linalg.norm(w), rtol=1e-4)
    np.testing.assert_allclose(found.weights, w / np.linalg.norm(w), atol=1e-3)
    assert found.separable and found.answers(found.weights)
    np.testing.assert_allclose((t * (x @ found.weights)).min(), found.margin, rtol=1e-9)


def test_directions_that_change_no_answer_are_free():
    """Two inputs that are always equal: their difference may have any weight."""
    p = np.array([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
    found = separability(p, [1, 1, 0], bias=False)
    cone = found.cone()
    np.testing.assert_allclose(np.abs(cone.free), np.full((1, 2), 0.5**0.5))
    np.testing.assert_allclose(cone.rays, [[1, 1]])
    assert found.answers(cone.rays[0] + 5 * cone.free[0])
    nothing = separability(np.zeros((2, 2)), [1, 1], bias=False)  # nothing moves any answer, and all are right
    assert nothing.separable and len(nothing.cone().free) == 2 and nothing.margin == 0


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.zeros(3), [0, 1, 0], r"inputs: expected shape \(Q, R\), got \(3,\)"),
        (np.zeros((3, 2)), [0, 1], r"targets: expected shape \(3,\) or \(3, 1\) for one neuron, got \(2,\)"),
        (np.zeros((2, 2)), [0, 2], "targets: expected 0 and 1 or -1 and [+]1, got 2"),
        (np.zeros((2, 2)), [0, -1], "targets: expected 0 and 1 or -1 and [+]1, got -1"),
        (np.full((2, 2), np.nan), [0, 1], "inputs: expected finite numbers, got nan"),
    ],
)
def test_bad_input_is_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        separability(inputs, targets)


def test_too_many_rays_are_refused():
    draw = np.random.default_rng(0)
    p = draw.normal(size=(60, 6))
    found = separability(p, p[:, 0] > 0)
    with pytest.raises(ValueError, match="the rays of 60 half-spaces in 7 dimensions would take 50063860 trials, abo"):
        found.cone()


@pytest.mark.parametrize("far", [0.0, 1e2, 1e4, 1e6, 1e9])
def test_examples_far_from_zero_and_close_together(far):
    """Two numbers 1 apart: g = 1 / sqrt(4 + (2 far + 1)^2), by hand; and where rounding hides it, that is said."""
    found = separability([[far], [far + 1]], [0, 1])
    assert found.separable
    if far > 1e8:
        assert np.isnan([found.margin, found.bound]).all() and np.isnan(found.weights).all()
    else:
        np.testing.assert_allclose(found.margin, 1 / np.hypot(2, 2 * far + 1), rtol=1e-9)
        assert found.answers(found.weights)


@pytest.mark.parametrize("seed", range(5))
def test_clouds_far_from_zero(seed):
    draw = np.random.default_rng(seed)
    p = draw.normal(size=(40, 3))
    t = p @ draw.normal(size=3) > 0.1
    found = separability(p + 10.0 ** (seed - 1), t)
    assert found.separable and found.margin > 0 and found.answers(found.weights)
    mixed = separability(p + 10.0 ** (seed - 1), draw.permutation(t))
    assert not mixed.separable and mixed.margin == 0
