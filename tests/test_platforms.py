"""The choices for a platform change no number, and follow the mesh, the default device or the given platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import functional_nn as fnn
from functional_nn import optimizers, platforms, training
from functional_nn.gradients import quantities
from functional_nn.optimizers.second_order import many_starts

pytestmark = [pytest.mark.usefixtures("brisk"), pytest.mark.newest]

DRAW = np.random.default_rng(0)
NETWORK = fnn.graph(
    inputs={"image": (6, 6, 2)},
    layers=[
        fnn.Layer("conv", 4, "group_norm(2)", sources=[("image", "conv((3, 3))")]),
        fnn.Layer("hidden", 5, "tanh", sources=[("conv", "full")]),
        fnn.Layer("output", 3, "softmax", sources=["hidden"]),
    ],
)
LOSS = fnn.losses.cross_entropy()
DATA = DRAW.normal(size=(24, 6, 6, 2)), np.eye(3)[np.arange(24) % 3]
PARAMS = NETWORK.init(jax.random.key(0))
SINE = fnn.multilayer((1, 5, 1), ("tanh", "linear"))
LINE = np.linspace(-1, 1, 20)[:, None]


def at_a_point():
    """The gradient, quantities of examples, and the loss."""
    names = "per_example_norms", "clipped_gradient", "variance", "inner_products"

    @jax.jit
    def everything(params, x, t):
        found = quantities.compute(NETWORK, LOSS, params, x, t, names, max_norm=0.1)
        return fnn.value_and_grad(NETWORK, LOSS)(params, x, t), found, training.evaluate(NETWORK, LOSS, params, x, t)

    return everything(PARAMS, *DATA)


def population():
    found = training.fit_population(
        NETWORK,
        LOSS,
        "adam",
        {"learning_rate": [0.01, 0.1, 0.2], "seed": range(3)},
        DATA,
        key=jax.random.key(1),
        epochs=2,
        plan=training.minibatch(8),
        validation=DATA,
    )
    return found.history, found.params(1)


def restarted():
    problem = training.problem(SINE, "mean_square_error", LINE, np.sin(3 * LINE))
    starts = jax.vmap(SINE.init)(jax.random.split(jax.random.key(2), 5))
    found = optimizers.restarts(problem, "levenberg_marquardt", starts, steps=4)
    return found.params, found.value, found.steps


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("function", [at_a_point, population, restarted])
def test_what_suits_accelerators_gives_the_same_numbers(function, monkeypatch):
    """On this machine: sums, orders of memory, and blocks, here of two examples."""
    expected = function()
    small = platforms.ACCELERATOR._replace(evaluated=30_000, swept=30_000, most_swept=30_000, formed=30_000)
    monkeypatch.setattr(platforms, "CPU", small)
    jax.clear_caches()
    found = function()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_a_program_is_made_for_the_mesh_the_default_device_or_the_given_platform():
    assert platforms.here() is platforms.CPU
    with jax.default_device(jax.devices("cpu")[0]):
        assert platforms.here() is platforms.CPU
    with platforms.aimed_at("rocm"):
        assert platforms.here() is platforms.ACCELERATOR
        with platforms.aimed_at(None):
            assert platforms.here() is platforms.ACCELERATOR
        with platforms.aimed_at(Mesh(np.array(jax.devices("cpu")[:1]), ("lanes",))):
            assert platforms.here() is platforms.CPU
    seen = []
    jax.jit(platforms.aimed_at("tpu")(lambda x: seen.append(platforms.here()) or x))(jnp.ones(2))
    assert seen == [platforms.ACCELERATOR] and platforms.here() is platforms.CPU


def test_no_more_lanes_than_starts(monkeypatch):
    """1024 lanes of a device suit an accelerator; of five starts there are five."""
    run, widths = many_starts._side_by_side, []

    def noted(programs, width, *given):
        widths.append(width)
        return run(programs, width, *given)

    monkeypatch.setattr(many_starts, "_side_by_side", noted)
    problem = training.problem(SINE, "mean_square_error", LINE, np.sin(3 * LINE))
    starts = jax.vmap(SINE.init)(jax.random.split(jax.random.key(2), 5))
    found, few = (optimizers.restarts(problem, "levenberg_marquardt", starts, steps=4, block=n) for n in (1024, 2))
    assert widths == [5, 2]
    np.testing.assert_allclose(found.value, few.value, rtol=1e-9)
