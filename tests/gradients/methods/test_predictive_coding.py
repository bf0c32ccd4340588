"""Predictive coding: against the equilibrium of linear networks, which is a linear system; against its inference as a
loop in NumPy; and in the limit the exact gradient.
"""

import numpy as np
import pytest
from cases import relative_error
from rule_cases import (
    EXAMPLES,
    KEY,
    LOSS,
    MLP,
    NETWORKS,
    SKIP,
    TINY,
    TRANSFER,
    WEIGHTS,
    backward,
    close,
    forward,
    mean_error,
    numbers,
)

import functional_nn as fnn

LINEAR = fnn.multilayer((3, 4, 3, 2), ("linear",) * 3)
LINEAR_SKIP = fnn.graph(
    inputs={"p1": 3, "p2": 2},
    layers=[
        fnn.Layer("first", 4, "linear", ("p1",)),
        fnn.Layer("second", 3, "linear", ("first", "p2")),
        fnn.Layer("output", 2, "linear", ("second", "first", "p2"), bias="none"),
    ],
)


def equilibrium(network, params, p, t, precision):
    """{layer: x} of one example where E = |a - t|^2 / 2 + precision / 2 sum |x - mu|^2 is smallest: least squares in
    all hidden activities at once.
    """
    hidden = [layer for layer in network.layers if layer is not network.output]
    ends = np.cumsum([0, *(layer.size for layer in hidden)])
    at = {layer.name: slice(*ends[i : i + 2]) for i, layer in enumerate(hidden)}
    rows, right = [], []
    for layer in network.layers:
        own, scale = params[layer.name], 1.0 if layer is network.output else np.sqrt(precision)
        row, known = np.zeros((layer.size, ends[-1])), own.get("bias", np.zeros(layer.size)).copy()
        for source in layer.sources:
            if source in at:
                row[:, at[source]] -= own["weights"][source]
            else:
                known += own["weights"][source] @ p[source]
        if layer is network.output:
            known -= t
        else:
            row[:, at[layer.name]] += np.eye(layer.size)
        rows.append(scale * row)
        right.append(scale * known)
    x = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]
    return {name: x[own] for name, own in at.items()}


@pytest.mark.parametrize("precision", [1.0, 4.0])
@pytest.mark.parametrize("network", [LINEAR, LINEAR_SKIP], ids=["chain", "skip"])
def test_inference_comes_to_rest_at_the_equilibrium_and_learns_there(network, precision):
    """dE/dW = -precision e x^T of hidden layers, (a - t) x^T of the output's, at the solution of the linear system."""
    loss = "half_sum_square_error(mean)"
    params, inputs, targets = numbers(network, loss=loss)
    found = fnn.backpropagate(
        network, loss, params, inputs, targets, WEIGHTS, rule=f"predictive_coding(800, 0.3, {precision})"
    )
    x = [
        equilibrium(network, params, {name: p[q] for name, p in inputs.items()}, targets[q], precision)
        for q in range(EXAMPLES)
    ]
    x = dict(inputs) | {name: np.stack([own[name] for own in x]) for name in x[0]}
    share = (WEIGHTS / WEIGHTS.sum())[:, None]
    gradient, sensitivities = {}, {}
    for layer in network.layers:
        own, name = params[layer.name], layer.name
        mu = sum(x[source] @ own["weights"][source].T for source in layer.sources) + own.get("bias", 0)
        s = share * (mu - targets if layer is network.output else -precision * (x[name] - mu))
        sensitivities[name] = s
        gradient[name] = {"weights": {source: s.T @ x[source] for source in layer.sources}}
        if layer.bias != "none":
            gradient[name]["bias"] = s.sum(axis=0)
    close(found.gradients, gradient, 1e-11)
    close(found.sensitivities, sensitivities, 1e-11)
    exact = fnn.value_and_grad(network, loss)(params, inputs, targets, WEIGHTS)
    np.testing.assert_allclose(found.value, exact[0], rtol=1e-13)  # of the outputs as they are
    assert relative_error(found.gradients, exact[1]) > 0.05


def inference(network, params, inputs, targets, weights, steps, rate, precision):
    """The gradient, by Whittington and Bogacz 2017: all activities at once go down the energy, step after step."""
    _, a = forward(network, params, inputs)
    hidden = [layer for layer in network.layers if layer is not network.output]
    x = {layer.name: a[layer.name] for layer in hidden}
    share = (weights / weights.sum())[:, None]

    def sent(x):
        """dE/dn of each layer, and x - mu, of each example."""
        read, s, errors = dict(inputs) | x, {}, {}
        for layer in network.layers:
            own = params[layer.name]
            n = sum(read[source] @ own["weights"][source].T for source in layer.sources) + own.get("bias", 0)
            f, slope = TRANSFER[layer.activation.name]
            if layer is network.output:
                s[layer.name] = f(n) - targets
            else:
                errors[layer.name] = x[layer.name] - f(n)
                s[layer.name] = -precision * errors[layer.name] * slope(n, f(n))
        return read, s, errors

    for _ in range(steps):
        _, s, errors = sent(x)
        moved = {}
        for name, own in x.items():
            above = sum(
                s[layer.name] @ params[layer.name]["weights"][name] for layer in network.layers if name in layer.sources
            )
            moved[name] = own - rate / precision * (precision * errors[name] + above)
        x = moved
    read, s, _ = sent(x)
    gradient = {}
    for layer in network.layers:
        own = share * s[layer.name]
        gradient[layer.name] = {"weights": {source: own.T @ read[source] for source in layer.sources}}
        if layer.bias != "none":
            gradient[layer.name]["bias"] = own.sum(axis=0)
    return gradient


@pytest.mark.parametrize(("steps", "rate", "precision"), [(1, 0.1, 1.0), (7, 0.2, 0.5), (20, 0.1, 3.0)])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_it_is_the_loop_of_inference_in_numpy(network, steps, rate, precision):
    params, inputs, targets = numbers(network)
    rule = f"predictive_coding({steps}, {rate}, {precision})"
    found = fnn.value_and_grad(network, LOSS, rule=rule)(params, inputs, targets, WEIGHTS)[1]
    close(found, inference(network, params, inputs, targets, WEIGHTS, steps, rate, precision))


def test_one_step_from_the_forward_pass_leaves_what_no_error_has_reached():
    """At first only what the output reads moves: the layer further down has no error yet."""
    params, inputs, targets = numbers(MLP)
    found = fnn.value_and_grad(MLP, LOSS, rule="predictive_coding(1, 0.1)")(params, inputs, targets)[1]
    assert (np.asarray(found["layer1"]["weights"]["input"]) == 0).all()
    assert (np.asarray(found["layer2"]["weights"]["layer1"]) != 0).all()


@pytest.mark.parametrize("network", [MLP, SKIP], ids=["MLP", "skip"])
def test_the_stiffer_the_nearer_to_the_exact_gradient(network):
    """The error falls as 1 / precision: at ten times the precision, a tenth of it."""
    params, inputs, targets = numbers(network)
    exact, _ = backward(network, params, inputs, mean_error(targets))
    error = {}
    for precision in (1e3, 1e4):
        rule = f"predictive_coding(300, 0.3, {precision})"
        error[precision] = relative_error(
            fnn.value_and_grad(network, LOSS, rule=rule)(params, inputs, targets)[1], exact
        )
    assert error[1e3] < 1e-2
    np.testing.assert_allclose(error[1e3] / error[1e4], 10, rtol=0.02)


def test_hidden_neurons_that_are_dropped_stay_dropped_throughout():
    network = fnn.multilayer((3, 6, 2), ("tanh", "softmax"), dropout=(0.5, 0))
    params, inputs, targets = numbers(network)
    found = fnn.backpropagate(
        network, LOSS, params, inputs, targets, None, KEY, rule="predictive_coding(200, 0.3, 1e7)"
    )
    exact = fnn.backpropagate(network, LOSS, params, inputs, targets, None, KEY)
    assert relative_error(found.gradients, exact.gradients) < 1e-5
    mask = np.asarray(found.trace.dropped["layer1"].mask)
    assert (np.asarray(found.sensitivities["layer1"])[mask == 0] == 0).all() and 0 < (mask == 0).mean() < 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("predictive_coding(0)", "predictive_coding: steps must be an integer >= 1, got 0"),
        ("predictive_coding(5, 0)", "predictive_coding: rate must be a finite number > 0, got 0"),
        ("predictive_coding(5, 0.1, -1)", "predictive_coding: precision must be a finite number > 0, got -1"),
    ],
)
def test_constants_are_checked(rule, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fnn.value_and_grad(TINY, LOSS, rule=rule)
    assert "\n" not in str(refusal.value)
