"""Descriptions survive copy, deepcopy and pickle: equal, and fused as before."""

import copy
import dataclasses
import multiprocessing
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers as O
from functional_nn import training as T
from functional_nn.rows import made_by

WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
NETWORK = fnn.multilayer((1, 2), ("softmax",))
CONSTANTS = {"noisy": "(0.1)", "rounded": "(4)", "dropped_back": "(0.2)", "clipped_back": "(1)"}
ROWS = {
    "network": NETWORK,
    "graph": fnn.graph(
        inputs={"p": 2},
        layers=[fnn.Layer("a", 2, "maxout(3)", "p", dropout=0.1)]
        + [fnn.Layer("b", 1, "prelu(layer)", ("a", "p"), bias="shared", initializer="normal(0.2)")],
    ),
    **{f"activation {name}": fnn.activations.get(name) for name in fnn.activations.names()},
    **{f"loss {name}": fnn.losses.get(f"{name}(sum)") for name in fnn.losses.names()},
    **{f"optimizer {name}": O.get(name) for name in (*O.names(), *O.second_order.names())},
    "scheduled": O.adam(O.schedules.linear_warmup(O.schedules.cosine(1.0, 10), 5)),
    "wrapped": O.clip_by_global_norm(O.freeze(O.average(O.momentum(0.1)), ["layer1"]), 1.0),
    "plateau": O.reduce_on_plateau(O.adam, 0.1),
    "regularizer": O.regularizers.elastic_net(0.1, 0.2),
    "criterion": T.early_stopping(3, least=0.1),
    "line search": O.line_searches.get("strong_wolfe"),
    "plan": T.minibatch(3, last="weighted"),
    "clipped": T.clipped(1.0),
    **{f"rule {name}": fnn.rules.get(f"{name}{CONSTANTS.get(name, '')}") for name in fnn.rules.names()},
    "along": T.gradient.gradient_by_rule(fnn.value_and_grad, "{layer1: noisy(0.1), others: surrogate}"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ROWS)
def test_a_copy_is_equal(name, way):
    row = ROWS[name]
    again = WAYS[way](row)
    assert again == row and hash(again) == hash(row) and repr(again) == repr(row)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_network_is_fused_and_does_not_change_the_original(way):
    """ln 0 without the pair that belongs to softmax; the compiled program of one serves the other."""
    copied = WAYS[way](NETWORK)
    params = {"layer1": {"weights": {"input": jnp.array([[200.0], [0.0]])}, "bias": jnp.zeros(2)}}
    x, t = np.ones((4, 1)), np.eye(2)[[1, 1, 1, 0]]
    for network in (copied, NETWORK):
        assert float(fnn.value_and_grad(network, "cross_entropy")(params, x, t)[0]) == 150
    for network in (copied, NETWORK):
        found = fnn.fit(network, "cross_entropy", "gd(0.1)", x, t, key=jax.random.key(0), params=params, epochs=2)
        assert found.status == "completed" and found.history.training_loss[0] == 150


def test_another_activation_of_the_same_name_is_not_fused():
    softmax = fnn.activations.softmax
    other = fnn.Activation("softmax", lambda n, theta: (n, None), softmax.pullback, softmax.pushforward, None)
    assert fnn.losses.cross_entropy().fused_with(other) is None
    dressed = dataclasses.replace(softmax, initializer="he_normal")
    assert fnn.losses.cross_entropy().fused_with(dressed) is not None  # the functions are what is fused


def test_rows_pickled_by_earlier_versions_are_read():
    """Their functions were in `registry`, from which `rows` was split."""
    for row in (fnn.activations.leaky_relu(0.2), O.gd({"layer1": 0.1, "others": 0.01}), NETWORK):
        earlier = pickle.dumps(row, protocol=0).replace(b"functional_nn.rows\n", b"functional_nn.registry\n")
        assert b"functional_nn.registry\n" in earlier and pickle.loads(earlier) == row


def _in_another_process(blobs):
    rows = [pickle.loads(blob) for blob in blobs]
    fused = rows[0].output.activation is fnn.activations.softmax
    return fused, [pickle.dumps(row) for row in rows], list(map(repr, rows))


def test_another_process_has_them_as_its_own():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        fused, back, texts = pool.apply(_in_another_process, ([pickle.dumps(row) for row in ROWS.values()],))
    assert fused and texts == list(map(repr, ROWS.values()))
    assert [pickle.loads(blob) for blob in back] == list(ROWS.values())


def test_what_was_made_by_hand_is_its_own_copy():
    by_hand = O.Optimizer("mine", lambda params: None, lambda state, grads: state, {"rate": jnp.ones(2)})
    assert copy.deepcopy(by_hand) is by_hand and copy.copy(by_hand) is by_hand


def test_arrays_in_a_wrapper_are_copied_with_it():
    masks = O.regularizers.magnitude_masks(NETWORK.init(jax.random.key(0)), 0.5)
    again = WAYS["pickle"](O.keep_pruned("adam", masks))
    assert O.keep_pruned("adam", masks) != again  # arrays are not compared, but both do the same
    params = NETWORK.init(jax.random.key(1))
    assert jax.tree.all(jax.tree.map(np.array_equal, again.init(params), O.keep_pruned("adam", masks).init(params)))


def scaled_error(reduction="mean", scale=1.0):
    """A loss of the user's with a constant."""
    return fnn.Loss(
        "scaled_error", reduction, lambda a, t: scale * jnp.sum((a - t) ** 2, -1), lambda a, t: 2 * scale * (a - t)
    )


def test_a_loss_takes_constants_and_is_known_by_them(monkeypatch):
    """Registered as by a decorator, and forgotten again after the test."""
    monkeypatch.setitem(globals(), "scaled_error", fnn.losses.register(scaled_error))
    loss = fnn.losses.get("scaled_error(sum, scale=0.5)")
    assert loss is scaled_error("sum", 0.5) and loss.constants == {"scale": 0.5}
    assert loss.specification == "scaled_error(sum, scale=0.5)" and fnn.losses.get(loss.specification) is loss
    assert fnn.losses.cross_entropy().specification == "cross_entropy(mean)"
    assert loss != scaled_error("sum") and all(way(loss) is loss for way in WAYS.values())
    assert made_by(loss)[1] == ("sum", 0.5)
    with pytest.raises(TypeError, match="must take reduction='mean' first"):
        fnn.losses.register(lambda scale=1.0: None)


def test_a_population_survives():
    x = np.linspace(-1, 1, 12)[:, None]
    data = x, np.eye(2)[(x[:, 0] > 0).astype(int)]
    grid = {"learning_rate": [0.1, 0.2], "seed": [0, 1]}
    population = T.fit_population(NETWORK, "cross_entropy", "gd", grid, data, key=jax.random.key(0), epochs=2)
    for way in WAYS.values():
        again = way(population)
        for mine, theirs in zip(population.table().values(), again.table().values(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert again.drift(1).relative < 1e-12  # it can be trained again
