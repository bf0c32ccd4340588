"""Random numbers for a backward pass: their moments, their hash, and that streams are independent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import over_keys

from functional_nn.gradients import draws

COUNT = 200_000


STREAM = draws.of_seed(7)


MOMENTS = {  # of the first four powers
    "uniform": (draws.uniform, (0, 1 / 3, 0, 1 / 5)),
    "normal": (draws.normal, (0, 1, 0, 3)),
    "nearly_normal": (draws.nearly_normal, (0, 1, 0, 2.94)),
    "signs": (draws.signs, (0, 1, 0, 1)),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", MOMENTS)
def test_draws_have_the_documented_moments(name, dtype):
    draw, expected = MOMENTS[name]
    x = draw(STREAM, (COUNT,), dtype)
    assert x.dtype == dtype
    x = np.asarray(x, np.float64)
    for power, moment in enumerate(expected, start=1):
        error = np.std(x**power) / np.sqrt(COUNT)
        slack = 0.01 if (name, power) == ("nearly_normal", 4) else 0  # documented to three digits
        assert abs(np.mean(x**power) - moment) <= 5 * error + slack, power
    if name == "uniform":
        assert -1 < x.min() < -0.9999 and 0.9999 < x.max() < 1
    if name == "nearly_normal":
        assert np.abs(x).max() <= 5.9


def test_nearly_normal_is_within_three_thousandths_of_the_normal_distribution():
    scipy = pytest.importorskip("scipy.stats")
    for draw, bound in ((draws.nearly_normal, 0.003), (draws.normal, 0.0)):
        distance = scipy.kstest(np.asarray(draw(STREAM, (COUNT,), np.float64)), "norm").statistic
        assert distance < bound + 1.95 / np.sqrt(COUNT)  # beyond which one sample in a thousand goes by itself


def test_draws_are_the_documented_hash():
    """C. Wellons' lowbias32 in NumPy, twice, of the place and of the two words."""

    def mixed(x):
        x = np.asarray(x, np.uint32)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        return x ^ (x >> np.uint32(16))

    stream = draws.Stream(jnp.uint32(12345), jnp.uint32(987654321))
    expected = mixed(mixed(np.arange(12, dtype=np.uint32) ^ np.uint32(12345)) + np.uint32(987654321)).reshape(3, 4)
    np.testing.assert_array_equal(draws.bits(stream, (3, 4)), expected)
    np.testing.assert_allclose(draws.uniform(stream, (3, 4), np.float64), (expected + 0.5) / 2.0**31 - 1, rtol=1e-15)


def uncorrelated(x, y):
    x, y = (np.asarray(z).ravel() for z in (x, y))
    assert abs(np.mean(x * y)) / np.sqrt(np.mean(x**2) * np.mean(y**2)) < 5 / np.sqrt(x.size)


def test_draws_are_uncorrelated_with_neighbours_and_other_streams():
    shape = (400, 250)
    x = np.asarray(draws.uniform(STREAM, shape, np.float64))
    for lag in (1, 2, 3, 4, 16, 250):
        uncorrelated(x.ravel()[lag:], x.ravel()[:-lag])
        uncorrelated(x.ravel()[lag:] ** 2 - 1 / 3, x.ravel()[:-lag] ** 2 - 1 / 3)
    uncorrelated(x[:, 1:], x[:, :-1])
    others = [draws.of_seed(seed) for seed in (8, 6, 7 + 2**31, 7 + 2**40)]
    others += [draws.inside(STREAM, name) for name in ("layer1", "layer2", 0, 1)]
    others += [draws.inside(STREAM, "layer1", "layer2"), draws.inside(STREAM, "layer2", "layer1")]
    others += [draws.of_key(jax.random.key(seed)) for seed in (0, 1)]
    every = [x, *(np.asarray(draws.uniform(own, shape, np.float64)) for own in others)]
    for at, drawn in enumerate(every):
        for other in every[:at]:
            uncorrelated(drawn, other)
    assert len({tuple(map(int, own)) for own in (STREAM, *others)}) == len(every)


def test_first_draws_of_many_streams_are_independent():
    """Keys and seeds that follow one another: of each only a few numbers are drawn, a layer's or an update's."""
    of_keys = over_keys(lambda key: draws.uniform(draws.inside(draws.of_key(key), "layer1"), (4,), np.float64), 20_000)
    of_seeds = jax.vmap(lambda seed: draws.uniform(draws.of_seed(seed), (4,), np.float64))(jnp.arange(20_000))
    of_numbers = jax.vmap(lambda n: draws.uniform(draws.inside(STREAM, n), (4,), np.float64))(
        jnp.arange(20_000, dtype=jnp.uint32)
    )
    for x in map(np.asarray, (of_keys, of_seeds, of_numbers)):
        assert (np.abs(x.mean(axis=0)) < 5 * np.sqrt(1 / 3 / len(x))).all()
        assert (np.abs((x**2).mean(axis=0) - 1 / 3) < 5 * np.sqrt((1 / 5 - 1 / 9) / len(x))).all()
        uncorrelated(x[1:], x[:-1])
        for at in range(1, 4):
            uncorrelated(x[:, at], x[:, at - 1])


def test_draws_are_the_same_vmapped_traced_and_alone():
    seeds = jnp.arange(3)
    for draw, _ in MOMENTS.values():

        def of_seed(seed, draw=draw):
            return draw(draws.inside(draws.of_seed(seed), "layer1", 3), (2, 5), np.float64)

        vmapped = jax.jit(jax.vmap(of_seed))(seeds)
        for seed in range(3):
            np.testing.assert_allclose(vmapped[seed], of_seed(seed), rtol=1e-15)
            np.testing.assert_allclose(vmapped[seed], of_seed(jnp.uint32(seed)), rtol=1e-15)
