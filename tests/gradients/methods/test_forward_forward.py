"""The forward-forward algorithm, against `jax.grad` of the losses of goodness, written down once more here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_cases import KEY, LOSS, close, over_keys

import functional_nn as fnn
from functional_nn.gradients.methods.forward_forward import neutral


def network_of(classes, width=5, activation="tanh"):
    """Two hidden layers and a norm without parameters of its own between; the output reads the second."""
    return fnn.graph(
        inputs={"p": 3, "label": classes},
        layers=[
            fnn.Layer("first", width, activation, ("p", "label")),
            fnn.Layer("norm", width, "rms_norm", (("first", "identity"),), bias="none"),
            fnn.Layer("second", width + 1, activation, ("norm", "p")),
            fnn.Layer("output", classes, "softmax", ("second",)),
        ],
    )


def numbers(network, examples=6, seed=0):
    """(params, inputs, one-hot targets, classes)."""
    classes, draw = network.output.size, np.random.default_rng(seed)
    params = jax.tree.map(lambda x: np.asarray(x) + 0.3 * draw.normal(size=x.shape), network.init(KEY))
    told = draw.integers(classes, size=examples)
    inputs = {"p": draw.normal(size=(examples, 3)), "label": np.zeros((examples, classes))}
    return params, inputs, np.eye(classes)[told], told


def layers_of(network, params, p, label):
    """{layer: a} of its own parameters, with what it reads held fixed; the output's net inputs."""
    held = jax.lax.stop_gradient

    def net(layer, **read):
        own = params[layer]
        return sum(held(x) @ own["weights"][source].T for source, x in read.items()) + own["bias"][None]

    first = jnp.tanh(net("first", p=p, label=label))
    normed = network.layers[1].activation.forward(first, params["norm"].get("learned", {}))[0]
    second = jnp.tanh(net("second", norm=normed, p=p))
    return {"first": first, "second": second}, net("output", second=second)


def losses(network, params, p, t, wrong, share, threshold):
    """softplus(threshold - G of the right label) + softplus(G of the wrong - threshold), G the mean of a^2, of each
    hidden layer; and the output's cross-entropy where the label says nothing. (Their sum, the last.)
    """
    classes = t.shape[1]
    right, other = layers_of(network, params, p, t)[0], layers_of(network, params, p, jnp.eye(classes)[wrong])[0]

    def good(a):
        return jnp.mean(a**2, axis=1)

    found = [
        share @ (jax.nn.softplus(threshold - good(right[name])) + jax.nn.softplus(good(other[name]) - threshold))
        for name in right
    ]
    n = layers_of(network, params, p, jnp.full_like(t, 1 / classes))[1]
    value = -share @ jnp.sum(t * jax.nn.log_softmax(n, axis=1), axis=1)
    return sum(found, start=value), value


gradient_of = jax.jit(jax.value_and_grad(losses, 1, has_aux=True), static_argnums=0)


@pytest.mark.parametrize("threshold", [1.0, 0.3])
def test_layers_learn_by_their_own_goodness_and_the_output_of_a_neutral_label(threshold):
    """Of two classes the wrong label is known, so that nothing is drawn."""
    network = network_of(2)
    params, inputs, t, told = numbers(network)
    weights = np.random.default_rng(3).uniform(0.5, 2, len(t))
    found = fnn.backpropagate(network, LOSS, params, inputs, t, weights, KEY, rule=f"forward_forward({threshold})")
    (_, value), gradient = gradient_of(network, params, inputs["p"], t, 1 - told, weights / weights.sum(), threshold)
    np.testing.assert_allclose(found.value, value, rtol=1e-13)
    close(found.gradients, gradient)
    shown = network.apply(params, inputs | {"label": np.asarray(neutral(len(t), 2))})
    np.testing.assert_allclose(found.trace.activations["output"], shown, rtol=1e-14)


def test_what_is_given_as_a_label_is_not_read():
    network = network_of(2)
    params, inputs, t, _ = numbers(network)
    step = fnn.value_and_grad(network, LOSS, rule="forward_forward")
    one, other = (step(params, inputs | {"label": x}, t, None, KEY) for x in (inputs["label"], inputs["label"] + 3))
    assert all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_a_wrong_label_is_never_right_and_every_other_as_likely():
    """Read off the gradient: of one example only the right label's column and the wrong one's are not 0."""
    network, classes, count = network_of(4), 4, 1200
    params, inputs, t, _ = numbers(network, examples=1)
    step = fnn.value_and_grad(network, LOSS, rule="forward_forward")

    def columns(key):
        right = jax.random.randint(jax.random.fold_in(key, 5), (1,), 0, classes)
        target = jax.nn.one_hot(right, classes, dtype=t.dtype)
        gradient = step(params, inputs, target, None, key)[1]
        return right[0], gradient["first"]["weights"]["label"], gradient

    right, labels, gradients = over_keys(columns, count)
    met = np.abs(np.asarray(labels)).sum(axis=1) > 0  # (K, C)
    assert (met.sum(axis=1) == 2).all() and met[np.arange(count), right].all()
    met[np.arange(count), right] = False
    wrong = np.argmax(met, axis=1)
    for own in range(classes):
        taken = np.bincount(wrong[np.asarray(right) == own], minlength=classes)
        share = np.delete(taken, own) / taken.sum()
        assert taken[own] == 0 and np.abs(share - 1 / 3).max() < 5 * np.sqrt(2 / 9 / taken.sum())
    for at in range(3):  # and with that label the gradient is what is written down
        target = np.eye(classes)[[int(right[at])]]
        (_, _), expected = gradient_of(network, params, inputs["p"], target, wrong[at : at + 1], np.ones(1), 1.0)
        close(jax.tree.map(lambda x, at=at: x[at], gradients), expected, 1e-11)


def test_each_example_has_a_wrong_label_of_its_own():
    network = network_of(4)
    params, inputs, _, _ = numbers(network, examples=40)
    t = np.eye(4)[np.zeros(40, int)]
    step = jax.jit(fnn.value_and_grad(network, LOSS, rule="forward_forward"))
    gradient = step(params, inputs, t, None, KEY)[1]
    met = np.abs(np.asarray(gradient["first"]["weights"]["label"])).sum(axis=0)
    assert (met > 0).all()  # all three others were drawn in one batch


def test_it_learns_to_tell_two_rings_apart():
    """Which no linear output could: the layers below it have learned something, without a way back."""
    draw = np.random.default_rng(1)
    angle, told = draw.uniform(0, 2 * np.pi, 120), np.arange(120) % 2
    radius = np.where(told == 1, 2.0, 0.7) + 0.1 * draw.normal(size=120)
    p = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.ones(120)], axis=1)
    network, t = network_of(2, 24, "relu"), np.eye(2)[told]
    params = network.init(KEY, jnp.float64)
    step = jax.jit(fnn.value_and_grad(network, LOSS, rule="forward_forward"))
    inputs = {"p": p, "label": np.zeros((120, 2))}
    values = []
    for update in range(400):
        value, gradient = step(params, inputs, t, None, jax.random.key(update))
        values.append(float(value))
        params = jax.tree.map(lambda x, g: np.asarray(x) - 0.3 * np.asarray(g), params, gradient)
    told_by = np.argmax(network.apply(params, inputs | {"label": np.asarray(neutral(120, 2))}), axis=1)
    assert (told_by == told).mean() > 0.95 and values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("network", "rule", "message"),
    [
        (
            fnn.multilayer((3, 4, 2), ("tanh", "softmax")),
            "forward_forward",
            r"forward_forward needs an input 'label' of the classes, \(2,\) as the outputs, got {'input': \(3,\)}",
        ),
        (network_of(3), "forward_forward(1, class)", "forward_forward needs an input 'class' of the classes"),
        (network_of(3), "forward_forward(0)", "forward_forward: threshold must be a finite number > 0, got 0"),
    ],
)
def test_what_it_cannot_learn_is_refused(network, rule, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fnn.value_and_grad(network, LOSS, rule=rule)
    assert "\n" not in str(refusal.value)
