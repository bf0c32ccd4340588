"""Networks by name: their shapes, their gradients, the table of what they are made of, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error

import functional_nn as fnn
from functional_nn import presets

# a small one of each -> what it reads
SMALL = {
    "mlp((5, 4), relu)": (3, 3, 2),
    "lenet((2, 3), (4,))": (6, 6, 1),
    "lenet((2, 3), (4,), tanh)": (20, 1),
    "all_convolutional((2, 3))": (6, 5, 2),
    "residual(1, 2, none)": (5, 2),
    "residual(depth=1, width=2, norm=group_norm(2))": (4, 4, 1),
    "residual(1, 2, layer_norm, stages=1, activation=silu)": (3, 3, 1),
    "residual(1, 2, batch_norm(0.8), 3)": (4, 4, 1),
}


@pytest.mark.parametrize(
    "name",
    [name if name.startswith("lenet((2, 3), (4,))") else pytest.param(name, marks=pytest.mark.slow) for name in SMALL],
)
def test_gradients_by_hand_are_autodiffs(name):
    network = presets.get(name)(SMALL[name], 3)
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((4, *SMALL[name])))
    params, targets = network.init(jax.random.key(0), jnp.float64), np.arange(4) % 3

    def both(params):
        automatic = jax.grad(fnn.objective(network, "cross_entropy"))(params, inputs, targets)
        return fnn.value_and_grad(network, "cross_entropy")(params, inputs, targets)[1], automatic

    assert relative_error(*jax.jit(both)(params)) <= 1e-12


def test_lenet_of_28_x_28_has_the_papers_sizes():
    network = presets.get("lenet")((28, 28, 1), 10)
    sizes = {name: network.shapes[name] for name in ("conv1", "pool1", "conv2", "pool2", "dense1", "dense2", "output")}
    assert list(sizes.values()) == [(28, 28, 6), (14, 14, 6), (10, 10, 16), (5, 5, 16), (120,), (84,), (10,)]
    rows = {row["layer"]: row for row in presets.layer_rows(network)}
    # LeCun et al. 1998, Sec. II.B, but for pooling, which learns nothing here, and conv2, which reads all channels
    assert [rows[name]["parameters"] for name in sizes] == [156, 0, 2416, 0, 48120, 10164, 850]
    # two operations for each of a neuron's weights at each position
    assert rows["conv1"]["flops"] == 2 * 28 * 28 * 6 * 25 and rows["conv2"]["flops"] == 2 * 10 * 10 * 16 * 150


def test_a_preset_of_vectors_is_multilayer():
    assert presets.get("mlp")(64, 10) == fnn.multilayer((64, 128, 10), ("tanh", "softmax"))
    dropped = fnn.multilayer((4, 3, 2), ("relu", "linear"), dropout=0.2)
    assert presets.get("mlp((3,), relu, 0.2)")((4,), 2, "linear") == dropped
    assert not presets.get("mlp").pictures and presets.get("lenet").pictures


def test_a_residual_network_halves_positions_and_doubles_channels_by_stage():
    network = presets.get("residual(2, 4, 'group_norm(2)', 3)")((8, 8, 3), 5)
    assert [network.shapes[f"block{number}"] for number in range(1, 7)] == [(8, 8, 4)] * 2 + [(4, 4, 8)] * 2 + [
        (2, 2, 16)
    ] * 2
    assert network.shapes["pool"] == (16,) and network.shapes["output"] == (5,)
    added = {layer.name: [by.name for by in layer.connections] for layer in network.layers}
    assert added["block2"] == ["identity", "identity"] and added["block3"][1].startswith("conv((1, 1), stride=(2, 2)")


def test_the_summary_adds_up_and_statistics_are_not_learned():
    plain, normalized = (
        presets.get(f"residual(1, 2, {norm}, 1)")((4, 4, 1), 3) for norm in ("group_norm(2)", "batch_norm")
    )
    learned = sum(x.size for x in jax.tree.leaves(plain.init(jax.random.key(0))))
    for network in (plain, normalized):
        assert sum(row["parameters"] for row in presets.layer_rows(network)) == learned
        lines = presets.summary(network).splitlines()
        assert len(lines) == len(network.layers) + 2
        assert lines[-1].split() == [
            "in",
            "all",
            str(learned),
            f"{sum(r['flops'] for r in presets.layer_rows(network)):,}",
        ]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenett", 3, "unknown network 'lenett'; did you mean 'lenet'?"),
        ("lenet", 64, "reads signals (*positions, channels), such as pictures (H, W, C); got (64,)"),
        ("lenet((3,))", (8, 8, 1), "lenet: channels must be two, one for each convolution, got (3,)"),
        ("lenet(hidden=(0,))", (8, 8, 1), "lenet: hidden must be an integer >= 1, got 0"),
        ("lenet", (2, 2, 1), "layer 'pool2': its activation max_pool((2, 2)) has a window over (2, 2) positions"),
        (
            "residual(width=4)",
            (8, 8, 1),
            "layer 'stem': its activation group_norm(8, 1e-05) needs channels that 8 groups",
        ),
        ("residual(norm=batchnorm)", (8, 8, 1), "unknown activation 'batchnorm'; did you mean 'batch_norm'?"),
        ("residual(depth=0)", (8, 8, 1), "residual: depth must be an integer >= 1, got 0"),
        (
            "all_convolutional(channels=())",
            (8, 8, 1),
            "all_convolutional: channels must be at least one integer, got none",
        ),
        ("mlp", "abc", "inputs must be a shape of integers >= 1, or one of them, got 'abc'"),
        ("mlp", (-3, 2), "inputs must be a shape of integers >= 1, or one of them, got (-3, 2)"),
        ("residual(norm=relu)", (4, 4, 1), "residual: norm must be 'none' or a normalization such as 'group_norm(4)'"),
        ("mlp(activation=rleu)", 4, "unknown activation 'rleu'; did you mean 'relu'?"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, shape, message):
    with pytest.raises(ValueError) as refusal:
        presets.get(name)(shape, 3)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_presets_are_known_by_name():
    assert set(presets.names()) >= {"mlp", "lenet", "all_convolutional", "residual"}
    assert presets.get(presets.get("residual(3, 8, batch_norm)").name) == presets.get("residual(3, 8, batch_norm)")


@pytest.mark.slow
def test_layers_without_parameters_have_no_norm_of_their_own():
    network = presets.get("lenet((2, 3), (4,))")((6, 6, 1), 3)
    inputs, targets = np.random.default_rng(0).standard_normal((5, 6, 6, 1)), np.arange(5) % 3
    params = network.init(jax.random.key(0))
    for block in (None, 2):
        found = fnn.quantities.compute(
            network, "cross_entropy", params, inputs, targets, ("per_example_layer_norms", "noise_scale"), block=block
        )
        norms = found["per_example_layer_norms"]
        assert list(norms) == list(found["noise_scale"].layers) == ["conv1", "conv2", "dense1", "output"]
        assert all(of.shape == (5,) for of in norms.values())
