"""Training of networks that read signals: images by convolutions and a residual; tokens, answered at each position.

Letters: Q examples, T positions.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn import optimizers, platforms, training
from functional_nn.networks import connections
from functional_nn.training import checkpoints, evaluation, group_training, keys, member_memory, populations
from functional_nn.training.configuration import describe_network, network_from

KEY = jax.random.key(3)
DRAW = np.random.default_rng(0)
LENGTH, WORDS = 4, 5
IMAGES = fnn.graph(
    inputs={"image": (5, 5, 1)},
    layers=[
        fnn.Layer("first", 2, "tanh", [("image", "conv((3, 3), stride=2)")], dropout=0.3),
        fnn.Layer("second", 2, "linear", [("first", "conv((3, 3))")], bias="per_position"),
        fnn.Layer("block", 2, "prelu", [("second", "identity"), ("first", "identity")], bias="none"),
        fnn.Layer("output", 3, "softmax", [("block", "full")]),
    ],
)


def reading(width=3):
    return fnn.graph(
        inputs={"text": LENGTH},
        layers=[
            fnn.Layer("embedded", width, "linear", [("text", f"embedding({WORDS})")]),
            fnn.Layer("mixed", width, "tanh", [("embedded", "conv(3)")]),
            fnn.Layer("output", WORDS, "softmax", ["mixed"]),
        ],
    )


TEXT = reading()
LOSS = fnn.losses.cross_entropy(positions="sum")
PICTURES = DRAW.normal(size=(11, 5, 5, 1)), DRAW.integers(0, 3, 11)
TOKENS = DRAW.integers(0, WORDS, (11, LENGTH)), DRAW.integers(0, WORDS, (11, LENGTH))
MASK = DRAW.random((11, LENGTH)) > 0.3
MASK[0], MASK[1] = False, True  # a whole example that is masked, and one that is not
BY_CLASS = np.array([1.0, 0.5, 2.0, 0.0, 1.0])
PARAMS = TEXT.init(KEY)


def fit(optimizer="gd(0.05)", **changes):
    settings = {"key": KEY, "epochs": 2, "plan": training.minibatch(4), "params": PARAMS, "weights": MASK} | changes
    return fnn.fit(TEXT, LOSS, optimizer, *TOKENS, **settings)


def surprise(params, tokens, targets):
    """-ln of what the network gives each right answer, (Q, T)."""
    outputs = TEXT.apply(params, tokens)
    return -jnp.log(jnp.take_along_axis(outputs, jnp.asarray(targets)[..., None], axis=-1)[..., 0])


# fit ------------------------------------------------------------------------------------------------------------------


def compared(network, loss, data, **settings):
    by_hand, automatic = (
        fnn.fit(network, loss, "gd(0.1)", *data, key=KEY, epochs=2, gradient=name, **settings).history
        for name in ("manual", "automatic")
    )
    for name, column in by_hand._asdict().items():
        if name != "tracked":
            np.testing.assert_allclose(column, getattr(automatic, name), rtol=1e-11, err_msg=name)
    assert np.isfinite(by_hand.validation_accuracy).all()


def test_images_train_by_hand_as_automatically():
    """With dropout at positions, whose masks the key draws, and a last batch that is smaller."""
    held_out = PICTURES[0][:3], PICTURES[1][:3]
    compared(IMAGES, "cross_entropy", PICTURES, plan=training.minibatch(4), validation=held_out)


@pytest.mark.parametrize("plan", [training.minibatch(4), pytest.param(training.importance(4), marks=pytest.mark.slow)])
def test_tokens_train_by_hand_as_automatically(plan):
    weights = None if plan.importance else MASK
    compared(TEXT, LOSS, TOKENS, plan=plan, weights=weights, validation=(*TOKENS, MASK))


def test_batches_that_are_masked_add_up_to_the_whole():
    """Against steps that are written down: a batch's sum over positions, by the mean weight of them all."""
    weights = MASK * BY_CLASS[TOKENS[1]]
    result, params = fit(class_weights=BY_CLASS.tolist()), PARAMS
    plan, key, seen = training.minibatch(4), keys.plan(KEY), []
    for epoch in range(2):
        losses = 0.0
        for number, batch in enumerate(np.asarray(plan.indices(key, epoch, 11))):
            batch = batch[: [4, 4, 3][number]]

            def total(params, batch=batch):
                return jnp.sum(weights[batch] * surprise(params, TOKENS[0][batch], TOKENS[1][batch]))

            value, gradient = jax.value_and_grad(total)(params)
            losses += value
            params = jax.tree.map(lambda p, g: p - 0.05 * g / (len(batch) * weights.mean()), params, gradient)  # noqa: B023
        seen.append(LENGTH * losses / weights.sum())
    assert relative_error(result.params, params) <= 1e-12
    np.testing.assert_allclose(result.history.training_loss, seen, rtol=1e-12)


@pytest.mark.parametrize("examples", [1, 4, 10])
def test_evaluation_in_blocks_counts_positions_by_their_weights(examples, monkeypatch):
    weights = MASK * BY_CLASS[TOKENS[1]]
    right = np.asarray(TEXT.apply(PARAMS, TOKENS[0])).argmax(axis=-1) == TOKENS[1]
    each = np.asarray(surprise(PARAMS, *TOKENS))
    monkeypatch.setattr(
        platforms,
        "CPU",
        platforms.CPU._replace(evaluated=8 * examples * (TEXT.trace_size + evaluation.copied_size(TEXT))),
    )
    assert evaluation.evaluation_block(TEXT, np.float64) == examples
    for loss in (LOSS, fnn.losses.cross_entropy("sum")):
        found = training.evaluate(TEXT, loss, PARAMS, *TOKENS, weights=MASK, class_weights=BY_CLASS.tolist())
        mean = LENGTH * (weights * each).sum() / weights.sum()
        expected = mean if loss is LOSS else (weights * each).sum() / LENGTH
        np.testing.assert_allclose(found[0], expected, rtol=1e-12)
        np.testing.assert_allclose(found[1], (weights * right).sum() / weights.sum(), rtol=1e-12)


def test_clipping_takes_each_example_with_its_positions():
    """Against gradients taken, measured and scaled one example at a time; an example that is masked has none."""
    result, bound = fit(plan=training.batch(), epochs=1, gradient=training.clipped(0.5)), 0.5
    total = jax.tree.map(jnp.zeros_like, PARAMS)
    for tokens, targets, mask in zip(*TOKENS, MASK.astype(float), strict=True):

        def one(params, tokens=tokens, targets=targets, mask=mask):
            return LENGTH * jnp.sum(mask * surprise(params, tokens[None], targets[None])[0]) / max(mask.sum(), 1.0)

        gradient = jax.grad(one)(PARAMS)
        norm = float(jnp.linalg.norm(ravel_pytree(gradient)[0]))
        scale = mask.sum() / MASK.sum() * (min(1, bound / norm) if norm else 0)
        total = jax.tree.map(lambda sum, g, scale=scale: sum + scale * g, total, gradient)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, PARAMS, total)
    assert relative_error(result.params, expected) <= 1e-12


def test_what_is_tracked_is_measured_with_the_masks():
    result = fit(epochs=1, track=("noise_scale",))
    expected = fnn.quantities.noise_scale(TEXT, LOSS, result.params, *TOKENS, weights=MASK)
    tracked = jax.tree.leaves(result.history.tracked["noise_scale"])
    np.testing.assert_allclose([x[0] for x in tracked], jax.tree.leaves(expected), rtol=1e-9)


def test_constants_by_parameter_reach_kernels_and_what_is_learned():
    rate = {"first": {"weights": 0.1, "bias": 0.0}, "block": {"learned": 0.0}, "second": 0.0, "output": 0.0}
    before = IMAGES.init(KEY)

    def moved(method):
        after = fnn.fit(IMAGES, "cross_entropy", method, *PICTURES, key=KEY, epochs=1, params=before).params
        return jax.tree.map(lambda a, b: bool((a != b).any()), after, before)

    chosen, frozen = moved(optimizers.gd(rate)), moved(optimizers.freeze("gd(0.1)", ["first", "block"]))
    assert chosen["first"]["weights"]["image"] and sum(jax.tree.leaves(chosen)) == 1
    assert not any(jax.tree.leaves((frozen["first"], frozen["block"]))) and frozen["second"]["weights"]["first"]


def test_penalties_and_pruning_take_kernels_and_nothing_else():
    params = IMAGES.init(KEY)
    weights = {"first/weights/image", "second/weights/first", "output/weights/block"}
    for name, derivative in (("l2(0.1)", lambda w: 0.2 * w), ("l1(0.1)", lambda w: 0.1 * np.sign(w))):
        gradient = fnn.checks.by_path(optimizers.regularizers.get(name).gradient(params))
        for path, w in fnn.checks.by_path(params).items():
            np.testing.assert_allclose(gradient[path], derivative(np.asarray(w)) if path in weights else 0 * w)
    masks = optimizers.regularizers.magnitude_masks(params, 0.5)
    kept = fnn.checks.by_path(masks)
    assert all(kept[path].all() for path in kept if path not in weights)
    sizes = [kept[path].size for path in weights]
    assert sum(int((~kept[path]).sum()) for path in weights) == sum(sizes) // 2
    pruned = optimizers.keep_pruned("gd(0.1)", masks).init(params).params
    jax.tree.map(lambda x, w, keep: np.testing.assert_array_equal(x, np.where(keep, w, 0)), pruned, params, masks)


def test_what_does_not_fit_positions_is_refused():
    with pytest.raises(
        ValueError, match=r"validation weights: expected shape \(11,\), .* or \(11, 4\), .* got \(11, 3\)"
    ):
        fit(validation=(*TOKENS, MASK[:, :3]))
    with pytest.raises(TypeError, match="validation: expected a pair"):
        fit(validation=(*TOKENS, MASK[..., None]))
    with pytest.raises(ValueError, match=r"correct: expected shape \(44,\), one value for each position, got \(\)"):
        training.evaluate(TEXT, LOSS, PARAMS, *TOKENS, lambda a, t: jnp.all(a == t))


# Second order ---------------------------------------------------------------------------------------------------------

SQUARES = fnn.graph(
    inputs={"image": (4, 4, 1)},
    layers=[
        fnn.Layer("first", 2, "tanh", [("image", "conv((3, 3))")]),
        fnn.Layer("second", 2, "linear", [("first", "conv((3, 3), stride=2)")]),
        fnn.Layer("output", 2, "linear", [("second", "identity"), ("first", "mean_pool((2, 2))")], bias="per_position"),
    ],
)
SMALL = DRAW.normal(size=(4, 4, 4, 1)), DRAW.normal(size=(4, 2, 2, 2))
AT = DRAW.random((4, 2, 2))
AT[0, 1] = 0


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mean_square_error(mean)", "sum_square_error(mean, positions=sum)"])
def test_residuals_at_positions_square_to_the_loss(loss):
    params = SQUARES.init(KEY)
    problem = training.problem(SQUARES, loss, *SMALL, weights=AT)
    functions, data, (flat, unravel) = problem.functions, problem.data, ravel_pytree(params)
    value = fnn.objective(SQUARES, fnn.losses.get(loss))

    def of_flat(x):
        return value(unravel(x), *data)

    r, J = functions.jacobian(params, data)
    np.testing.assert_allclose(r, functions.residuals(params, data), rtol=1e-14)
    np.testing.assert_allclose(r @ r, of_flat(flat), rtol=1e-12)
    np.testing.assert_allclose(J, jax.jacobian(lambda x: functions.residuals(unravel(x), data))(flat), atol=1e-14)
    error, kernel, pull = functions.kernel(params, data)
    np.testing.assert_allclose(error, r, rtol=1e-14)
    np.testing.assert_allclose(kernel, J @ J.T, atol=1e-12)
    np.testing.assert_allclose(ravel_pytree(pull(r))[0], J.T @ r, atol=1e-13)
    np.testing.assert_allclose(functions.hessian(params, data), jax.hessian(of_flat)(flat), atol=1e-12)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
        "kfac",
        "newton",
        "bfgs",
        "lbfgs",
        "conjugate_gradient",
        "hessian_free",
        "bayesian_regularization",
        "levenberg_marquardt(space=samples)",
    )
]


@pytest.mark.parametrize("method", ["levenberg_marquardt(space=parameters)", *SLOW])
def test_second_order_methods_train_outputs_at_positions(method):
    result = fnn.fit(SQUARES, "mean_square_error", method, *SMALL, key=KEY, epochs=8, weights=AT)
    losses = result.history.training_loss
    assert losses[-1] < 0.5 * losses[0], losses


# Populations ----------------------------------------------------------------------------------------------------------


def looking(width=2, kernel=3, read="mean_pool", by="conv"):
    return fnn.graph(
        inputs={"image": (5, 5, 1)},
        layers=[
            fnn.Layer("first", width, "sigmoid", [("image", f"conv(({kernel}, {kernel}), stride=2)")]),
            fnn.Layer("second", width, "linear", [("first", "conv((3, 3))")]),
            fnn.Layer("block", width, "relu", [("second", "identity"), ("first", "identity")], bias="none"),
            fnn.Layer("pooled", width, "linear", [("block", read)], bias="none"),
            fnn.Layer("output", 3, "softmax", ["pooled"]),
        ],
    )


def population(network, hyperparameters, data=PICTURES, loss="cross_entropy", optimizer="adam", **changes):
    settings = {"key": KEY, "epochs": 2, "plan": training.minibatch(4)} | changes
    return training.fit_population(network, loss, optimizer, hyperparameters, data, **settings)


def check_alone(found, members):
    for member in members:
        drift = found.drift(member)
        assert drift.relative <= 1e-12, str(drift)


@pytest.mark.slow
def test_lanes_of_convolutions_are_their_runs_alone():
    """Kernels by the network function, rates and seeds: two programs."""
    varied = {"kernel": [1, 3, 3], "learning_rate": [0.1, 0.1, 0.01], "seed": [0, 1, 2]}
    held_out = PICTURES[0][:3], PICTURES[1][:3]
    found = population(lambda kernel: looking(kernel=kernel), varied, validation=held_out)
    assert len(found.groups) == 2
    check_alone(found, (0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["shared", pytest.param("independent", marks=pytest.mark.slow)])
def test_lanes_with_answers_at_positions_are_their_runs_alone(shuffle):
    """With a mask, on subsets, some answers of which are wrong."""
    varied = {
        "learning_rate": [0.1, 0.01],
        "seed": [0, 1],
        "label_noise": [0.0, 0.3],
        "subset": [0, 1],
        "examples": [9, 9],
    }
    found = population(TEXT, varied, TOKENS, LOSS, weights=MASK, validation=(*TOKENS, MASK), shuffle=shuffle)
    check_alone(found, (0, 1))
    (_, right), (tokens, wrong) = found.data(0), found.data(1)
    assert right.shape == wrong.shape == (9, LENGTH, WORDS)
    own = {tuple(row): one for row, one in zip(TOKENS[0].tolist(), np.eye(WORDS)[TOKENS[1]], strict=True)}
    changed = sum(
        (own[tuple(np.asarray(x).tolist())] != y).any(axis=-1).sum() for x, y in zip(tokens, wrong, strict=True)
    )
    assert changed == round(0.3 * 9 * LENGTH)


@pytest.mark.slow
def test_a_race_on_tokens_drawn_by_norm():
    varied = {"optimizer": ["gd", "adam"], "learning_rate": [0.1, 0.01], "strength": [0.01, 0.1]}
    found = population(
        TEXT, varied, TOKENS, LOSS, {"gd": "gd", "adam": "adam"}, regularizer="l2", plan=training.importance(4)
    )
    check_alone(found, (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("network", "data", "loss"), [(looking, PICTURES, "cross_entropy"), (reading, TOKENS, LOSS)])
def test_narrow_channels_are_padded_where_connections_pad(network, data, loss):
    """The padding of a sigmoid layer gives 1/2: whoever reads it must not."""
    found = population(lambda width: network(width), {"width": [1, 3], "seed": [0, 1]}, data, loss, pad=True)
    assert len(found.groups) == 1
    check_alone(found, (0, 1))


def test_padding_is_refused_where_a_narrow_kernel_is_no_corner():
    def padded(make, **k):
        return population(make, {"width": [2, 4]}, pad=True, **k)

    with pytest.raises(ValueError, match="pad: layer 'pooled' reads 'block' by full, whose weights in a narrower"):
        padded(lambda width: looking(width, read="full"))

    def grouped(width):  # neurons of a wide layer belong to other groups
        first = fnn.Layer("first", width, "tanh", [("image", "conv((3, 3), groups=2)")])
        pooled = fnn.Layer("pooled", width, "linear", [("first", "mean_pool")], bias="none")
        output = fnn.Layer("output", 3, "softmax", ["pooled"])
        return fnn.graph(inputs={"image": (5, 5, 2)}, layers=[first, pooled, output])

    with pytest.raises(ValueError, match=r"pad: layer 'first' reads 'image' by conv\(\(3, 3\), groups=2\), whose"):
        padded(grouped, data=(DRAW.normal(size=(11, 5, 5, 2)), PICTURES[1]))


@pytest.mark.slow
def test_neurons_that_read_the_whole_of_a_signal_are_padded():
    def make(width):
        first = fnn.Layer("first", 2, "tanh", [("image", "conv((3, 3), stride=2)")])
        hidden = fnn.Layer("hidden", width, "sigmoid", [("first", "full")])
        return fnn.graph(
            inputs={"image": (5, 5, 1)}, layers=[first, hidden, fnn.Layer("output", 3, "softmax", ["hidden"])]
        )

    check_alone(population(make, {"width": [2, 3], "seed": [0, 1]}, pad=True), (0, 1))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(getattr(value, "jaxpr", value))


def compiled(monkeypatch, network, **settings):
    """The lane program of a population, with what it was called with; and its group."""
    called, groups = [], []
    programs, block_sizes = group_training.compiled_programs, populations.block_sizes

    def spying(*given):
        begin, advance = programs(*given)

        def keeping(*arguments):
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments[:-2])
            called.append((advance, (*shapes, *arguments[-2:])))
            return advance(*arguments)

        return begin, keeping

    def planning(given, *rest):
        groups.extend(given)
        return block_sizes(given, *rest)

    monkeypatch.setattr(group_training, "compiled_programs", spying)
    monkeypatch.setattr(populations, "block_sizes", planning)
    population(network, {"seed": [0, 1, 2]}, block=3, **settings)
    return *called[0], groups[0]


def test_lanes_on_cpu_have_no_grouped_convolution(monkeypatch):
    """Kernels that differ by lane would be one, for which there is no fast kernel: they are products of windows."""
    held_out = PICTURES[0][:3], PICTURES[1][:3]
    advance, arguments, _ = compiled(monkeypatch, looking(), validation=held_out)
    names = [equation.primitive.name for equation in equations(jax.make_jaxpr(advance)(*arguments).jaxpr)]
    assert "dot_general" in names and "conv_general_dilated" not in names


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_the_memory_of_a_lane_is_estimated_with_its_windows(kernel, monkeypatch):
    layers = [
        fnn.Layer("first", 8, "relu", [("image", f"conv(({kernel}, {kernel}))")]),
        fnn.Layer("second", 8, "relu", [("first", f"conv(({kernel}, {kernel}))")]),
        fnn.Layer("output", 3, "softmax", [("second", "full")]),
    ]
    network = fnn.graph(inputs={"image": (14, 14, 1)}, layers=layers)
    data = DRAW.normal(size=(40, 14, 14, 1)), DRAW.integers(0, 3, 40)
    advance, arguments, group = compiled(monkeypatch, network, data=data, plan=training.minibatch(20))
    measured = advance.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 3
    assert 0.4 < member_memory.member_memory(group).epoch / measured < 2


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_on_tokens_is_bitwise_the_whole(tmp_path):
    settings = {"validation": (*TOKENS, MASK), "chunk": 1, "optimizer": "adam(0.05)"}
    whole = fit(epochs=3, **settings)
    fit(epochs=2, checkpoint=checkpoints.keep(tmp_path), **settings)
    resumed = fit(epochs=3, checkpoint=checkpoints.keep(tmp_path), resume=True, **settings)
    for one, other in zip(*(jax.tree.leaves((run.state, run.history)) for run in (whole, resumed)), strict=True):
        np.testing.assert_array_equal(one, other)


def once(path, to):
    """The file as an older version wrote it: what an activation learns stood beside the layer's own parameters."""
    found = checkpoints.read(path)
    leaves = {path.replace("/learned/", "/"): leaf for path, leaf in found.leaves.items()}
    assert any(path.endswith("layer1/slope") for path in leaves)
    checkpoints.write(to / path.name, leaves, found.config)


@pytest.mark.parametrize(
    "method", ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lbfgs", "population"))]
)
def test_checkpoints_of_older_versions_are_gone_on_from(method, tmp_path):
    network, data = (
        fnn.multilayer((3, 4, 2), ("prelu", "softmax")),
        (DRAW.normal(size=(12, 3)), DRAW.integers(0, 2, 12)),
    )

    def run(epochs, **settings):
        settings |= {"key": KEY, "epochs": epochs, "chunk": 1}
        if method == "population":
            rates = {"learning_rate": [0.01, 0.1], "seed": [0, 1]}
            return training.fit_population(network, "cross_entropy", "adam", rates, data, **settings).params(1)
        return fnn.fit(network, "cross_entropy", method, *data, **settings).params

    run(2, checkpoint=checkpoints.keep(tmp_path / "new"))
    (tmp_path / "old").mkdir()
    once(tmp_path / "new" / "checkpoint-00000002.npz", tmp_path / "old")
    resumed = run(3, checkpoint=checkpoints.keep(tmp_path / "old"), resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed, run(3))


def with_first(by):
    return fnn.graph(
        inputs={"image": (5, 5, 1)},
        layers=[fnn.Layer("first", 2, "tanh", [("image", by)]), fnn.Layer("output", 3, "softmax", [("first", "full")])],
    )


def test_another_connection_is_refused_and_named(tmp_path):
    def run(by, **k):
        return fnn.fit(with_first(by), "cross_entropy", "gd", *PICTURES, key=KEY, epochs=1, **k)

    run("conv((3, 3))", checkpoint=checkpoints.keep(tmp_path))
    with pytest.raises(
        checkpoints.CheckpointError, match=r"first/connections = \['conv\(\(3, 3\)\)'\], now .*dilation"
    ):
        run("conv((3, 3), dilation=2)", checkpoint=checkpoints.keep(tmp_path), resume=True)
    own = dataclasses.replace(connections.get("conv((3, 3))"), forward=lambda x, w: jnp.zeros((len(x), 5, 5, 2)))
    with pytest.raises(checkpoints.CheckpointError, match="made with another network, by its functions"):
        run(own, checkpoint=checkpoints.keep(tmp_path), resume=True)


@pytest.mark.parametrize(
    "network", [IMAGES, TEXT, SQUARES, looking(), with_first("conv((3, 2), stride=(2, 1), padding=((1, 0), (0, 1)))")]
)
def test_descriptions_of_signals_are_read_back(network):
    described = json.loads(json.dumps(describe_network(network)))
    assert network_from(described) == network


def test_what_is_the_default_is_not_described():
    """So that descriptions of dense networks stay what they were."""
    described = describe_network(fnn.multilayer((3, 4, 2), ("tanh", "softmax")))
    assert described["inputs"] == {"input": 3} and not any("connections" in layer for layer in described["layers"])
    described = describe_network(TEXT)
    assert described["inputs"] == {"text": LENGTH} and math.prod(TEXT.shapes["output"]) == LENGTH * WORDS
    assert [layer.get("connections") for layer in described["layers"]] == [["embedding(5)"], ["conv(3)"], None]
