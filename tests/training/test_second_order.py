"""Second-order methods on networks: the problem they are given, the texts' examples, and training by them.

Letters: Q examples, S outputs, P parameters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GRAPHS, chain, problem, reference_gradient, reference_objective
from jax.flatten_util import ravel_pytree

import functional_nn as fnn
from functional_nn import checks, optimizers, training
from functional_nn.gradients import curvature, quantities
from functional_nn.optimizers import minimize, regularizers, second_order
from functional_nn.optimizers.second_order.problem import FlatProblem
from functional_nn.training import checkpoints

pytestmark = pytest.mark.usefixtures("brisk")


# The problem of a network, against autodiff of its objective ----------------------------------------------------------

SQUARES = {"mean_square_error": 1 / 3, "sum_square_error": 1.0, "half_sum_square_error": 0.5}  # of (a - t)^2, S = 3
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25])
# two inputs, a skip and a shared bias; names that sort otherwise than the layers and the sources stand
CROSSED = fnn.graph(
    inputs={"p2": 2, "p1": 3},
    layers=[
        fnn.Layer("second", 4, "tanh", ("p2",), bias="shared"),
        fnn.Layer("first", 3, "linear", ("second", "p1")),
    ],
)
# name -> (network, loss, weights, regularizer)
PROBLEMS = {
    "graph": (CROSSED, "half_sum_square_error", WEIGHTS, None),
    "penalty": (chain((3, 4, 3), "tanh", "softmax"), "cross_entropy", WEIGHTS, "l2(0.3)"),
    "fan-out": (GRAPHS["fan-out and skip"][0]("tanh", "linear"), "half_sum_square_error", None, None),
    "mean": (chain((3, 4, 3), "tanh", "tanh"), "mean_square_error", None, None),
    "mean, weights": (chain((3, 4, 3), "sigmoid", "linear"), "mean_square_error", WEIGHTS, None),
    "sum, weights": (chain((3, 4, 3), "tanh", "linear", bias="shared"), "sum_square_error", WEIGHTS, None),
    "P3.2, learned slopes": (GRAPHS["P3.2"][0]("prelu", "linear"), "sum_square_error", None, None),
    "elastic net": (chain((3, 4, 3), "tanh", "linear"), "mean_square_error", None, "elastic_net(0.1, 0.2)"),
}
over_problems = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "graph" else pytest.mark.slow) for name in PROBLEMS]
)


@functools.cache
def answers(name):
    """What the problem answers, and the same by autodiff of its objective, by name; NumPy throughout."""
    network, loss, weights, penalty = PROBLEMS[name]
    params, inputs, targets = problem(network, loss)
    x, unravel = ravel_pytree(params)
    v, y = (jnp.asarray(np.random.default_rng(n).standard_normal(n)) for n in (x.size, targets.size))
    weights = None if weights is None else jnp.asarray(weights)
    asked = training.problem(network, loss, inputs, targets, weights=weights, regularizer=penalty)
    objective, loss = fnn.objective(network, loss), fnn.losses.get(loss)
    share = jnp.ones(len(targets)) if weights is None else weights
    mean_share = share / share.sum()
    share = mean_share if loss.reduction == "mean" else share

    def ours(x):
        flat = FlatProblem(asked, params)
        value, gradient = flat.value_and_gradient(x)
        found = {"value": value, "gradient": gradient, "value alone": flat.value(x), "H": flat.hessian(x)}
        found |= {"Hv": flat.product(x, "hessian")(v), "Gv": flat.product(x, "gauss_newton")(v)}
        found["squares of gradients"] = flat.square_gradients(x)
        if penalty is None:
            (r, J), (again, K, pull) = flat.jacobian(x), flat.kernel(x)
            found |= {"r": r, "J": J, "r of the kernel": again, "K": K, "J'y": pull(y)}
        return found

    def plain(x):
        value = objective(unravel(x), inputs, targets, weights)
        return value if penalty is None else value + regularizers.get(penalty).value(unravel(x))

    def bend(x):
        """The penalty's own Hessian."""
        if penalty is None:
            return jnp.zeros((x.size, x.size))
        return jax.hessian(lambda x: regularizers.get(penalty).value(unravel(x)))(x)

    def theirs(x):
        H = jax.hessian(plain)(x)
        found = {"value": plain(x), "value alone": plain(x), "gradient": jax.grad(plain)(x), "H": H, "Hv": H @ v}
        each = jax.vmap(lambda w: jax.grad(lambda x: objective(unravel(x), inputs, targets, w))(x))(jnp.eye(len(share)))
        found["squares of gradients"] = mean_share @ each**2
        if loss.name == "cross_entropy":  # convex in the net inputs n, with -sum t ln softmax(n)

            def n(x):
                return network.forward(unravel(x), inputs).net_inputs[network.output.name]

            def entropy(n):
                return -jnp.sum(share[:, None] * targets * jax.nn.log_softmax(n))

            J = jax.jacrev(n)(x).reshape(-1, x.size)
            inner = jax.hessian(lambda flat: entropy(flat.reshape(targets.shape)))(n(x).reshape(-1))
            return found | {"Gv": J.T @ (inner @ (J @ v)) + bend(x) @ v}
        root = jnp.sqrt(share * SQUARES[loss.name])[:, None]

        def residuals(x):
            return (root * (network.apply(unravel(x), inputs) - targets)).reshape(-1)

        r, J = residuals(x), jax.jacrev(residuals)(x)
        found["Gv"] = 2 * J.T @ (J @ v) + bend(x) @ v
        if penalty is None:
            found |= {"r": r, "J": J, "r of the kernel": r, "K": J @ J.T, "J'y": J.T @ y}
        return found

    return tuple(jax.tree.map(np.asarray, jax.jit(f)(x)) for f in (ours, theirs))


@over_problems
def test_what_a_network_answers_is_what_autodiff_gives(name):
    ours, theirs = answers(name)
    assert ours.keys() == theirs.keys()
    for what in ours:
        scale = np.abs(theirs[what]).max()
        np.testing.assert_allclose(ours[what], theirs[what], rtol=1e-9, atol=1e-11 * scale, err_msg=what)
        assert scale > 0


@over_problems
def test_the_squares_of_residuals_sum_to_the_objective(name):
    """Where there are residuals: where there is no penalty, and the error is square."""
    ours, _ = answers(name)
    _, loss, _, penalty = PROBLEMS[name]
    assert ("r" in ours) == (penalty is None and loss in SQUARES)
    if "r" in ours:
        np.testing.assert_allclose(ours["r"] @ ours["r"], ours["value"], rtol=1e-12)
        np.testing.assert_allclose(2 * ours["J"].T @ ours["r"], ours["gradient"], rtol=1e-9, atol=1e-12)


def test_what_a_problem_has_is_told_by_loss_and_penalty():
    network = chain((3, 4, 3), "tanh", "linear")
    for loss in fnn.losses.names():
        try:
            fnn.losses.get(loss).check_outputs(network.output.activation)
        except ValueError:
            continue
        _, inputs, targets = problem(network, loss)
        for penalty in (None, "l2(0.1)"):
            functions = training.problem(network, loss, inputs, targets, regularizer=penalty).functions
            has = {what for what in ("residuals", "jacobian", "kernel") if getattr(functions, what) is not None}
            assert has == ({"residuals", "jacobian", "kernel"} if loss in SQUARES and penalty is None else set())


SLOWLY = ("fan-out", "sum, weights", "P3.2, learned slopes")


@pytest.mark.parametrize("name", ["graph", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY)])
def test_kronecker_solve_inverts_the_kronecker_product(name):
    """As a matrix, over each layer's weights from all its sources and its bias; what is no outer product by itself."""
    network, loss, weights, _ = PROBLEMS[name]
    params, inputs, targets = problem(network, loss)
    vector = jax.tree.map(lambda leaf: jnp.asarray(np.cos(np.arange(1.0, leaf.size + 1)).reshape(leaf.shape)), params)
    damping = 0.37

    @jax.jit
    def both(params, vector):
        factors = quantities.kflr(network, loss, params, inputs, targets, weights=weights)
        return factors, curvature.kronecker_solve(network, factors, damping, vector)

    factors, found = both(params, vector)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    alone = 0
    for layer in network.layers:
        own, given, solved = factors[layer.name], vector[layer.name], found[layer.name]
        A, G = np.asarray(own.activations), np.asarray(own.sensitivities)
        pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
        A, G = A + pi * damping**0.5 * np.eye(len(A)), G + damping**0.5 / pi * np.eye(len(G))
        bias = layer.bias == "per_neuron"

        def side_by_side(tree, sources=layer.sources, bias=bias):
            columns = [tree["weights"][source] for source in sources] + ([tree["bias"][:, None]] if bias else [])
            return np.concatenate(columns, axis=1).reshape(-1)

        expected = np.linalg.solve(np.kron(G, A), side_by_side(given))
        np.testing.assert_allclose(side_by_side(solved), expected, rtol=1e-9, atol=1e-12)
        for path, block in checks.by_path(own.others).items():
            expected = np.linalg.solve(np.asarray(block) + damping * np.eye(len(block)), checks.by_path(given)[path])
            np.testing.assert_allclose(checks.by_path(solved)[path], expected, rtol=1e-9)
            alone += 1
    assert alone > 0


# The texts' examples --------------------------------------------------------------------------------------------------

NEURON = fnn.multilayer((2, 1), ("linear",), bias="none")
WITH_BIAS = fnn.multilayer((1, 1), ("linear",))


def weights(*values):
    return {"layer1": {"weights": {"input": jnp.array([values])}}}


@functools.cache
def updating(make, steps):
    """Compiled (problem, params, constant) -> parameters and F after each of so many updates."""

    def run(asked, params, constant):
        states = [make(constant).init(params, asked)]
        for _ in range(steps):
            states.append(make(constant).update(states[-1], asked))
        return [(state.params, state.value) for state in states[1:]]

    return jax.jit(run)


def updated(network, P, t, make, params, constant=0.0, steps=1):
    """The same for a linear neuron on at most four examples; where there are fewer, the rest count for nothing."""
    P, t, counted = (np.array(each, float) for each in (P, t, [1] * len(t)))
    P, t, counted = (np.resize(each, (4, *each.shape[1:])) for each in (P, t, np.append(counted, [0] * (4 - len(t)))))
    asked = training.problem(network, "sum_square_error", P, t[:, None], weights=counted)
    return updating(make, steps)(asked, params, constant)


EXAMPLE_1 = [(-1, 2), (2, -1), (0, -1), (-1, 0)], [-1, -1, 1, 1]


def test_hagans_one_layer_example_by_conjugate_gradients():
    """Worked example 1, from (-1, -2.95): one exact line search, and the second ends at the minimum."""

    def exact(_):
        return optimizers.conjugate_gradient(line_search="strong_wolfe(curvature=1e-10)")

    (first, _), (second, F) = updated(NEURON, *EXAMPLE_1, exact, weights(-1.0, -2.95), steps=2)
    np.testing.assert_allclose(first["layer1"]["weights"]["input"], [[-1.80476, -1.74286]], atol=5e-6)
    np.testing.assert_allclose(second["layer1"]["weights"]["input"], [[-1, -1]], atol=1e-9)
    assert F < 1e-15


def test_hagans_examples_by_newton():
    """Worked examples 1 (damped: Eq. 3.28 with alpha), 2 and 3: one step."""
    ((damped, _),) = updated(NEURON, *EXAMPLE_1, optimizers.newton, weights(0.0, 0.0), 1.0)
    np.testing.assert_allclose(damped["layer1"]["weights"]["input"], [[-0.8, -0.8]], atol=1e-12)
    ((found, F),) = updated(NEURON, [(-4, 2), (1, 2)], [-1, 1], optimizers.newton, weights(1.0, 1.0))
    np.testing.assert_allclose(found["layer1"]["weights"]["input"], [[0.4, 0.3]], atol=1e-12)
    assert F < 1e-24
    zero = jax.tree.map(jnp.zeros_like, WITH_BIAS.init(jax.random.key(0)))
    ((found, F),) = updated(WITH_BIAS, [[-1], [0], [1]], [-1.5, 0.5, 2.5], optimizers.newton, zero)
    np.testing.assert_allclose(found["layer1"]["weights"]["input"], [[2.0]], atol=1e-12)
    np.testing.assert_allclose(found["layer1"]["bias"], [0.5], atol=1e-12)
    assert F < 1e-24


@pytest.mark.slow
def test_levenberg_marquardt_fits_a_sine_to_1e_10():
    """1-15-1, 40 points, 46 parameters: Hagan and Menhaj's first problem, far below their goal."""
    network = fnn.multilayer((1, 15, 1), ("tanh", "linear"))
    x = jnp.linspace(-1, 1, 40)[:, None]
    sine = training.problem(network, "mean_square_error", x, 0.5 + 0.25 * jnp.sin(3 * jnp.pi * x))
    method = optimizers.levenberg_marquardt(scaling="marquardt")
    found = minimize(sine, method, network.init(jax.random.key(0)), goal=1e-10, steps=2000)
    assert found.status == "goal"
    error = np.asarray(network.apply(found.params, x)) - (0.5 + 0.25 * np.sin(3 * np.pi * np.asarray(x)))
    assert np.mean(error**2) <= 1e-10


# Training -------------------------------------------------------------------------------------------------------------

NETWORK = fnn.multilayer((2, 3, 1), ("tanh", "linear"))
DRAW = np.random.default_rng(5)
Q = 17  # more than the network has parameters
X = DRAW.uniform(-1, 1, (Q, 2))
TEACHER = NETWORK.init(jax.random.key(9))
T = np.asarray(NETWORK.apply(TEACHER, X))  # so that F = 0 can be reached
NOISE = DRAW.standard_normal(T.shape)
NOISY, NEAR = T + 0.5 * NOISE, T + 0.01 * NOISE  # far from any output, and so near that few steps do
VALID = X[::-1].copy(), -NOISY[::-1]  # worse and worse, the better the rest is fitted
LOSS = "mean_square_error"
PATIENCE = 15
STOP = (training.early_stopping(PATIENCE), training.loss_below(1e-25))


def train(method="levenberg_marquardt", targets=T, **settings):
    return fnn.fit(NETWORK, LOSS, method, X, targets, **({"key": jax.random.key(0), "epochs": 40} | settings))


def train_lm(**settings):
    """With everything at once, so that one program serves."""
    return train(**({"validation": (X, T), "stop": STOP, "chunk": 2} | settings))


LINEAR = fnn.multilayer((X.shape[1], T.shape[1]), ("linear",))  # whose minimum is not 0 and is soon reached


def train_linear(epochs, **settings):
    return fnn.fit(
        LINEAR,
        LOSS,
        "levenberg_marquardt",
        X,
        NOISY,
        key=jax.random.key(0),
        epochs=epochs,
        **({"validation": (X, NOISY), "stop": training.early_stopping(500)} | settings),
    )


def equal(a, b) -> bool:
    def same(x, y):
        return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True)

    return jax.tree.all(jax.tree.map(same, a, b))


def objective_of(params, targets=T):
    """F, neuron by neuron."""
    return reference_objective(NETWORK, fnn.losses.get(LOSS), params, X, targets)


def test_fit_says_how_the_method_ended():
    result = train_lm(params=jax.tree.map(lambda leaf: leaf * 1.1, TEACHER))
    assert result.status == "loss_below" and result.history.training_loss[-1] <= 1e-25
    flat = train_lm(targets=NEAR, validation=(X, NEAR), epochs=400)
    ended = int(flat.history.epoch[-1])
    assert flat.status == "change" and ended < 400
    assert (
        flat.reason == f"after epoch {ended}: {second_order.REASONS[3]}; parameters of epoch {flat.best.epoch} restored"
    )
    assert flat.history.gradient_norm[-1] < 1e-6 < flat.history.gradient_norm[0]


def test_the_history_is_of_before_each_update():
    """Epoch by epoch the loss of the parameters that the epoch began with, by the reference; nothing is skipped."""
    states = []
    result = train_lm(targets=NOISY, epochs=6, on_chunk=lambda state, history: states.append(state))
    first, _ = jax.random.split(jax.random.key(0))
    begun = [NETWORK.init(first), *(state.params for state in states)]
    for epoch, params in zip((0, 2, 4), begun, strict=False):
        np.testing.assert_allclose(result.history.training_loss[epoch], objective_of(params, NOISY), rtol=1e-12)
    np.testing.assert_allclose(result.state.value, objective_of(result.state.params, NOISY), rtol=1e-12)
    np.testing.assert_array_equal(result.history.epoch, np.arange(1, 7))
    assert (np.diff(result.history.training_loss) <= 0).all() and np.isnan(result.history.training_accuracy).all()
    np.testing.assert_allclose(result.history.validation_loss[-1], objective_of(result.state.params), rtol=1e-12)
    assert int(result.state.step) == 6 and int(result.state.counts.values) == 7


def test_early_stopping_restores_the_best_epoch():
    result = train_lm(targets=NOISY, validation=VALID, epochs=100)
    assert result.status == "early_stopping" and result.reason.startswith("after epoch ")
    losses = result.history.validation_loss
    assert len(losses) == int(result.best.epoch) + PATIENCE == losses.argmin() + 1 + PATIENCE
    found = reference_objective(NETWORK, fnn.losses.get(LOSS), result.params, *VALID)
    np.testing.assert_allclose(found, losses.min(), rtol=1e-12)


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path):
    """mu, and how it grows, and the Jacobian at hand are in the checkpoint."""
    whole = train_lm(targets=NOISY, epochs=12)
    kept = checkpoints.keep(tmp_path)
    part = train_lm(targets=NOISY, epochs=7, checkpoint=kept)
    assert len(part.history.epoch) == 7
    resumed = train_lm(targets=NOISY, epochs=12, checkpoint=kept, resume=True)
    assert equal((resumed.state, resumed.history, resumed.best), (whole.state, whole.history, whole.best))
    assert (resumed.status, resumed.reason) == (whole.status, whole.reason)


def test_a_run_that_ended_is_not_resumed_anew(tmp_path):
    kept = checkpoints.keep(tmp_path)
    ended = train_lm(targets=NEAR, validation=(X, NEAR), epochs=1000, checkpoint=kept)
    again = train_lm(targets=NEAR, validation=(X, NEAR), epochs=1100, checkpoint=kept, resume=True)
    assert (
        ended.status == "change"
        and (again.status, again.reason) == (ended.status, ended.reason)
        and equal(again.history, ended.history)
    )


def test_mini_batches_are_taken_by_those_made_for_them():
    """The last batch of 17 in fives is smaller, and counts for as much as it has examples."""
    result = train("levenberg_marquardt(minibatches=true)", plan=training.minibatch(5), epochs=30)
    assert result.status == "completed" and int(result.state.step) == 4 * 30
    assert objective_of(result.params) < 1e-3 * result.history.training_loss[0]
    assert np.isfinite(result.history.training_loss).all()


def test_best_of_keeps_the_best_of_several_starts():
    """Each from its own key's parameters; what counts is the loss at the end, here by the reference."""
    neuron, keys = fnn.multilayer((2, 1), ("tanh",)), jax.random.split(jax.random.key(3), 3)
    found = training.best_of(3, neuron, LOSS, "levenberg_marquardt", X, NOISY, key=jax.random.key(3), epochs=3)

    def loss_of(params):
        return reference_objective(neuron, fnn.losses.get(LOSS), params, X, NOISY)

    first = [loss_of(neuron.init(jax.random.split(key)[0])) for key in keys]
    np.testing.assert_allclose(found.outcomes.history.training_loss[:, 0], first, rtol=1e-12)
    last = [loss_of(jax.tree.map(lambda leaf, i=i: leaf[i], found.outcomes.params)) for i in range(3)]
    np.testing.assert_allclose(found.losses, last, rtol=1e-12)
    assert found.index == np.argmin(last) and (np.array(last) < first).all() and len(set(np.round(first, 9))) == 3
    np.testing.assert_allclose(loss_of(found.params), min(last), rtol=1e-12)


@pytest.mark.slow
def test_each_start_of_best_of_is_fit():
    settings = {"validation": (X, T), "stop": STOP}
    found = training.best_of(
        3, NETWORK, LOSS, "levenberg_marquardt", X, NOISY, key=jax.random.key(3), epochs=8, **settings
    )
    for key, loss in zip(jax.random.split(jax.random.key(3), 3), found.losses, strict=True):
        alone = train_lm(targets=NOISY, key=key, epochs=8)
        np.testing.assert_allclose(loss, objective_of(alone.params), rtol=1e-6)


# name -> constants
FITTED = {
    "conjugate_gradient": "",
    "newton": "",
    "levenberg_marquardt": "(rule=factor)",
    "bayesian_regularization": "",
    "scaled_conjugate_gradient": "",
    "bfgs": "",
    "lbfgs": "(history=3)",
    "hessian_free": "",
    "kfac": "",
}


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.slow
def test_every_method_trains_under_its_penalty(name):
    """The history shows the loss without it, the gradient with it; F, both together, falls at every step."""
    penalty = None if name in ("levenberg_marquardt", "bayesian_regularization") else "l2(0.01)"
    states = []
    result = train(
        name + FITTED[name],
        NOISY,
        regularizer=penalty,
        chunk=1,
        epochs=12,
        on_chunk=lambda state, _: states.append(state),
    )
    assert result.status in ("completed", *second_order.STATUSES[1:])
    omega = (lambda params: 0.0) if penalty is None else regularizers.get(penalty).value
    for epoch, state in enumerate(states[:-1], start=1):
        np.testing.assert_allclose(result.history.training_loss[epoch], objective_of(state.params, NOISY), rtol=1e-10)
        np.testing.assert_allclose(result.history.gradient_norm[epoch], np.linalg.norm(state.gradient), rtol=1e-12)
    whole = [objective_of(state.params, NOISY) + float(omega(state.params)) for state in states]
    np.testing.assert_allclose([state.value for state in states], whole, rtol=1e-10)
    if name != "bayesian_regularization":
        last = states[-1].params
        gradient = reference_gradient(NETWORK, fnn.losses.get(LOSS), last, X, NOISY)
        if penalty:  # of the weights alone
            for layer in gradient:
                gradient[layer]["weights"] = {
                    source: g + 2 * 0.01 * np.asarray(last[layer]["weights"][source])
                    for source, g in gradient[layer]["weights"].items()
                }
        gradient = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
        np.testing.assert_allclose(states[-1].gradient, gradient, rtol=1e-8, atol=1e-12)
        assert (np.diff(whole) <= 1e-15).all() and whole[-1] < 0.8 * result.history.training_loss[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hessian_free", "kfac", "levenberg_marquardt"])
def test_mini_batches_descend(name):
    """On batches large enough to say something of the rest: a single example would be fitted at any price."""
    result = train(f"{name}(minibatches=true)", plan=training.minibatch(8, last="dropped"), epochs=60)
    assert result.status == "completed"
    assert objective_of(result.params) < 0.05 * result.history.training_loss[0]


@pytest.mark.slow
def test_pure_fit_is_fit():
    """And may be vmapped over traced constants."""

    def method(mu):
        return optimizers.levenberg_marquardt(mu, rule="factor")

    def run(mu):
        return training.pure_fit(NETWORK, LOSS, method(mu), epochs=8)(jax.random.key(0), X, NOISY)

    mus = np.array([1e-3, 0.1])
    found = jax.jit(jax.vmap(run))(mus)
    for i, mu in enumerate(mus):
        alone = train(method(float(mu)), NOISY, epochs=8)
        np.testing.assert_allclose(found.history.training_loss[i], alone.history.training_loss, rtol=1e-6)


# Refusals -------------------------------------------------------------------------------------------------------------

SOFTMAX = fnn.multilayer((2, 3, 2), ("tanh", "softmax"))
LABELS = np.eye(2)[np.arange(Q) % 2]
FULL_BATCH = [name for name in second_order.names() if optimizers.get(name).full_batch]
REFUSED = {
    **{
        f"mini-batches of {name}": (
            lambda name=name: train(name, plan=training.minibatch(5)),
            f"{name} builds each step on the last, on all examples: use plan=training.batch() (on the command line, "
            "--batch-size 0), or one of hessian_free, kfac, levenberg_marquardt with minibatches=True; got 4 batches",
        )
        for name in FULL_BATCH
    },
    "one example at a time": (lambda: train("newton", plan=training.stochastic()), "got 17 batches an epoch"),
    "importance": (
        lambda: train("kfac(minibatches=true)", plan=training.importance(4)),
        "plan: kfac does not take importance(); use minibatch(size)",
    ),
    "automatic": (
        lambda: train("newton", gradient="automatic"),
        "gradient: newton requires more than a gradient, all of it hand-written; for automatic derivatives use "
        "optimizers.minimize and optimizers.problem_from(function)",
    ),
    "clipped": (lambda: train("bfgs", gradient=training.clipped(1.0)), "gradient: bfgs requires more than a gradient"),
    "dropout": (
        lambda: fnn.fit(
            fnn.multilayer((2, 3, 1), ("tanh", "linear"), dropout=0.5),
            LOSS,
            "lbfgs",
            X,
            T,
            key=jax.random.key(0),
            epochs=1,
        ),
        "network: with dropout, F is another function at every evaluation",
    ),
    "dropout, as a problem": (
        lambda: training.problem(fnn.multilayer((2, 3, 1), ("tanh", "linear"), dropout=0.5), LOSS, X, T),
        "network: with dropout",
    ),
    "cross-entropy": (
        lambda: fnn.fit(SOFTMAX, "cross_entropy", "levenberg_marquardt", X, LABELS, key=jax.random.key(0), epochs=1),
        "levenberg_marquardt: <problem of a network under cross_entropy> has no residuals whose squares sum to F",
    ),
    "a penalty": (
        lambda: train("levenberg_marquardt", regularizer="l2(0.1)"),
        "levenberg_marquardt: <problem of a network under mean_square_error with l2> has no residuals",
    ),
    "budget": (lambda: train("newton(budget=1351)"), "newton: a matrix for 13 parameters would take 1352 bytes, above"),
    "a mesh": (
        lambda: train("bfgs", mesh=jax.make_mesh((1,), ("examples",))),
        "mesh: bfgs runs on one device; first-order methods take a mesh",
    ),
    "a population": (
        lambda: training.fit_population(
            NETWORK, LOSS, "lbfgs", {"seed": [1, 2]}, (X, T), key=jax.random.key(0), epochs=1
        ),
        "optimizer: populations train with first-order methods, got 'lbfgs'; training.best_of and optimizers.restarts",
    ),
    "a name": (
        lambda: train("levenberg_marquart"),
        "unknown optimizer 'levenberg_marquart'; did you mean 'levenberg_marquardt'?",
    ),
    "a short name": (lambda: train("lbfg"), "unknown optimizer 'lbfg'; did you mean 'lbfgs'?"),
    "an argument": (lambda: train("bfgs(lines=full_step)"), "got an unexpected keyword argument 'lines'"),
    "no network": (lambda: training.problem("net", LOSS, X, T), "network: expected fnn.multilayer(...)"),
    "nan": (lambda: training.problem(NETWORK, LOSS, X * np.nan, T), "inputs: expected finite numbers, got nan"),
    "targets": (lambda: training.problem(NETWORK, LOSS, X, T * np.inf), "targets: expected finite numbers, got"),
    "a wrapped one": (lambda: optimizers.clip_by_global_norm("lbfgs", 1.0), "optimizer"),
}


def test_all_but_three_need_whole_batches():
    assert len(FULL_BATCH) == 11
    for name in ("hessian_free", "kfac", "levenberg_marquardt"):
        assert not optimizers.get(f"{name}(minibatches=true)").full_batch


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line(case):
    build, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as refused:
        build()
    assert message in str(refused.value) and "\n" not in str(refused.value)


# Bayesian regularization ----------------------------------------------------------------------------------------------


def noisy_sine(deviation=0.1, unit=1.0, count=41, outputs=1):
    """MATLAB's example of trainbr: two periods under noise; a second output is a parabola."""
    x = np.linspace(-1, 1, count)[:, None]
    clean = np.concatenate([np.sin(2 * np.pi * x), x**2 - 0.5], axis=1)[:, :outputs]
    return x, unit * (clean + deviation * np.random.default_rng(0).standard_normal(clean.shape))


def regularized(x, t, seeds, hidden=20, dtype=np.float64, initializer=None, steps=300):
    """(R2, solutions) of networks with default initial weights, one for each seed, side by side."""
    network = fnn.multilayer((x.shape[1], hidden, t.shape[1]), ("tanh", "linear"), initializer=initializer)
    x, t = jnp.asarray(x, dtype), jnp.asarray(t, dtype)
    starts = jax.vmap(network.init)(jax.random.split(jax.random.key(0), seeds))
    starts = jax.tree.map(lambda leaf: leaf.astype(dtype), starts)
    asked = training.problem(network, "mean_square_error", x, t)
    run = jax.jit(jax.vmap(lambda p: minimize(asked, "bayesian_regularization", p, steps=steps, path=False)))
    found = run(starts)
    return 1 - np.asarray(found.value, float) / np.mean(np.var(np.asarray(t, float), axis=0)), found


# name -> (data, options, least R2 of the worst seed)
REGULARIZED = {
    "documented": (noisy_sine(), {"seeds": 4, "steps": 150}, 0.98),
    "more seeds": (noisy_sine(), {"seeds": 20}, 0.98),
    "nguyen_widrow": (noisy_sine(), {"seeds": 8, "initializer": "nguyen_widrow"}, 0.98),
    "more noise": (noisy_sine(0.3), {"seeds": 20}, 0.9),
    "float32": (noisy_sine(), {"seeds": 20, "dtype": np.float32}, 0.98),
    "few examples": (noisy_sine(count=25), {"seeds": 20}, 0.9),
    "a small unit": (noisy_sine(unit=1e-3), {"seeds": 20}, 0.98),
    "a larger unit": (noisy_sine(unit=10), {"seeds": 20}, 0.98),
    "two outputs": (noisy_sine(outputs=2), {"seeds": 5}, 0.95),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "documented" else pytest.mark.slow) for name in REGULARIZED]
)
def test_bayesian_regularization_fits_before_it_weighs(name):
    """From default initial weights, whatever the seed: it fits, and of its parameters the data determine a few."""
    (x, t), options, least = REGULARIZED[name]
    fit, found = regularized(x, t, **options)
    assert fit.min() >= least, fit
    gamma = np.asarray(found.state.memory.evidence.gamma)
    assert (gamma > 3).all() and (gamma < 30 * t.shape[1]).all(), gamma
    assert not np.isin(found.status, ("no_evidence", "search_failed", "diverged")).any()


@pytest.mark.slow
def test_bayesian_regularization_of_diabetes():
    x, y = pytest.importorskip("sklearn.datasets").load_diabetes(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    fit, found = regularized(x, ((y - y.mean()) / y.std())[:, None], 3, hidden=8)
    assert (fit > 0.5).all()  # a line has 0.52
    assert (np.asarray(found.state.memory.evidence.gamma) < found.gradient.shape[1]).all()


def test_fit_tells_data_that_determine_nothing():
    """Linear, of inputs at right angles to the targets: the status is not that of other ends."""
    draw = np.random.default_rng(2)
    x = draw.standard_normal((20, 2))
    basis = np.linalg.qr(np.concatenate([x, np.ones((20, 1))], axis=1))[0]
    t = draw.standard_normal((20, 1))
    t = t - basis @ (basis.T @ t)
    network = fnn.multilayer((2, 1), ("linear",))
    data = {"key": jax.random.key(0), "epochs": 400}
    result = fnn.fit(network, "mean_square_error", "bayesian_regularization", x, t, **data)
    assert result.status == "no_evidence", result.reason
    assert "the data determine no parameter: gamma is 0" in result.reason
    assert float(result.state.memory.evidence.gamma) < 0.5
