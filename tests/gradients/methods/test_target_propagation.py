"""Difference target propagation, against the equations of Lee et al. 2015 in NumPy; inverses by the complex step."""

import jax
import numpy as np
import pytest
from rule_cases import KEY, LOSS, TRANSFER, WEIGHTS, close, forward, mean_error, numbers

import functional_nn as fnn
from functional_nn import rules
from functional_nn.gradients import draws

CHAIN = fnn.multilayer((3, 5, 4, 4, 2), ("tanh", "sigmoid", "tanh", "softmax"))
BELOW = {"layer2": "layer1", "layer3": "layer2", "layer4": "layer3"}
ACTIVE = {layer.name: layer.activation.name for layer in CHAIN.layers}


def initialized(network=CHAIN, loss=LOSS):
    """(params with inverses, whose biases are not at 0, inputs, targets)."""
    params, inputs, targets = numbers(network, loss=loss)
    params = jax.tree.map(np.asarray, rules.begin("target_propagation", network, params, KEY))
    draw = np.random.default_rng(4)
    for own in params.values():
        if "feedback" in own:
            own["feedback"]["inverse_bias"] = draw.normal(size=own["feedback"]["inverse_bias"].shape)
    return params, inputs, targets


def inverse(params, layer, a):
    """h(a) = f(V a + c) of the layer below."""
    own = params[layer]["feedback"]
    return TRANSFER[ACTIVE[BELOW[layer]]][0](a @ own["inverse"].T + own["inverse_bias"])


def test_inverses_are_of_the_layers_between_the_first_and_the_output():
    params, _, _ = initialized()
    found = {layer: {name: x.shape for name, x in own.get("feedback", {}).items()} for layer, own in params.items()}
    assert found == {
        "layer1": {},
        "layer2": {"inverse": (5, 4), "inverse_bias": (5,)},
        "layer3": {"inverse": (4, 4), "inverse_bias": (4,)},
        "layer4": {},
    }


@pytest.mark.parametrize("rate", [0.1, 2.0])
def test_layers_learn_by_the_distance_to_their_targets(rate):
    """Eq. 8: t^3 = a^3 - rate dF_q/da^3; Eq. 15: t^m = a^m + h(t^(m+1)) - h(a^(m+1)); |a - t|^2 / 2 rate of each."""
    params, inputs, targets = initialized()
    n, a = forward(CHAIN, params, inputs)
    share = (WEIGHTS / WEIGHTS.sum())[:, None]
    aims = {"layer3": a["layer3"] - rate * (a["layer4"] - targets) @ params["layer4"]["weights"]["layer3"]}
    for layer in ("layer2", "layer1"):
        above = f"layer{int(layer[-1]) + 1}"
        aims[layer] = a[layer] + inverse(params, above, aims[above]) - inverse(params, above, a[above])
    s = {"layer4": mean_error(targets, WEIGHTS)(a["layer4"])}
    for layer, aim in aims.items():
        slope = TRANSFER[ACTIVE[layer]][1](n[layer], a[layer])
        s[layer] = share * (a[layer] - aim) / rate * slope
    found = fnn.backpropagate(
        CHAIN, LOSS, params, inputs, targets, WEIGHTS, KEY, rule=f"target_propagation({rate}, 0.1)"
    )
    close(found.sensitivities, s)
    for layer in CHAIN.layers:
        own = {"weights": {layer.sources[0]: s[layer.name].T @ a[layer.sources[0]]}, "bias": s[layer.name].sum(axis=0)}
        close({name: found.gradients[layer.name][name] for name in own}, own)
    exact = fnn.value_and_grad(CHAIN, LOSS)(params, inputs, targets, WEIGHTS)
    for layer in ("layer3", "layer4"):  # by the output's own error, and the step that makes the first target
        close(found.gradients[layer]["weights"], exact[1][layer]["weights"], 1e-12)
    np.testing.assert_allclose(found.value, exact[0], rtol=1e-14)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_inverse_learns_to_give_back_what_the_layer_was_made_of(noise):
    """Eq. 16: |h(f(x)) - x|^2 / 2, x = a + noise held fixed; its derivative by the complex step, V and c one by one."""
    params, inputs, targets = initialized()
    rule = f"target_propagation(0.1, {noise})"
    found = fnn.value_and_grad(CHAIN, LOSS, rule=rule)(params, inputs, targets, WEIGHTS, KEY)[1]
    a, share = forward(CHAIN, params, inputs)[1], WEIGHTS / WEIGHTS.sum()
    for layer in ("layer2", "layer3"):
        below = BELOW[layer]
        drawn = draws.normal(draws.inside(draws.of_key(KEY), layer), a[below].shape, np.float64)
        x = a[below] + noise * np.asarray(drawn)
        through = TRANSFER[ACTIVE[layer]][0](x @ params[layer]["weights"][below].T + params[layer]["bias"])

        def loss(own, below=below, x=x, through=through):
            back = TRANSFER[ACTIVE[below]][0](through @ own["inverse"].T + own["inverse_bias"])
            return share @ ((back - x) ** 2).sum(axis=1) / 2

        own = {name: array.astype(complex) for name, array in params[layer]["feedback"].items()}
        expected = {name: np.zeros(array.shape) for name, array in own.items()}
        for name, array in own.items():
            for index in np.ndindex(array.shape):
                array[index] += 1e-30j
                expected[name][index] = loss(own).imag / 1e-30
                array[index] = array[index].real
        close(found[layer]["feedback"], expected)


def test_with_exact_inverses_a_linear_network_hands_down_what_gauss_and_newton_would():
    """V = W^-1: the required change of a^1 is W^-1 times that of a^2, instead of W^T."""
    network = fnn.multilayer((3, 4, 4, 2), ("linear",) * 3)
    loss = "half_sum_square_error"
    params, inputs, targets = numbers(network, loss=loss)
    params = rules.begin("target_propagation", network, params, KEY)
    w = np.asarray(params["layer2"]["weights"]["layer1"])
    params["layer2"]["feedback"] = {
        "inverse": np.linalg.inv(w),
        "inverse_bias": -np.linalg.solve(w, params["layer2"]["bias"]),
    }
    found = fnn.backpropagate(network, loss, params, inputs, targets, None, KEY, rule="target_propagation(0.1, 0)")
    s2 = found.sensitivities["layer2"]
    close(found.sensitivities["layer1"], np.linalg.solve(w, np.asarray(s2).T).T, 1e-11)
    for x in found.gradients["layer2"]["feedback"].values():  # what is given back exactly is learned no further
        np.testing.assert_allclose(x, 0, atol=1e-12)


def test_noise_differs_between_updates_and_layers():
    params, inputs, targets = initialized()
    step = fnn.value_and_grad(CHAIN, LOSS, rule="target_propagation")
    one, again, other = (
        step(params, inputs, targets, None, jax.random.key(seed))[1]["layer3"]["feedback"]["inverse"]
        for seed in (0, 0, 1)
    )
    assert (one == again).all() and (one != other).all()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            fnn.graph(
                inputs={"p": 3},
                layers=[fnn.Layer("one", 4, "tanh", ("p",)), fnn.Layer("two", 2, "softmax", ("one", "p"))],
            ),
            "target_propagation inverts layer after layer.* 'two' reads 'one' by dense, 'p' by dense",
        ),
        (fnn.multilayer((3, 4, 2), ("maxout", "softmax")), "neuron by neuron; layer 'layer1' has activation 'maxout"),
        (fnn.multilayer((3, 4, 2), ("prelu", "softmax")), "neuron by neuron; layer 'layer1' has activation 'prelu"),
        (fnn.multilayer((3, 4, 2), ("softmax", "softmax")), "neuron by neuron; layer 'layer1' has activation 'softmax"),
        (fnn.multilayer((3, 4, 2), ("tanh", "softmax"), dropout=0.5), "neuron by neuron; layer 'layer1' has dropout"),
        (
            fnn.graph(
                inputs={"p": (4, 2)},
                layers=[fnn.Layer("one", 3, "tanh", ("p",)), fnn.Layer("two", 2, "softmax", (("one", "full"),))],
            ),
            r"target_propagation inverts layers of vectors; layer 'one' has shape \(4, 3\)",
        ),
    ],
)
def test_what_is_no_chain_of_single_neurons_is_refused(network, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fnn.value_and_grad(network, LOSS, rule="target_propagation")
    assert "\n" not in str(refusal.value)


def test_missing_keys_and_inverses_are_refused():
    params, inputs, targets = initialized()
    step = fnn.value_and_grad(CHAIN, LOSS, rule="target_propagation")
    with pytest.raises(ValueError, match="rule: target_propagation.* draws at every update; give key="):
        step(params, inputs, targets)
    with pytest.raises(ValueError, match=r"target_propagation.* learns layer2/feedback, expected shapes .*inverse"):
        step(rules.without_feedback(params), inputs, targets, None, KEY)
    for rule, message in (
        ("target_propagation(0)", "rate must be a finite number > 0, got 0"),
        ("target_propagation(1, -1)", "noise must be a finite number >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            fnn.value_and_grad(CHAIN, LOSS, rule=rule)
