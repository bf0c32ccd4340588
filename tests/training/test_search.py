"""Searches: the order of a grid, the ranges and quantiles of drawn values, and which members survive a rung."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functional_nn.training import search

DISTRIBUTIONS = {
    "uniform": search.uniform(-2, 3),
    "log_uniform": search.log_uniform(1e-5, 10),
    "integers": search.integers(-3, 12),
    "log_integers": search.log_integers(1, 300),
    "choice of numbers": search.choice([0.5, 0.9, 1]),
    "choice of words": search.choice(["tanh", "relu", "gelu"]),
}


def assert_same_columns(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], strict=True)


# Grids ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_grid_is_every_combination_with_the_last_name_varying_fastest(lists):
    values = {f"name{index}": given for index, given in enumerate(lists)}
    found = search.grid(**values)
    assert list(found) == list(values)
    assert list(zip(*(column.tolist() for column in found.values()), strict=True)) == list(itertools.product(*lists))


def test_a_grid_keeps_integers_floats_and_words():
    found = search.grid(learning_rate=[1e-3, 0.01], seed=range(16), activation="tanh", momentum=0, decay=[0, 0.5])
    assert search.members(found) == 64
    kinds = {"learning_rate": "f8", "seed": "i8", "activation": "U4", "momentum": "i8", "decay": "f8"}
    assert {name: column.dtype.str[1:] for name, column in found.items()} == kinds
    assert all(column.shape == (64,) for column in found.values())
    np.testing.assert_array_equal(found["decay"][:3], [0.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "values", [np.array([1, 2]), jnp.array([1, 2]), (1, 2), range(1, 3), [np.int32(1), jnp.int32(2)], [np.uint8(1), 2]]
)
def test_a_list_may_be_an_array(values):
    assert_same_columns(search.grid(size=values), {"size": np.array([1, 2], np.int64)})


def test_floats_of_any_precision_become_float64():
    for dtype in (jnp.float32, jnp.bfloat16):
        assert_same_columns(search.grid(rate=jnp.array([0.5, 0.25], dtype)), {"rate": np.array([0.5, 0.25])})
    assert_same_columns(
        search.grid(rate=jnp.float32(0.5), word=np.str_("a")), {"rate": np.array([0.5]), "word": np.array(["a"])}
    )


REFUSED = {
    "empty": ([], "size: expected at least one value, got none"),
    "nested": ([1, [2]], r"size: expected numbers, words or truth values, got \[2\]"),
    "mixed": ([1, "a"], "size: expected only numbers, .* got a mixture"),
    "mixed with floats": ([0.1, "a", 2], "size: expected only numbers, .* got a mixture"),
    "a truth value and a number": (
        [True, 1],
        "size: expected only numbers, .* got a mixture",
    ),
    "None": ([1, None], "size: expected numbers, words or truth values, got None"),
    "nan": ([1.0, math.nan], "size: expected finite numbers, got nan"),
    "infinity": ([math.inf], "size: expected finite numbers, got inf"),
    "complex": ([1j], "size: expected numbers, words or truth values, got 1j"),
    "too large": ([1, 2**63], "size: expected integers of at most 64 bits, got 9223372036854775808"),
    "two axes": (np.ones((2, 2)), r"size: expected a list, of shape \(N,\), got shape \(2, 2\)"),
    "objects": (np.array([None]), "size: expected numbers, words or truth values, got None"),
    "a set": ({1, 2}, r"size: expected a list, got \{1, 2\}"),
    "a distribution": (search.uniform(0, 1), r"size: expected a list, got Uniform\(low=0.0, high=1.0\)"),
}


@pytest.mark.parametrize("values, message", REFUSED.values(), ids=REFUSED)
def test_anything_but_a_list_of_one_kind_is_refused(values, message):
    for take in (lambda: search.grid(rate=[0.1], size=values), lambda: search.members({"size": values})):
        with pytest.raises(ValueError, match=message):
            take()


def test_a_grid_without_names_is_refused():
    with pytest.raises(ValueError, match="grid: expected at least one name"):
        search.grid()


def test_log_spaced_numbers_have_equal_ratios():
    found = search.log_spaced(1e-4, 1e-1, 4)
    assert type(found) is list and found[0] == 1e-4 and found[-1] == 1e-1
    np.testing.assert_allclose(found, [1e-4, 1e-3, 1e-2, 1e-1], rtol=1e-12)
    for arguments in ((0, 1, 3), (-1, 1, 3), (1, 1, 3), (2, 1, 3), (math.nan, 1, 3), (1, math.inf, 3), ("a", 1, 3)):
        with pytest.raises(ValueError, match="log_spaced: "):
            search.log_spaced(*arguments)
    with pytest.raises(ValueError, match="log_spaced: count must be an integer >= 2, got 1"):
        search.log_spaced(1, 2, 1)


# Random search --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**70))
def test_the_first_members_of_a_search_are_those_of_a_smaller_one(count, more, seed):
    small = search.random_search(count, search_seed=seed, **{"x": 3, **DISTRIBUTIONS})
    large = search.random_search(count + more, search_seed=seed, **{"x": 3, **DISTRIBUTIONS})
    assert_same_columns({name: column[:count] for name, column in large.items()}, small)


def test_a_draw_depends_only_on_the_seed_and_the_name():
    alone = search.random_search(50, search_seed=1, rate=search.uniform(0, 1))["rate"]
    beside = search.random_search(50, search_seed=1, other=search.integers(0, 9), rate=search.uniform(0, 1))["rate"]
    np.testing.assert_array_equal(alone, beside)
    assert (alone != search.random_search(50, search_seed=2, rate=search.uniform(0, 1))["rate"]).all()
    assert (alone != search.random_search(50, search_seed=1, rates=search.uniform(0, 1))["rates"]).all()


def test_drawn_values_stay_in_range():
    found = search.random_search(4000, **DISTRIBUTIONS)
    assert search.members(found) == 4000
    for name, low, high in (("uniform", -2, 3), ("log_uniform", 1e-5, 10)):
        assert found[name].dtype == np.float64 and low <= found[name].min() and found[name].max() <= high
    assert found["integers"].dtype == found["log_integers"].dtype == np.int64
    assert set(found["integers"]) == set(range(-3, 13))
    assert found["log_integers"].min() == 1 and 250 < found["log_integers"].max() <= 300
    assert set(found["choice of numbers"]) == {0.5, 0.9, 1.0} and found["choice of numbers"].dtype == np.float64
    assert set(found["choice of words"]) == {"tanh", "relu", "gelu"}
    assert found["choice of words"].dtype == np.dtype("U4")


def test_drawn_values_have_the_quantiles_of_their_distribution():
    """Of 10,000 draws a share p lies below the quantile at p: deviation sqrt(p (1 - p) / 10,000) <= 0.005; five."""
    found = search.random_search(10_000, search_seed=7, **DISTRIBUTIONS)
    for p in (0.1, 0.25, 0.5, 0.9):
        for name, quantile in (("uniform", -2 + 5 * p), ("log_uniform", 1e-5 * 1e6**p)):
            assert abs((found[name] < quantile).mean() - p) < 0.025, (name, p)
    for name in ("integers", "choice of numbers", "choice of words"):
        values, counts = np.unique(found[name], return_counts=True)
        assert (abs(counts / 10_000 - 1 / values.size) < 0.025).all(), name
    for n in (1, 2, 5):
        share = math.log((n + 0.5) / (n - 0.5)) / math.log(300.5 / 0.5)
        assert abs((found["log_integers"] == n).mean() - share) < 0.025, n


def test_the_widest_ranges_can_be_drawn():
    largest = np.finfo(np.float64).max
    found = search.random_search(
        200,
        wide=search.uniform(-largest, largest),
        log=search.log_uniform(5e-324, largest),
        all=search.integers(-(2**63), 2**63 - 1),
        long=search.log_integers(1, 2**53),
    )
    assert search.members(found) == 200 and found["wide"].min() < 0 < found["wide"].max()
    assert found["all"].min() < 0 < found["all"].max()


def test_a_search_also_takes_numbers_and_lists():
    found = search.random_search(
        3, search_seed=0, rate=search.uniform(0, 1), size=8, activation="relu", momentum=[0, 0.5, 1]
    )
    np.testing.assert_array_equal(found["size"], [8, 8, 8])
    np.testing.assert_array_equal(found["activation"], ["relu"] * 3)
    np.testing.assert_array_equal(found["momentum"], [0, 0.5, 1])
    with pytest.raises(ValueError, match="momentum: expected 3 values, one a member, got 2"):
        search.random_search(3, momentum=[0, 1])


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: search.uniform(1, 1), "uniform: expected low < high, got 1 and 1"),
        (lambda: search.uniform(0, math.inf), "uniform: high must be a finite number, got inf"),
        (lambda: search.uniform("0", 1), "uniform: low must be a finite number, got '0'"),
        (lambda: search.log_uniform(0, 1), "log_uniform: expected 0 < low < high, got 0 and 1"),
        (lambda: search.log_uniform(2, 1), "log_uniform: expected 0 < low < high, got 2 and 1"),
        (lambda: search.integers(0, 1.5), "integers: high must be an integer >= .*, got 1.5"),
        (lambda: search.integers(5, 4), "integers: expected low < high <= .*, got 5 and 4"),
        (lambda: search.integers(0, 2**63), "integers: expected low < high <= .*, got 0 and"),
        (lambda: search.log_integers(0, 4), "log_integers: low must be an integer >= 1, got 0"),
        (lambda: search.log_integers(1, 2**60), "log_integers: expected low < high <= 9007199254740992, got 1 and"),
        (lambda: search.choice([]), "choice: expected at least one value, got none"),
        (lambda: search.choice("relu"), "choice: expected a list, got 'relu'"),
        (lambda: search.random_search(0, x=1), "random_search: count must be an integer >= 1, got 0"),
        (
            lambda: search.random_search(2, search_seed=-1, x=1),
            "random_search: search_seed must be an integer >= 0, got -1",
        ),
        (lambda: search.random_search(2), "random_search: expected at least one name"),
    ],
)
def test_bad_ranges_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# Hyperparameters ------------------------------------------------------------------------------------------------------


def test_hyperparameters_are_counted_and_normalized():
    given = {"rate": jnp.array([0.5, 0.25]), "seed": (3, 4), "word": np.array(["a", "bc"])}
    assert search.members(given) == 2
    expected = {"rate": np.array([0.5, 0.25]), "seed": np.array([3, 4]), "word": np.array(["a", "bc"])}
    assert_same_columns(search.normalized(given), expected)
    assert_same_columns(search.normalized(expected), expected)


@pytest.mark.parametrize(
    "given, message",
    [
        ([1, 2], "hyperparameters: expected a dict of lists, got list"),
        ({}, "hyperparameters: expected at least one name"),
        ({1: [1]}, "hyperparameters: expected names that are str, got 1"),
        ({"rate": [1, 2], "seed": [1]}, "expected as many values for every name, but rate has 2, seed has 1"),
        ({"rate": 0.1}, "rate: expected a list, got 0.1"),
        ({"rate": np.array(0.1)}, r"rate: expected a list, of shape \(N,\), got shape \(\)"),
        ({"rate": np.array([])}, "rate: expected at least one value, got none"),
        ({"rate": np.array([1, np.nan])}, "rate: expected finite numbers, got nan"),
    ],
)
def test_bad_hyperparameters_are_refused(given, message):
    for take in (search.members, search.normalized, search.concatenate):
        with pytest.raises(ValueError, match=message):
            take(given)


def test_concatenation_keeps_all_members_in_order():
    first, second = search.grid(rate=[1, 2], word=["a"]), {"word": ["long"], "rate": [0.5]}
    assert_same_columns(
        search.concatenate(first, second), {"rate": np.array([1, 2, 0.5]), "word": np.array(["a", "a", "long"])}
    )
    assert_same_columns(search.concatenate(first), first)
    seeds = search.concatenate({"seed": [2**62 + 1]}, {"seed": [3]})
    assert_same_columns(seeds, {"seed": np.array([2**62 + 1, 3])})
    for others, message in (
        ((first, {"rate": [1]}), "concatenate: expected the names rate, word, got rate in dict 1"),
        (({"rate": [1]}, {"rate": ["a"]}), "rate: expected either numbers or words, got both"),
        ((), "concatenate: expected at least one dict of hyperparameters, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            search.concatenate(*others)


# Successive halving ---------------------------------------------------------------------------------------------------

SCORES = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(st.lists(SCORES, min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_the_lowest_finite_scores_survive(scores, keep):
    survivors = search.successive_halving([1], keep).survivors(scores)
    assert survivors.dtype == bool and survivors.shape == (len(scores),)
    finite = [index for index, score in enumerate(scores) if math.isfinite(score)]
    best = sorted(finite, key=lambda index: (scores[index], index))
    allowed = max(1, math.floor(keep * len(scores) + 1e-9))
    assert set(np.flatnonzero(survivors)) == set(best[:allowed] or [0])


@pytest.mark.parametrize(
    "count, keep, left", [(27, 1 / 3, 9), (81, 1 / 3, 27), (100, 0.29, 29), (10, 0.1, 1), (2, 0.1, 1)]
)
def test_the_fraction_that_survives_is_rounded_down(count, keep, left):
    survivors = search.successive_halving((1, 3), keep).survivors(jnp.arange(count)[::-1])
    assert survivors[-left:].all() and survivors.sum() == left


def test_of_equal_scores_the_earlier_survives():
    halving = search.successive_halving([2, 4], keep=0.5)
    np.testing.assert_array_equal(halving.survivors([1.0, 0.0, 1.0, 1.0]), [True, True, False, False])
    np.testing.assert_array_equal(halving.survivors([np.nan, 5.0, np.inf, -np.inf]), [False, True, False, False])
    np.testing.assert_array_equal(halving.survivors([np.nan, np.inf]), [True, False])


def test_equal_halvings_are_equal_values():
    assert search.successive_halving([1, 3]) == search.Halving((1, 3), 1 / 3, "validation_loss")
    assert hash(search.successive_halving(range(1, 4)))


@pytest.mark.parametrize("epochs, first, keep", [(81, 1, 1 / 3), (100, 5, 0.5), (7, 1, 0.9), (3, 2, 0.1)])
def test_rungs_grow_geometrically(epochs, first, keep):
    rungs = search.rungs_for(epochs, first, keep)
    assert rungs[0] == first and rungs[-1] < epochs
    assert rungs == search.successive_halving(rungs, keep).rungs
    for earlier, later in itertools.pairwise(rungs):
        assert later == earlier + 1 or abs(later - earlier / keep) <= 0.5
    assert search.rungs_for(81, 1) == (1, 3, 9, 27)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: search.successive_halving([]), "rungs must be one or more increasing epochs, got ()"),
        (lambda: search.successive_halving([3, 3]), r"rungs must be one or more increasing epochs, got \(3, 3\)"),
        (lambda: search.successive_halving([0, 3]), "each of rungs must be an integer >= 1, got 0"),
        (lambda: search.successive_halving([1.5]), "each of rungs must be an integer >= 1, got 1.5"),
        (lambda: search.successive_halving(5), "rungs must be a list of epochs, got 5"),
        (lambda: search.successive_halving([1], keep=1), "keep must be between 0 and 1, got 1"),
        (lambda: search.successive_halving([1], keep=0.0), "keep must be between 0 and 1, got 0.0"),
        (lambda: search.successive_halving([1], monitor="loss"), "monitor must be 'validation_loss' or .*, got 'loss'"),
        (
            lambda: search.successive_halving([1]).survivors([]),
            r"scores: expected shape \(n,\) with n >= 1, got \(0,\)",
        ),
        (lambda: search.successive_halving([1]).survivors([[1]]), r"scores: expected shape \(n,\)"),
        (lambda: search.rungs_for(5, 5), "rungs_for: epochs must be an integer >= 6, got 5"),
        (lambda: search.rungs_for(5, 0), "rungs_for: first must be an integer >= 1, got 0"),
    ],
)
def test_bad_halvings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
