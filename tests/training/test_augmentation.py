"""Augmentation: every outcome and its frequency, pixel by pixel; training is augmented, and only training.

Letters: Q examples, H rows, W columns, C channels.
"""

import itertools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error

import functional_nn as fnn
from functional_nn import training
from functional_nn.training import augmentation, checkpoints, keys

KEY = jax.random.key(5)
SHAPE = (5, 4, 2)  # no two axes of one length
DRAW = np.random.default_rng(0)
IMAGE = 1 + DRAW.random(SHAPE)  # no two numbers alike, none 0
NAMES = ("shift(2)", "flip", "flip(vertical)", "cutout(3)")


def changed(name, count, dtype=jnp.float64, key=KEY):
    """One image, augmented `count` times in a batch (Q, H, W, C)."""
    x = jnp.broadcast_to(jnp.asarray(IMAGE, dtype), (count, *SHAPE))
    return np.asarray(jax.jit(augmentation.get(name).apply)(key, x))


# The possible outcomes, pixel by pixel, as the docstrings state them --------------------------------------------------


def moved(image, down, right):
    result = np.zeros_like(image)
    for i, j in itertools.product(range(SHAPE[0]), range(SHAPE[1])):
        if 0 <= i - down < SHAPE[0] and 0 <= j - right < SHAPE[1]:
            result[i, j] = image[i - down, j - right]
    return result


def mirrored(image, axis):
    result = np.zeros_like(image)
    for i, j in itertools.product(range(SHAPE[0]), range(SHAPE[1])):
        result[i, j] = image[i, SHAPE[1] - 1 - j] if axis == "horizontal" else image[SHAPE[0] - 1 - i, j]
    return result


def cut(image, i, j, size):
    result = image.copy()
    for row, column in itertools.product(range(i - size // 2, i - size // 2 + size), repeat=2):
        column += j - i
        if 0 <= row < SHAPE[0] and 0 <= column < SHAPE[1]:
            result[row, column] = 0
    return result


PIXELS = tuple(itertools.product(range(SHAPE[0]), range(SHAPE[1])))
OUTCOMES = {
    "shift(1)": [moved(IMAGE, *by) for by in itertools.product((-1, 0, 1), repeat=2)],
    "crop(padding=2)": [moved(IMAGE, *by) for by in itertools.product((-2, -1, 0, 1, 2), repeat=2)],
    "flip": [IMAGE, mirrored(IMAGE, "horizontal")],
    "flip(vertical)": [IMAGE, mirrored(IMAGE, "vertical")],
    "cutout(3)": [cut(IMAGE, *at, 3) for at in PIXELS],
    "cutout(2)": [cut(IMAGE, *at, 2) for at in PIXELS],
    "cutout(1)": [cut(IMAGE, *at, 1) for at in PIXELS],
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_all_outcomes_are_equally_frequent(name):
    """Each example becomes one of the outcomes that the docstring states, independently of the others."""
    outcomes = OUTCOMES[name]
    found = changed(name.replace("padding=", ""), 100 * len(outcomes))
    same = np.array([[np.array_equal(image, outcome) for outcome in outcomes] for image in found])
    assert (same.sum(axis=1) == 1).all()
    # chi-square: its mean is the number of outcomes less one, its variance twice that; six deviations, of one fixed key
    free = len(outcomes) - 1
    chi_square = ((same.sum(axis=0) - 100) ** 2 / 100).sum()
    assert chi_square < free + 6 * np.sqrt(2 * free)
    # the outcome of an example says nothing about the next: of two outcomes, half are repeated
    repeated = (same[1:] & same[:-1]).any(axis=1).mean() * len(outcomes)
    assert abs(repeated - 1) < 6 * np.sqrt(free / len(found))


def test_other_keys_draw_other_changes_and_crop_is_shift():
    assert not np.array_equal(changed("shift(2)", 50), changed("shift(2)", 50, key=jax.random.key(6)))
    assert augmentation.crop(2) is augmentation.shift(2) is augmentation.get("crop(2)")
    assert augmentation.names() == ("shift", "flip", "cutout")


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_is_a_pure_function_of_its_key(name):
    change = augmentation.get(name)
    x = jnp.asarray(DRAW.random((3, *SHAPE)))
    several, alone = jax.random.split(KEY, 4), jax.jit(change.apply)
    together = jax.jit(jax.vmap(change.apply, (0, None)))(several, x)
    chex.assert_trees_all_equal(together, np.stack([alone(key, x) for key in several]))
    assert augmentation.get(change.specification) is change and pickle.loads(pickle.dumps(change)) is change
    assert repr(change) == f"<augmentation {change.specification}>"
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32):
        like = jax.ShapeDtypeStruct(x.shape, dtype)
        assert jax.eval_shape(change.apply, KEY, like) == like


def test_a_pixel_that_is_nan_changes_no_other_pixel():
    """Pixels are moved, not multiplied."""
    x = np.ones((20, *SHAPE))
    x[:, 2, 2] = np.nan
    for name in NAMES:
        assert (np.isnan(jax.jit(augmentation.get(name).apply)(KEY, x)).sum(axis=(1, 2)) <= 1).all()


# In training ----------------------------------------------------------------------------------------------------------

NETWORK = fnn.graph(
    inputs={"image": SHAPE},
    layers=[
        fnn.Layer("first", 2, "tanh", [("image", "full")], dropout=0.3),
        fnn.Layer("output", 3, "softmax", ["first"]),
    ],
)
LABELS = DRAW.integers(0, 3, 14)
X = DRAW.normal(size=(14, *SHAPE)) + LABELS[:, None, None, None]  # brightness shows the class, also of moved images
AUGMENT = ("shift(1)", "flip")


def train(network=NETWORK, x=X, optimizer="adam(0.05)", **changes):
    settings = {"key": KEY, "epochs": 4, "chunk": 2, "plan": training.minibatch(4), "augment": AUGMENT}
    return fnn.fit(network, "cross_entropy", optimizer, x, LABELS, **(settings | changes))


@pytest.fixture(scope="module")
def whole():
    return train(validation=(X, LABELS))


def test_fit_equals_the_loop_written_by_hand():
    """The batches of the plan, each augmented with the keys of its update. Dropout uses the same key as without."""
    plan, optimizer = training.minibatch(4), fnn.optimizers.gd(0.1)
    plan_key, targets = keys.plan(KEY), np.eye(3)[LABELS]
    state = optimizer.init(NETWORK.init(keys.parameters(KEY)))
    step = jax.jit(training.train_step(NETWORK, "cross_entropy", optimizer))
    changes = [jax.jit(augmentation.get(name).apply) for name in AUGMENT]
    for epoch in range(2):
        drawn = zip(plan.indices(plan_key, epoch, 14), plan.weights(14), keys.updates(plan_key, epoch, 4), strict=True)
        for picked, weights, key in drawn:
            x = jnp.asarray(X[picked])
            for number, change in enumerate(changes):
                x = change(keys.augmentation(key, number), x)
            state, _ = step(state, training.Batch({"image": x}, jnp.asarray(targets[picked]), weights, key))
    found = train(optimizer=optimizer, epochs=2)
    assert relative_error(found.params, state.params) < 1e-13  # compiled in another program: the last bits of sums


def test_only_the_training_batches_are_augmented(whole):
    """For a network that does not change, validation and tracked values are the same with and without."""
    track = {"mean": lambda params, inputs, targets: jnp.mean(inputs)}
    settings = {"optimizer": "gd(0)", "validation": (X, LABELS), "track": track}
    with_it, without = train(**settings), train(augment=(), **settings)
    for column in ("validation_loss", "validation_accuracy"):
        chex.assert_trees_all_equal(getattr(with_it.history, column), getattr(without.history, column))
    chex.assert_trees_all_equal(with_it.history.tracked, without.history.tracked)
    assert len(set(with_it.history.training_loss)) == 4  # other images in every epoch
    assert (with_it.history.training_loss != without.history.training_loss).all()


def test_the_validation_loss_falls(whole):
    assert whole.history.validation_loss[-1] < whole.history.validation_loss[0]


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(whole, tmp_path):
    kept = checkpoints.keep(tmp_path)
    train(epochs=2, checkpoint=kept, validation=(X, LABELS))
    resumed = train(checkpoint=kept, resume=True, validation=(X, LABELS))
    chex.assert_trees_all_equal((resumed.state, resumed.history), (whole.state, whole.history))
    for other, message in (
        (("shift(2)", "flip"), r"made with augment/image.* = .*'shift\(pixels=1\)'.*, now "),
        ((), "made with augment/image"),
        (lambda key, x: x, "made with augment/image"),
    ):
        with pytest.raises(training.CheckpointError, match=message):
            train(checkpoint=kept, resume=True, validation=(X, LABELS), augment=other)


def test_a_checkpoint_knows_a_users_function_by_its_code(tmp_path):
    def brighter(by):
        return lambda key, x: x + jnp.asarray(by, x.dtype) * jax.random.normal(key, (len(x), 1, 1, 1), x.dtype)

    kept = checkpoints.keep(tmp_path)
    first = train(augment=brighter(0.1), epochs=2, checkpoint=kept)
    again = train(augment=[brighter(0.1)], epochs=2, checkpoint=kept, resume=True)
    chex.assert_trees_all_equal(first.state, again.state)
    with pytest.raises(training.CheckpointError, match="made with another augment"):
        train(augment=brighter(0.2), epochs=2, checkpoint=kept, resume=True)


@pytest.mark.parametrize("shuffle", ["shared", pytest.param("independent", marks=pytest.mark.slow)])
def test_a_member_of_a_population_is_augmented_as_it_would_be_alone(shuffle):
    found = training.fit_population(
        NETWORK,
        "cross_entropy",
        "gd",
        training.grid(learning_rate=[0.1, 0.2], seed=[0, 1]),
        (X, LABELS),
        key=KEY,
        epochs=2,
        plan=training.minibatch(4),
        augment=AUGMENT,
        shuffle=shuffle,
    )
    key = KEY if shuffle == "shared" else jax.random.fold_in(KEY, 1)
    alone = train(optimizer="gd(0.2)", epochs=2, params=found.initial_params(3), key=key)
    assert relative_error(found.params(3), alone.params) < 1e-12  # compiled in another program
    if shuffle == "shared":
        chex.assert_trees_all_equal(found.solo(3).params, alone.params)


@pytest.mark.slow
def test_each_start_of_best_of_is_augmented_as_it_would_be_alone():
    found = training.best_of(
        2,
        NETWORK,
        "cross_entropy",
        "gd(0.1)",
        X,
        LABELS,
        key=KEY,
        epochs=2,
        plan=training.minibatch(4),
        augment=AUGMENT,
    )
    alone = train(optimizer="gd(0.1)", epochs=2, key=jax.random.split(KEY, 2)[found.index])
    assert relative_error(found.params, alone.params) < 1e-12


ONE = fnn.graph(inputs={"image": SHAPE}, layers=[fnn.Layer("output", 3, "softmax", [("image", "full")])])
TWO = fnn.graph(
    inputs={"image": SHAPE, "numbers": 3},
    layers=[fnn.Layer("output", 3, "softmax", [("image", "full"), ("numbers", "dense")])],
)
STEREO = fnn.graph(
    inputs={"left": SHAPE, "right": SHAPE},
    layers=[fnn.Layer("output", 3, "softmax", [("left", "full"), ("right", "full")])],
)
VECTORS = fnn.multilayer((40, 3), ("softmax",))


def test_the_only_input_with_images_is_augmented():
    x = {"image": X, "numbers": DRAW.normal(size=(14, 3))}
    bare, named = (train(TWO, x, augment=augment) for augment in (AUGMENT, {"image": AUGMENT}))
    chex.assert_trees_all_equal(bare.params, named.params)
    # two images of one example are changed independently
    changes = augmentation.by_input({"left": "shift(2)", "right": "shift(2)"}, STEREO.shapes)
    inputs = augmentation.augmented(changes, KEY, {"left": jnp.asarray(X), "right": jnp.asarray(X)})
    assert not np.array_equal(inputs["left"], inputs["right"])


@pytest.mark.slow
def test_vectors_are_augmented_by_a_users_function():
    def noisy(key, x):
        return x + 0.5 * jax.random.normal(key, x.shape, x.dtype)

    found, plain = (train(VECTORS, X.reshape(14, -1), augment=augment) for augment in (noisy, ()))
    assert relative_error(found.params, plain.params) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"plan": training.importance(4)},
        {"gradient": "automatic"},
        {"gradient": training.clipped(1.0)},
        {"optimizer": "hessian_free(minibatches=True)"},
        {"optimizer": "rprop(minibatches=True)"},
        {"mesh": jax.make_mesh((1,), ("examples",))},
    ],
    ids=str,
)
def test_every_method_of_mini_batches_takes_augmented_ones(changes):
    found, plain = (train(ONE, augment=augment, **changes) for augment in (AUGMENT, ()))
    assert found.status == "completed" and relative_error(found.params, plain.params) > 1e-3


def wrong_shape(key, x):
    return x[:, 1:]


def wrong_dtype(key, x):
    return x.astype(jnp.float32)


def two_results(key, x):
    return x, x


@pytest.mark.parametrize(
    ("network", "changes", "error", "message"),
    [
        (
            VECTORS,
            {"augment": "flip"},
            ValueError,
            r"flip needs images \(H, W, C\), got input 'input' of shape \(40,\)",
        ),
        (
            NETWORK,
            {"augment": "shift(3)"},
            ValueError,
            r"shift\(pixels=3\) needs images of at least 6 x 6 pixels, got input 'image' of shape \(5, 4, 2\)",
        ),
        (NETWORK, {"augment": "cutout(5)"}, ValueError, "cutout.* needs images of at least 5 x 5 pixels"),
        (NETWORK, {"augment": "flop"}, ValueError, "unknown augmentation 'flop'; did you mean 'flip'"),
        (NETWORK, {"augment": "flip(left)"}, ValueError, "axis must be 'horizontal' or 'vertical', got 'left'"),
        (NETWORK, {"augment": "shift(1.5)"}, ValueError, "pixels must be an integer >= 0, got 1.5"),
        (NETWORK, {"augment": "cutout(-1)"}, ValueError, "size must be an integer >= 0, got -1"),
        (NETWORK, {"augment": 3}, TypeError, r"expected a name \(shift, flip, cutout\), an Augmentation or a function"),
        (NETWORK, {"augment": {"imag": "flip"}}, ValueError, "augment: unknown input 'imag'; did you mean 'image'"),
        (TWO, {"augment": {"numbers": "flip"}}, ValueError, r"got input 'numbers' of shape \(3,\)"),
        (STEREO, {"augment": "flip"}, ValueError, r"expected \{input: ...\}.* 2 inputs, of which 2 have images"),
        (
            NETWORK,
            {"augment": wrong_shape},
            ValueError,
            r"wrong_shape must return what it takes, float64 of shape \(4, 5, 4, 2\), got float64 of .*\(4, 4, 4, 2\)",
        ),
        (NETWORK, {"augment": wrong_dtype}, ValueError, "got float32 of shape"),
        (NETWORK, {"augment": two_results}, ValueError, "got tuple"),
        (
            NETWORK,
            {"optimizer": "rprop(minibatches=False)", "plan": training.batch()},
            ValueError,
            "augment: rprop builds each step on the last",
        ),
        (NETWORK, {"optimizer": "bfgs", "plan": training.batch()}, ValueError, "augment: bfgs builds each step"),
    ],
)
def test_bad_augmentations_are_refused_in_one_line(network, changes, error, message):
    x = {name: np.ones((14, *network.shapes[name])) for name, _ in network.inputs}
    with pytest.raises(error, match=message) as refusal:
        train(network, x, **changes)
    assert "\n" not in str(refusal.value) and str(refusal.value).isprintable()


def test_a_population_refuses_bad_augmentations_too():
    with pytest.raises(ValueError, match="wrong_shape must return what it takes"):
        training.fit_population(
            NETWORK,
            "cross_entropy",
            "gd",
            {"learning_rate": [0.1]},
            (X, LABELS),
            key=KEY,
            epochs=1,
            augment=wrong_shape,
        )
