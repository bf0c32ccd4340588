"""Examples are divided into three disjoint parts, in MATLAB's four ways."""

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_nn.training import Division, divide

KEY = jax.random.key(0)
share = st.floats(0, 1)


def key_for(by):
    return KEY if by == "random" else None


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("by", ["random", "blocks", "interleaved"])
@given(examples=st.sampled_from((4, 9, 60)), validation=share, test=share)
def test_every_example_is_in_exactly_one_part(by, examples, validation, test):
    parts = divide(examples, (2, validation, test), by, key=key_for(by))
    assert sorted(np.concatenate(parts)) == list(range(examples))
    assert all((np.diff(part) > 0).all() and part.dtype == np.int32 for part in parts)
    total = 2 + validation + test
    for part, own in zip(parts, (2, validation, test), strict=True):
        assert abs(len(part) - examples * own / total) < 1 + 1e-9


@given(examples=st.integers(1, 80), shares=st.tuples(st.floats(0.01, 1), share, share))
def test_interleaved_parts_have_their_shares_of_the_first_n_examples(examples, shares):
    parts = divide(examples, shares, "interleaved")
    for n in range(1, examples + 1):
        for part, own in zip(parts, shares, strict=True):
            assert abs((part < n).sum() - n * own / sum(shares)) < 1 + 1e-7


def test_blocks_follow_one_another():
    parts = divide(20, by="blocks")
    assert [part.tolist() for part in parts] == [list(range(14)), [14, 15, 16], [17, 18, 19]]


def test_a_random_division_depends_only_on_the_key():
    first, again, other = divide(99, key=KEY), divide(99, key=KEY), divide(99, key=jax.random.key(1))
    chex.assert_trees_all_equal(first, again)
    assert [len(part) for part in first] == [69, 15, 15] and first.test.tolist() != other.test.tolist()
    counts = np.zeros(12)
    for key in jax.random.split(KEY, 90):
        counts[divide(12, (1, 1, 1), key=key).validation] += 1
    # each is in it with probability 1 / 3: a sum of 90 has deviation 4.5
    assert np.abs(counts - 30).max() < 4 * np.sqrt(90 * 2 / 9)


def test_explicit_parts_may_leave_examples_out():
    parts = divide(10, by=([5, 0, 2], (3,), []))
    assert isinstance(parts, Division)
    assert [part.tolist() for part in parts] == [[0, 2, 5], [3], []]


def test_a_tree_of_arrays_is_divided_part_by_part():
    x, t = np.arange(20.0).reshape(10, 2), np.arange(10)
    parts = divide(10, by="interleaved")
    for (some, labels), numbers in zip(parts.take((x, t)), parts, strict=True):
        np.testing.assert_array_equal(some, x[numbers])
        np.testing.assert_array_equal(labels, numbers)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"examples": 0}, ValueError, "examples must be an integer >= 1, got 0"),
        ({"by": "random"}, ValueError, "by='random' needs key="),
        ({"by": "blocks", "key": KEY}, ValueError, "by='blocks' draws nothing and takes no key"),
        ({"by": "random", "key": 3}, TypeError, "key: expected a single key"),
        ({"by": "block"}, ValueError, "by must be 'random' or 'blocks' or 'interleaved', got 'block'"),
        ({"shares": (0.7, 0.3)}, ValueError, r"shares must be three numbers >= 0, .* got \(0.7, 0.3\)"),
        ({"shares": (0.7, -0.1, 0.4)}, ValueError, "three numbers >= 0"),
        ({"shares": (0, 1, 1)}, ValueError, "of training, which is above 0"),
        ({"shares": "all"}, ValueError, "three numbers >= 0"),
        ({"examples": 2, "shares": (0.01, 1, 1)}, ValueError, "no example of 2 is left for training"),
        ({"by": 3}, TypeError, "or three lists of numbers, got int"),
        ({"by": ([0], [1])}, ValueError, "or three lists of numbers, got 2"),
        ({"by": ([0], [1], [10])}, ValueError, "test must be numbers from 0 to 9, got 10"),
        ({"by": ([0], [-1], [2])}, ValueError, "validation must be numbers from 0 to 9, got -1"),
        ({"by": ([0.5], [1], [2])}, ValueError, "training must be integers"),
        ({"by": ([], [1], [2])}, ValueError, "training must have at least one example"),
        ({"by": ([0, 1], [1], [2])}, ValueError, "example 1 occurs twice"),
    ],
)
def test_bad_divisions_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        divide(**{"examples": 10, "by": "blocks"} | settings)
