"""First-order methods: optax's trajectories, the texts' recursions in NumPy, and what every method leaves as it was."""

import inspect
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, relative_error

from functional_nn import optimizers
from functional_nn.optimizers import first_order

# Trajectories ---------------------------------------------------------------------------------------------------------

# Gradients of a bowl about -1/2 under noise that dies away, so that averages of g^2 shrink (amsgrad's maximum acts) and
# signs turn (rprop's steps shrink); of the first element the gradient is always 0.
STEPS, SIZE = 200, 6
_draw = np.random.default_rng(0)
START = _draw.standard_normal(SIZE)
PULL = np.where(np.arange(SIZE) == 0, 0.0, 1.0)
NOISE = (2 * np.exp(-np.arange(STEPS) / 30) + 0.05)[:, None] * _draw.standard_normal((STEPS, SIZE)) * PULL


def gradient(x, noise):
    """Of an array (SIZE,), NumPy's or JAX's."""
    return noise + PULL * (x + 0.5)


def trajectory(optimizer, kept=lambda state: state.params):
    """`kept` of the state after each of 200 updates (STEPS, SIZE), the gradients taken where the optimizer says."""

    def step(state, noise):
        state = optimizer.update(state, gradient(optimizer.point(state), noise))
        return state, kept(state)

    return np.asarray(jax.jit(lambda x: jax.lax.scan(step, optimizer.init(x), jnp.asarray(NOISE))[1])(START))


def trajectory_of_optax(transformation):
    import optax

    def step(carry, noise):
        x, state = carry
        updates, state = transformation.update(gradient(x, noise), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 power
        run = jax.jit(lambda x: jax.lax.scan(step, (x, transformation.init(x)), jnp.asarray(NOISE))[1])
        return np.asarray(run(START))


def rprop_of_optax(optax, *constants):
    """optax.rprop on time: that of 0.2.8 hands out the update of the step before; the present one is in its state."""
    late = optax.rprop(*constants)

    def update(grads, state, params=None):
        state = late.update(grads, state, params)[1]
        return -state[0].prev_updates, state

    return optax.GradientTransformation(late.init, update)


def written_out(rule, *memory):
    """The trajectory of rule(k, x, g, *memory) -> (x, *memory) in NumPy, k = 1, 2, ..."""
    x, path = START.copy(), []
    for k, noise in enumerate(NOISE, start=1):
        x, *memory = rule(k, x, gradient(x, noise), *memory)
        path.append(x)
    return np.array(path)


def assert_one_trajectory(ours, theirs):
    """The same at every step, and not because nothing moved."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)
    assert relative_error(ours, theirs) <= 1e-12
    assert np.abs(ours[-1, 1:] - START[1:]).min() > 1e-3
    assert (ours[:, 0] == START[0]).all()


def assert_different_trajectories(ours, others):
    """Of an element that moves, nowhere the same: the definitions differ, not the last steps alone."""
    assert (np.abs(ours - others).max(axis=1) > 1e-6).all()


# (ours, optax's), with the defaults of the one or the other and with constants that neither has
OPTAXS = {
    "gd": (lambda o: o.gd(0.03), lambda x: x.sgd(0.03)),
    "gd, default": (lambda o: o.gd(), lambda x: x.sgd(0.1)),
    "momentum": (lambda o: o.momentum(0.03, 0.8), lambda x: x.sgd(0.03, momentum=0.8)),
    "momentum, default": (lambda o: o.momentum(), lambda x: x.sgd(0.1, momentum=0.9)),
    "momentum without decay": (lambda o: o.momentum(0.03, 0.0), lambda x: x.sgd(0.03)),
    "nesterov": (lambda o: o.nesterov(0.03, 0.8), lambda x: x.sgd(0.03, momentum=0.8, nesterov=True)),
    "nesterov, default": (lambda o: o.nesterov(), lambda x: x.sgd(0.1, momentum=0.9, nesterov=True)),
    "rprop": (lambda o: o.rprop(backtracking=False), lambda x: rprop_of_optax(x, 0.1)),
    "rprop, other constants": (
        lambda o: o.rprop(0.02, 0.3, 1.5, 1e-3, 0.05, backtracking=False),
        lambda x: rprop_of_optax(x, 0.02, 0.3, 1.5, 1e-3, 0.05),
    ),
    "adagrad": (lambda o: o.adagrad(0.1, 1e-7, initial=0.1), lambda x: x.adagrad(0.1)),
    "adagrad, other constants": (lambda o: o.adagrad(0.3, 1e-2, 0.7), lambda x: x.adagrad(0.3, 0.7, 1e-2)),
    "adadelta": (lambda o: o.adadelta(), lambda x: x.adadelta(1.0)),
    "adadelta, other constants": (lambda o: o.adadelta(0.5, 0.7, 1e-3), lambda x: x.adadelta(0.5, 0.7, 1e-3)),
    "rmsprop": (lambda o: o.rmsprop(), lambda x: x.rmsprop(1e-3)),
    "rmsprop, other constants": (lambda o: o.rmsprop(0.02, 0.7, 1e-2), lambda x: x.rmsprop(0.02, 0.7, 1e-2)),
    "rmsprop, centered": (
        lambda o: o.rmsprop(0.02, epsilon=1e-4, centered=True),
        lambda x: x.rmsprop(0.02, eps=1e-4, centered=True),
    ),
    "rmsprop, centered, other constants": (
        lambda o: o.rmsprop(0.01, 0.7, 1e-2, centered=True),
        lambda x: x.rmsprop(0.01, 0.7, 1e-2, centered=True),
    ),
    "adam": (lambda o: o.adam(), lambda x: x.adam(1e-3)),
    "adam, other constants": (lambda o: o.adam(0.01, 0.8, 0.95, 1e-3), lambda x: x.adam(0.01, 0.8, 0.95, 1e-3)),
    "adamax": (lambda o: o.adamax(), lambda x: x.adamax(2e-3)),
    "adamax, other constants": (lambda o: o.adamax(0.01, 0.8, 0.9, 0.1), lambda x: x.adamax(0.01, 0.8, 0.9, 0.1)),
    "amsgrad": (lambda o: o.amsgrad(), lambda x: x.amsgrad(1e-3)),
    "amsgrad, other constants": (lambda o: o.amsgrad(0.01, 0.8, 0.9, 1e-3), lambda x: x.amsgrad(0.01, 0.8, 0.9, 1e-3)),
    "amsgrad of the paper": (
        lambda o: o.amsgrad(0.01, 0.8, 0.9, 1e-3, bias_correction=False),
        lambda x: x.amsgrad(0.01, 0.8, 0.9, 1e-3, bias_correction_mu=False, bias_correction_nu=False),
    ),
    "nadam": (lambda o: o.nadam(), lambda x: x.nadam(1e-3)),
    "nadam, other constants": (lambda o: o.nadam(0.01, 0.8, 0.95, 1e-3), lambda x: x.nadam(0.01, 0.8, 0.95, 1e-3)),
    "adamw": (lambda o: o.adamw(), lambda x: x.adamw(1e-3, weight_decay=1e-2)),
    "adamw, other constants": (
        lambda o: o.adamw(0.01, 0.8, 0.95, 1e-3, 0.3),
        lambda x: x.adamw(0.01, 0.8, 0.95, 1e-3, weight_decay=0.3),
    ),
}


OPTAXS_SLOW = ("gd, default", "momentum, default", "momentum without decay", "nesterov, default", "rmsprop, centered")


@pytest.mark.sampled(every=2)
@pytest.mark.oracle
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in OPTAXS_SLOW else ()) for case in OPTAXS]
)
def test_trajectories_are_optaxs(case):
    import optax

    ours, theirs = OPTAXS[case]
    ours, theirs = trajectory(ours(optimizers)), trajectory_of_optax(theirs(optax))
    if case.startswith("adamw"):  # decays what has no gradient, too
        assert relative_error(ours, theirs) <= 1e-12
        assert (np.abs(ours[:, 0]) < abs(START[0])).all()
    else:
        assert_one_trajectory(ours, theirs)


def test_every_method_is_compared_with_optax():
    """But one that optax has not."""
    compared = {case.partition(",")[0].partition(" ")[0] for case in OPTAXS}
    assert compared | {"full_matrix_adagrad"} == set(optimizers.names())


# Where definitions differ ---------------------------------------------------------------------------------------------


def rmsprop_by_hand(epsilon_inside):
    def rule(k, x, g, r):
        r = 0.7 * r + 0.3 * g**2
        return x - 0.02 * g / (np.sqrt(r + 1e-2) if epsilon_inside else np.sqrt(r) + 1e-2), r

    return written_out(rule, np.zeros(SIZE))


def test_epsilon_of_rmsprop_stands_inside_the_root():
    """Kordecki's and optax's; PyTorch's stands outside."""
    ours = trajectory(optimizers.rmsprop(0.02, 0.7, 1e-2))
    assert_one_trajectory(ours, rmsprop_by_hand(epsilon_inside=True))
    assert_different_trajectories(ours, rmsprop_by_hand(epsilon_inside=False))


def test_centered_rmsprop_is_graves():
    """Eq. 38-45 without momentum: the average of squares less the square of the average."""

    def rule(k, x, g, n, mean):
        n, mean = 0.7 * n + 0.3 * g**2, 0.7 * mean + 0.3 * g
        return x - 0.01 * g / np.sqrt(n - mean**2 + 1e-2), n, mean

    ours = trajectory(optimizers.rmsprop(0.01, 0.7, 1e-2, centered=True))
    assert_one_trajectory(ours, written_out(rule, np.zeros(SIZE), np.zeros(SIZE)))


def test_epsilon_of_adagrad_stands_inside_the_root():
    """Duchi's and optax's; PyTorch's stands outside. The sum starts at 0 by default, as PyTorch's."""

    def by_hand(epsilon_inside):
        def rule(k, x, g, total):
            total = total + g**2
            return x - 0.1 * g / (np.sqrt(total + 0.01) if epsilon_inside else np.sqrt(total) + 0.01), total

        return written_out(rule, np.zeros(SIZE))

    ours = trajectory(optimizers.adagrad(0.1, 0.01))
    assert_one_trajectory(ours, by_hand(epsilon_inside=True))
    assert_different_trajectories(ours, by_hand(epsilon_inside=False))


def full_matrix(epsilon):
    """Kordecki's formula by the singular values of all gradients so far, one a row: G itself is never formed."""

    def rule(k, x, g, rows):
        rows = [*rows, g]
        _, singular, V = np.linalg.svd(np.array(rows), full_matrices=False)
        return x - 0.1 * V.T @ (V @ g / np.sqrt(epsilon + singular**2)), rows

    return written_out(rule, [])


def test_adagrad_with_the_full_matrix_is_kordeckis_formula():
    """At its default epsilon only to what rounding of G, whose first updates are singular, leaves of it."""
    ours = trajectory(optimizers.full_matrix_adagrad(0.1, 0.01))
    assert_one_trajectory(ours, full_matrix(0.01))
    assert_different_trajectories(ours[1:], trajectory(optimizers.adagrad(0.1, 0.01))[1:])
    near = trajectory(optimizers.full_matrix_adagrad(0.1))
    np.testing.assert_allclose(near, full_matrix(1e-8), rtol=1e-10, atol=1e-10)
    assert (near[:, 0] == START[0]).all()


def after(optimizer, x, gradients):
    """The parameters after each of some updates."""

    def step(state, g):
        state = optimizer.update(state, g)
        return state, state.params

    return jax.lax.scan(step, optimizer.init(x), gradients)[1]


def test_the_full_matrix_has_no_preferred_axes():
    """Of gradients turned by Q the steps are those turned by Q; the diagonal's are not."""
    Q = np.linalg.qr(np.random.default_rng(4).standard_normal((SIZE, SIZE)))[0]
    turned = {}
    for make in (optimizers.full_matrix_adagrad, optimizers.adagrad):
        run = jax.jit(partial(after, make(0.1, 0.01)))
        plain, other = (np.asarray(run(jnp.zeros(SIZE), g)) for g in (NOISE, NOISE @ Q.T))
        turned[make] = np.allclose(other, plain @ Q.T, rtol=0, atol=1e-12)
    assert list(turned.values()) == [True, False]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_eigenvalues_below_zero_by_rounding_are_none(dtype):
    """One gradient over and over: every other eigenvalue of G is 0, and comes out with either sign. Each update is then
    along g, eta / sqrt(k) long.
    """
    g = jnp.asarray(np.random.default_rng(5).standard_normal(40) * 1e5, dtype)
    optimizer = optimizers.full_matrix_adagrad(1.0)
    state = jax.eval_shape(optimizer.init, g)
    assert state.matrix.dtype == jnp.float32
    path = np.asarray(jax.jit(partial(after, optimizer))(jnp.zeros_like(g), jnp.stack([g] * 20)).astype(jnp.float64))
    G = np.outer(*[np.asarray(g, np.float32)] * 2)
    assert np.linalg.eigvalsh(G).min() < -1e-8  # below -epsilon: its root would be nan
    direction = np.asarray(g, np.float64) / np.linalg.norm(np.asarray(g, np.float64))
    expected = -np.cumsum(1 / np.sqrt(np.arange(1, 21)))[:, None] * direction
    assert relative_error(path, expected) < (1e-3 if dtype == jnp.float32 else 0.05)


def test_the_matrix_has_a_budget():
    """Over all arrays together, in the dtype of what is computed."""
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    message = (
        "full_matrix_adagrad: the matrix of 10 parameters would take 400 bytes, above the budget of 399, which has "
        "room for 9; use adagrad, which keeps the diagonal, or allow it with budget=400"
    )
    assert refusal(lambda: optimizers.full_matrix_adagrad(budget=399).init(params)) == message
    assert optimizers.full_matrix_adagrad(budget=400).init(params).matrix.shape == (10, 10)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    assert "would take 800 bytes" in refusal(lambda: optimizers.full_matrix_adagrad(budget=799).init(wide))
    largest = jax.ShapeDtypeStruct((4096,), jnp.float32), jax.ShapeDtypeStruct((4097,), jnp.float32)
    jax.eval_shape(optimizers.full_matrix_adagrad().init, largest[0])
    assert "has room for 4096" in refusal(lambda: jax.eval_shape(optimizers.full_matrix_adagrad().init, largest[1]))


def amsgrad_by_hand(largest_of, b1=0.8, b2=0.9, epsilon=1e-3):
    def rule(k, x, g, m, v, largest):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if largest_of == "corrected":
            largest = np.maximum(largest, v / (1 - b2**k))
            return x - 0.01 * m / (1 - b1**k) / (np.sqrt(largest) + epsilon), m, v, largest
        largest = np.maximum(largest, v)
        if largest_of == "uncorrected, then corrected":
            return x - 0.01 * m / (1 - b1**k) / (np.sqrt(largest / (1 - b2**k)) + epsilon), m, v, largest
        return x - 0.01 * m / (np.sqrt(largest) + epsilon), m, v, largest

    return written_out(rule, *np.zeros((3, SIZE)))


def test_the_three_amsgrads_are_told_apart():
    """With correction, the maximum is of corrected moments (optax); PyTorch corrects the maximum; the paper nothing."""
    ours = trajectory(optimizers.amsgrad(0.01, 0.8, 0.9, 1e-3))
    papers = trajectory(optimizers.amsgrad(0.01, 0.8, 0.9, 1e-3, bias_correction=False))
    pytorch = amsgrad_by_hand("uncorrected, then corrected")
    assert_one_trajectory(ours, amsgrad_by_hand("corrected"))
    assert_one_trajectory(papers, amsgrad_by_hand("uncorrected"))
    assert_different_trajectories(ours, papers)
    np.testing.assert_allclose(ours[0], pytorch[0], rtol=1e-14)  # of one moment, either way, the same maximum
    assert_different_trajectories(ours[5:], pytorch[5:])


def test_momentum_of_nadam_is_constant():
    """Dozat's Alg. 8 with mu = b1; PyTorch's mu grows to it by 0.96^(0.004 k)."""
    b1, b2 = 0.8, 0.95

    def constant(k, x, g, m, v):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (k + 1)) + (1 - b1) * g / (1 - b1**k)
        return x - 0.01 * ahead / (np.sqrt(v / (1 - b2**k)) + 1e-3), m, v

    def pytorch(k, x, g, m, v, product):
        mu, following = (b1 * (1 - 0.5 * 0.96 ** (0.004 * j)) for j in (k, k + 1))
        product = product * mu
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = following * m / (1 - product * following) + (1 - mu) * g / (1 - product)
        return x - 0.01 * ahead / (np.sqrt(v / (1 - b2**k)) + 1e-3), m, v, product

    ours = trajectory(optimizers.nadam(0.01, b1, b2, 1e-3))
    assert_one_trajectory(ours, written_out(constant, *np.zeros((2, SIZE))))
    assert_different_trajectories(ours, written_out(pytorch, *np.zeros((2, SIZE)), 1.0))


def test_momentum_keeps_the_rates_its_changes_were_made_with():
    """Of optax and PyTorch, the whole average is multiplied by the latest rate."""

    def rate(k):
        return 0.1 * 0.5 ** (k // 20)

    def ours(k, x, g, change):
        change = 0.9 * change - rate(k - 1) * g
        return x + change, change

    def theirs(k, x, g, average):
        average = 0.9 * average + g
        return x - rate(k - 1) * average, average

    reached = trajectory(optimizers.momentum("step(0.1, 20, 0.5)", 0.9))
    assert_one_trajectory(reached, written_out(ours, np.zeros(SIZE)))
    theirs = written_out(theirs, np.zeros(SIZE))
    np.testing.assert_allclose(reached[:20], theirs[:20], rtol=1e-12)  # until the rate changes for the first time
    assert_different_trajectories(reached[20:], theirs[20:])


def test_adams_orders_differ_by_where_epsilon_stands():
    """The efficient order with epsilon-hat is the corrected one with epsilon-hat / sqrt(1 - b2^k); Kingma and Ba, 2."""
    b1, b2 = 0.8, 0.95

    def corrected(k, x, g, m, v, epsilon_at):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return x - 0.01 * m / (1 - b1**k) / (np.sqrt(v / (1 - b2**k)) + epsilon_at(k)), m, v, epsilon_at

    def by_hand(epsilon_at):
        return written_out(corrected, *np.zeros((2, SIZE)), epsilon_at)

    first = trajectory(optimizers.adam(0.01, b1, b2, 1e-2))
    second = trajectory(optimizers.adam(0.01, b1, b2, 1e-2, order="efficient"))
    assert_one_trajectory(first, by_hand(lambda k: 1e-2))
    assert_one_trajectory(second, by_hand(lambda k: 1e-2 / np.sqrt(1 - b2**k)))
    assert_different_trajectories(first, second)
    negligible = trajectory(optimizers.adam(0.01, b1, b2, 1e-30))
    assert_one_trajectory(trajectory(optimizers.adam(0.01, b1, b2, 1e-30, order="efficient")), negligible)


def test_adadelta_is_zeilers_algorithm():
    def rule(k, x, g, squares, changes):
        squares = 0.7 * squares + 0.3 * g**2
        change = -np.sqrt(changes + 1e-3) / np.sqrt(squares + 1e-3) * g
        return x + change, squares, 0.7 * changes + 0.3 * change**2

    assert_one_trajectory(
        trajectory(optimizers.adadelta(decay=0.7, epsilon=1e-3)), written_out(rule, *np.zeros((2, SIZE)))
    )


def test_nesterovs_forms_are_one_trajectory():
    """The look-ahead form by its equations; y = w + alpha v, its points, are the gradient form's parameters."""
    alpha, eta = 0.8, 0.05
    w, v, path = START.copy(), np.zeros(SIZE), []
    for noise in NOISE:
        v = alpha * v - eta * gradient(w + alpha * v, noise)  # Sutskever et al. 2013, Eq. 3
        w = w + v  # Eq. 4
        path.append(np.stack([w, w + alpha * v]))
    path = np.array(path)

    optimizer = optimizers.nesterov(eta, alpha, form="look_ahead")
    ahead = trajectory(optimizer, lambda state: jnp.stack([state.params, optimizer.point(state)]))
    assert_one_trajectory(ahead[:, 0], path[:, 0])
    assert_one_trajectory(ahead[:, 1], path[:, 1])
    assert_one_trajectory(trajectory(optimizers.nesterov(eta, alpha)), ahead[:, 1])
    assert_different_trajectories(ahead[:, 0], ahead[:, 1])


def riedmiller_and_braun(backtracking, initial=0.1, decrease=0.5, increase=1.2, smallest=1e-6, largest=50.0):
    """The 1993 paper's algorithm, one weight and one number at a time; Delta is the step size, last the gradient."""
    path = np.zeros((STEPS, SIZE))
    for i in range(SIZE):
        x, size, last, change = START[i], initial, 0.0, 0.0
        for k in range(STEPS):
            g = float(NOISE[k, i] + PULL[i] * (x + 0.5))
            sign = float(g > 0) - float(g < 0)
            if last * g > 0:
                size = min(size * increase, largest)
                change, last = -sign * size, g
            elif last * g < 0:
                size = max(size * decrease, smallest)
                change, last = (-change if backtracking else 0.0), 0.0
            else:
                change, last = -sign * size, g
            x += change
            path[k, i] = x
    return path


@pytest.mark.parametrize("constants", [{}, {"initial": 0.02, "decrease": 0.3, "increase": 1.5, "largest": 0.05}])
def test_rprop_takes_back_the_step_after_a_change_of_sign(constants):
    theirs = {name if name != "initial" else "initial_step": value for name, value in constants.items()}
    ours = trajectory(optimizers.rprop(**theirs))
    assert_one_trajectory(ours, riedmiller_and_braun(True, **constants))
    without = trajectory(optimizers.rprop(**theirs, backtracking=False))
    assert_one_trajectory(without, riedmiller_and_braun(False, **constants))
    assert relative_error(ours, without) > 1e-3


# Worked examples ------------------------------------------------------------------------------------------------------


def test_gradient_descent_is_hagans_first_step():
    """Worked examples 1 and 3: rate 0.01 from the first example; one step at 0.1 from w = b = 0."""
    state = optimizers.gd(0.01).update(optimizers.gd(0.01).init(jnp.zeros(2)), -2 * -1.0 * jnp.array([-1.0, 2.0]))
    np.testing.assert_allclose(state.params, [0.02, -0.04], rtol=1e-15)
    state = optimizers.gd(0.1).update(optimizers.gd(0.1).init(jnp.zeros(2)), jnp.array([-8.0, -3.0]))
    np.testing.assert_allclose(state.params, [0.8, 0.3], rtol=1e-15)


def test_gradient_descent_is_stable_below_two_over_the_largest_eigenvalue():
    """Worked example 2, Hagan P3.3: eigenvalues 10 and 40, so 0.05 is the edge; one program for all rates."""
    a, d, c = jnp.array([[34.0, -12.0], [-12.0, 16.0]]), jnp.array([-10.0, 0.0]), 2.0

    def value(x):
        return c + d @ x + x @ a @ x / 2

    @jax.jit
    @jax.vmap
    def values(rate):  # F at the start and after each of 300 steps
        optimizer = optimizers.gd(rate)

        def step(state, _):
            return (optimizer.update(state, a @ state.params + d), value(state.params))

        return jax.lax.scan(step, optimizer.init(jnp.ones(2)), length=301)[1]

    below, edge, above = values(jnp.array([0.0499, 0.05, 0.06]))
    np.testing.assert_allclose(edge[:4], [5, 2, 1.25, 1.0625], rtol=1e-12)
    np.testing.assert_allclose(edge[50:], 1, rtol=1e-9)  # for ever: the part along [-2, 1] keeps its size
    assert below[-1] < 0.5 and (np.diff(np.asarray(below)[20:]) < 0).all()
    assert above[-1] > 1e80


def test_momentum_is_the_recursion_written_out():
    optimizer, w, change = optimizers.momentum(0.1, 0.9), 1.0, 0.0
    state = optimizer.init(jnp.array(w))
    for g in (2.0, -1.0, 0.5, 3.0):
        change = -0.1 * g + 0.9 * change
        w = w + change
        state = optimizer.update(state, jnp.array(g))
        np.testing.assert_allclose((state.params, state.change), (w, change), rtol=1e-15)


def test_adam_is_the_algorithm_written_out():
    """Kingma and Ba 2015, Algorithm 1, in floats; the first step is the rate times the sign of the gradient."""
    rate, b1, b2, epsilon = 0.1, 0.9, 0.99, 1e-8
    optimizer, x, m, v = optimizers.adam(rate, b1, b2, epsilon), 1.0, 0.0, 0.0
    state = optimizer.init(jnp.array(x))
    for t, g in enumerate((2.0, -1.0, 0.5, 3.0), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + epsilon)
        state = optimizer.update(state, jnp.array(g))
        np.testing.assert_allclose((state.params, state.first_moment, state.second_moment), (x, m, v), rtol=1e-14)
        assert t > 1 or abs(x - 0.9) < 1e-8
    assert state.step == 4


# Laws over all methods, wrapped ones too ------------------------------------------------------------------------------

# name -> optimizer from a rate and a weight decay, which only those take that decay weights
METHODS = {name: lambda rate, _, name=name: getattr(optimizers, name)(rate) for name in optimizers.names()} | {
    "adamw": lambda rate, decay: optimizers.adamw(rate, weight_decay=decay),
    # Gradients of one direction only: in all others rounding is what there is, which a small epsilon lets grow.
    "full_matrix_adagrad": lambda rate, _: optimizers.full_matrix_adagrad(rate, 0.01),
    "nesterov, look-ahead": lambda rate, _: optimizers.nesterov(rate, form="look_ahead"),
    "rprop without backtracking": lambda rate, _: optimizers.rprop(rate, backtracking=False),
    "rmsprop, centered": lambda rate, _: optimizers.rmsprop(rate, centered=True),
    "adam, efficient": lambda rate, _: optimizers.adam(rate, order="efficient"),
    "amsgrad of the paper": lambda rate, _: optimizers.amsgrad(rate, bias_correction=False),
}
PARAMS = {  # one array that penalties act on, one that they spare; zeros of both signs
    "layer1": {"weights": {"input": jnp.array([[0.5, -0.0], [-1.25, 0.75]])}},
    "layer2": {"bias": jnp.array([-0.0, 0.25])},
}
MASKS = {
    "layer1": {"weights": {"input": np.array([[True, False], [True, True]])}},
    "layer2": {"bias": np.ones(2, bool)},
}


def sgd_of_optax(rate, _):
    import optax

    return optimizers.from_optax(optax.sgd(rate, momentum=0.9))


WRAPPED = {
    "clip_by_global_norm": lambda rate, _: optimizers.clip_by_global_norm(optimizers.adam(rate), 0.5),
    "clip_by_value": lambda rate, _: optimizers.clip_by_value(optimizers.adam(rate), 0.5),
    "coupled_weight_decay": lambda rate, decay: optimizers.coupled_weight_decay(optimizers.adam(rate), decay, True),
    "decoupled_weight_decay": lambda rate, decay: optimizers.decoupled_weight_decay(optimizers.adam(rate), decay, True),
    "accumulate": lambda rate, _: optimizers.accumulate(optimizers.adam(rate), 4),
    "freeze": lambda rate, _: optimizers.freeze(optimizers.adam(rate), ["layer2"]),
    "average": lambda rate, _: optimizers.average(optimizers.adam(rate)),
    "average, exponential": lambda rate, _: optimizers.average(optimizers.adam(rate), 0.9, start=3),
    "reduce_on_plateau": lambda rate, _: optimizers.reduce_on_plateau(optimizers.adam, rate),
    "keep_pruned": lambda rate, _: optimizers.keep_pruned(optimizers.adam(rate), MASKS),
    "from_optax": sgd_of_optax,
}
ALL = METHODS | WRAPPED
RATES = dict.fromkeys(ALL, 0.02) | {"adadelta": 10.0, "adagrad": 0.1}
over_all = pytest.mark.parametrize("name", ALL)


def slow_but(*fast):
    """A mark over all, those not named for the slow suite."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in fast else pytest.mark.slow) for n in ALL])


def promotion(name):
    """optax multiplies by whatever a rate is; the package promotes nothing silently."""
    return jax.numpy_dtype_promotion("standard" if name == "from_optax" else "strict")


def bowl(params, scale):
    """The gradient of scale / 2 * sum (x + 1/2)^2, in the dtype of each parameter; zeros of both signs at scale 0."""
    return jax.tree.map(lambda x: (x + 0.5) * jnp.asarray(scale, x.dtype), params)


def run(optimizer, params, scale, steps):
    """The states before and after some updates."""
    before = optimizer.init(params)

    def step(state, _):
        return (optimizer.update(state, bowl(optimizer.point(state), scale)), None)

    return before, jax.lax.scan(step, before, length=steps)[0]


@cache
def hundred_updates(name):
    """(rate, decay, scale) -> the states before and after 100 updates in each dtype: one program for several laws."""

    def states(rate, decay, scale):
        def make(dtype):
            return run(ALL[name](rate, decay), jax.tree.map(lambda x: x.astype(dtype), PARAMS), scale, 100)

        return {np.dtype(dtype).name: make(dtype) for dtype in DTYPES}

    return jax.jit(states)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_kept(name, dtype, before, after):
    """Structure, shapes and dtypes; averages in float32 at least; numbers, and not those it began with."""
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)
    chex.assert_trees_all_equal_shapes(after.params, PARAMS)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after.params)} == {dtype}
    assert not any(np.isnan(np.asarray(leaf).astype(np.float64)).any() for leaf in jax.tree.leaves(after))
    chex.assert_tree_all_finite(jax.tree.map(lambda x: x.astype(jnp.float64), after.params))
    assert before.step == 0 and after.step == (25 if name == "accumulate" else 100)
    assert after.step.dtype == jnp.int32
    if name != "from_optax":
        narrow = sum(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(after))
        assert narrow == (len(jax.tree.leaves(PARAMS)) if dtype in ("bfloat16", "float16") else 0)


@pytest.mark.sampled(every=2)
@slow_but(
    *optimizers.names(), "decoupled_weight_decay", "accumulate", "freeze", "average", "reduce_on_plateau", "keep_pruned"
)
def test_100_updates_keep_what_they_must(name):
    """In each dtype: the state's form; every bit where the gradient is zero, of either sign; and they descend."""
    updates, rate = hundred_updates(name), RATES[name]
    with promotion(name):
        moved, still = updates(rate, 0.01, 1.0), updates(rate, 0.0, 0.0)

    def distance(x):
        return relative_error(x, jax.tree.map(lambda x: jnp.full_like(x, -0.5), x))

    for dtype, (before, after) in moved.items():
        assert_kept(name, dtype, before, after)
        assert distance(after.params) < 0.95 * distance(before.params)
    for before, after in still.values():
        assert bits(after.params) == bits(before.params)


@slow_but("gd", "rprop", "amsgrad", "average", "reduce_on_plateau")
def test_a_sweep_of_64_rates_is_64_runs(name):
    rates = np.geomspace(1e-4, 0.1, 64)

    def one(rate):
        return run(ALL[name](rate, 0.01), PARAMS, 1.0, 25)[1].params

    with promotion(name):
        swept, alone = jax.jit(jax.vmap(one))(rates), jax.jit(one)
        single = jax.tree.map(lambda *xs: np.stack(xs), *(jax.device_get(alone(rate)) for rate in rates))
    for ours, expected in zip(jax.tree.leaves(swept), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
    assert len(np.unique(single["layer1"]["weights"]["input"][:, 0, 0])) == 64


@pytest.mark.parametrize(("name", "constant"), [("momentum", "decay"), ("adam", "b1"), ("adam", "b2"), ("nadam", "b1")])
def test_decays_can_be_swept_by_vmap(name, constant):
    """A decay of 0 among them, of which 1 - decay^k must not become 0 / 0; plain numbers beside arrays."""
    make = getattr(optimizers, name)

    def one(decay):
        return run(make(**{constant: decay}), jnp.asarray(START), 1.0, 20)[1].params

    swept = jax.jit(jax.vmap(one))(jnp.array([0.0, 0.5]))
    plain = jax.jit(lambda: [one(0.0), one(0.5)])()
    for i in (0, 1):
        np.testing.assert_allclose(swept[i], plain[i], rtol=1e-12)


@pytest.mark.sampled(every=2)
@over_all
def test_donated_states_are_updated_in_place(name):
    """What comes out lies where the state lay, and nothing of the parameters' size is set aside beside it.

    Two wrappers make a gradient of their own, which has to stand somewhere; eigenvectors have to, too.
    """
    side = 16 if name == "full_matrix_adagrad" else 512
    params = {"layer1": jax.ShapeDtypeStruct((side, side), jnp.float32)}
    optimizer = {
        "keep_pruned": lambda *_: optimizers.keep_pruned(
            optimizers.adam(), {"layer1": np.arange(512 * 512).reshape(512, 512) % 3 > 0}
        ),
        "freeze": lambda *_: optimizers.freeze(optimizers.adam(), []),
    }.get(name, ALL[name])(0.02, 0.01)
    with promotion(name):
        state = jax.eval_shape(optimizer.init, params)
        usage = jax.jit(optimizer.update, donate_argnums=0).lower(state, params).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert usage.alias_size_in_bytes >= size, f"{usage.alias_size_in_bytes} of {size} bytes are in place"
    own = 512 * 512 * 4 if name in ("clip_by_global_norm", "accumulate") else 0
    own += 4 * size if name == "full_matrix_adagrad" else 0
    assert usage.temp_size_in_bytes < own + 4096, f"{usage.temp_size_in_bytes} bytes beside a state of {size}"


@over_all
def test_a_fresh_state_can_be_donated(name):
    """No array stands in it twice."""
    with promotion(name):
        state = ALL[name](0.02, 0.01).init(PARAMS)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_sixteen_bit_gradients_serve_wider_parameters_and_the_other_way_round():
    for dtype, of_gradients in ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)):
        optimizer = optimizers.gd(0.5)
        state = optimizer.update(optimizer.init(jnp.ones(3, dtype)), jnp.ones(3, of_gradients))
        chex.assert_trees_all_equal(state.params, jnp.full(3, 0.5, dtype))


def test_numpy_numbers_are_numbers():
    """What np.linspace gives: a rate that is a NumPy scalar leaves dtypes as a Python float does."""
    params = jnp.ones(3, jnp.float32)
    for name in ("gd", "adam", "adadelta"):
        make = getattr(optimizers, name)
        optimizer, expected = make(np.float64(0.25)), make(0.25)
        state = optimizer.update(optimizer.init(params), params)
        chex.assert_trees_all_equal(state, expected.update(expected.init(params), params))


def test_only_rprop_asks_for_whole_batches():
    assert [name for name in METHODS if METHODS[name](0.1, 0.0).full_batch] == ["rprop", "rprop without backtracking"]
    assert not optimizers.rprop(minibatches=True).full_batch
    assert optimizers.accumulate(optimizers.rprop(), 2).full_batch
    assert optimizers.clip_by_value(optimizers.rprop(), 1.0).full_batch


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_are_the_public_functions():
    assert len(optimizers.names()) == 13
    for name in optimizers.names():
        assert optimizers.get(name) is getattr(optimizers, name)()  # what was compiled for it serves again
    assert optimizers.get("gd(0.5)") is optimizers.gd(0.5)
    assert optimizers.get("nesterov(0.5, form=look_ahead)") is optimizers.nesterov(0.5, form="look_ahead")


@pytest.mark.parametrize(
    ("specification", "made"),
    [
        ("amsgrad(bias_correction=False)", partial(optimizers.amsgrad, bias_correction=False)),
        ("rmsprop(centered=True)", partial(optimizers.rmsprop, centered=True)),
        ("rprop(minibatches=False)", partial(optimizers.rprop, minibatches=False)),
    ],
)
def test_truth_values_in_names_are_truth_values(specification, made):
    assert optimizers.get(specification) is made()
    assert optimizers.get(specification).full_batch is made().full_batch


def test_a_name_that_is_taken_is_refused():
    def gd():
        raise AssertionError

    with pytest.raises(ValueError, match="optimizer 'gd' is already registered"):
        first_order.register(gd)


# Refusals -------------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
NON_NEGATIVE = ("a finite number >= 0", (-0.1, NAN, INF, None, 1j))
POSITIVE = ("a finite number > 0", (0.0, -1e-8, NAN, INF, None))
DECAY = ("in [0, 1)", (1.0, -0.1, 1.5, NAN, None))
# every constant of every method; one that is not here has no test
ACCEPTED = (
    dict.fromkeys(("learning_rate", "weight_decay", "initial", "smallest"), NON_NEGATIVE)
    | dict.fromkeys(("decay", "b1", "b2"), DECAY)
    | {
        "epsilon": POSITIVE,
        "largest": POSITIVE,
        "initial_step": POSITIVE,
        "budget": ("an integer >= 1", (0, 1.5, True, None)),
        "decrease": ("in (0, 1)", (0.0, 1.0, NAN)),
        "increase": ("a finite number > 1", (1.0, 0.5, INF, NAN)),
        "form": ("'gradient' or 'look_ahead'", ("lookahead", None)),
        "order": ("'corrected' or 'efficient'", ("fast",)),
    }
)
FLAGS = {"backtracking", "minibatches", "centered", "bias_correction"}


def refusal(build, error=ValueError):
    with pytest.raises(error) as refused:
        build()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", optimizers.names())
def test_constants_out_of_range_are_refused(name):
    for constant in inspect.signature(getattr(optimizers, name)).parameters.keys() - FLAGS:
        accepted, wrong = ACCEPTED[constant]
        for value in wrong:
            message = refusal(lambda c=constant, v=value: getattr(optimizers, name)(**{c: v}))
            assert message == f"{name}: {constant} must be {accepted}, got {value!r}"


@pytest.mark.parametrize("value", [np.array([0.1, 0.2]), [0.1, 0.2]], ids=["array", "list"])
def test_several_rates_for_one_are_refused_in_one_line(value):
    assert "gd: learning_rate must be a finite number >= 0, got" in refusal(lambda: optimizers.gd(value))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: optimizers.rprop(initial_step="cosine(0.1, 10)"), "rprop: initial_step"),
        (lambda: optimizers.adagrad(initial="cosine(0.1, 10)"), "adagrad: initial"),
    ],
)
def test_where_a_state_starts_is_no_schedule(build, name):
    assert f"{name} must be a finite number >" in refusal(build)


def test_the_bounds_of_rprop_are_in_order():
    between = "rprop: initial_step must be between smallest = {} and largest = {}, got {}"
    assert refusal(lambda: optimizers.rprop(100.0)) == between.format(1e-06, 50.0, 100.0)
    assert refusal(lambda: optimizers.rprop(1e-8)) == between.format(1e-06, 50.0, 1e-08)
    assert refusal(lambda: optimizers.rprop(0.1, smallest=0.5, largest=0.2)) == between.format(0.5, 0.2, 0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optimizers.gd("fast"), "unknown schedule 'fast'"),
        (lambda: optimizers.gd("0.1"), "gd: learning_rate must be a finite number >= 0, got '0.1'"),
        (lambda: optimizers.gd("cosin(0.1, 10)"), "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (lambda: optimizers.adam("cosine(-0.1, 10)"), "cosine: initial must be a finite number >= 0, got -0.1"),
        (lambda: optimizers.get("adm"), "unknown optimizer 'adm'; did you mean 'adam'?"),
        (lambda: optimizers.get("gd(1, 2)"), "too many positional arguments"),
        (lambda: optimizers.get("gd(-1)"), "gd: learning_rate must be a finite number >= 0, got -1"),
        (lambda: optimizers.get("adam(cosin(0.1, 10))"), "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (lambda: optimizers.gd().init({}), "gd: params: expected at least one array"),
    ],
)
def test_bad_names_and_empty_parameters_are_refused(build, message):
    assert message in refusal(build)


def without(tree, *path):
    """A copy of the tree less one branch."""
    if len(path) == 1:
        return {key: value for key, value in tree.items() if key != path[0]}
    return tree | {path[0]: without(tree[path[0]], *path[1:])}


TREE = {
    "layer1": {"weights": {"input": jnp.ones((2, 2))}, "bias": jnp.ones(2)},
    "layer2": {"weights": {"layer1": jnp.ones((1, 2))}},
}
GRADS = jax.tree.map(jnp.zeros_like, TREE)
MISMATCHED = {
    "a leaf is missing": (without(GRADS, "layer1", "bias"), "grads: layer1/bias is missing"),
    "None for a leaf": (GRADS | {"layer1": GRADS["layer1"] | {"bias": None}}, "grads: layer1/bias is missing"),
    "a layer is missing": (without(GRADS, "layer2"), "grads: layer2/weights/layer1 is missing"),
    "a leaf too many": (
        GRADS | {"layer2": GRADS["layer2"] | {"bias": jnp.zeros(1)}},
        "grads: layer2/bias is not one of the parameters'",
    ),
    "two differences, the first named": (
        {"layer1": without(GRADS["layer1"], "weights")},
        "grads: layer1/weights/input is missing",
    ),
    "another shape": (
        GRADS | {"layer1": GRADS["layer1"] | {"bias": jnp.zeros((2, 1))}},
        "grads: layer1/bias expected shape (2,), got (2, 1)",
    ),
    "a scalar": (
        GRADS | {"layer1": GRADS["layer1"] | {"bias": jnp.zeros(())}},
        "grads: layer1/bias expected shape (2,), got ()",
    ),
}


@pytest.mark.parametrize("case", MISMATCHED)
@pytest.mark.parametrize(
    "optimizer", [optimizers.adam(), optimizers.clip_by_global_norm(optimizers.gd(), 1.0)], ids=["adam", "wrapped"]
)
def test_gradients_that_do_not_match_are_refused_at_the_first_path(case, optimizer):
    grads, message = MISMATCHED[case]
    state = optimizer.init(TREE)
    assert refusal(lambda: optimizer.update(state, grads)) == message
    assert refusal(lambda: jax.eval_shape(optimizer.update, state, grads)) == message  # shapes are known under jit


def test_lists_and_dictionaries_are_not_the_same():
    optimizer, leaf = optimizers.gd(), jnp.ones(2)
    state = optimizer.init([leaf, leaf])
    for grads in ({"0": leaf, "1": leaf}, (leaf, leaf)):
        assert "grads: expected the structure PyTreeDef([*, *]), got PyTreeDef(" in refusal(
            lambda grads=grads: optimizer.update(state, grads)
        )
    assert refusal(lambda: optimizer.update(state, [leaf])) == "grads: 1 is missing"
    single = optimizer.init(leaf)
    assert refusal(lambda: optimizer.update(single, jnp.ones(3))) == "grads: the array expected shape (2,), got (3,)"


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (jnp.array([1, 2]), "int64"),
        (jnp.array([1j, 2]), "complex128"),
        (jnp.array([True, False]), "bool"),
        (3.0, "float"),
    ],
)
def test_gradients_are_real_numbers(leaf, kind):
    grads = GRADS | {"layer1": GRADS["layer1"] | {"bias": leaf}}
    for optimizer in (optimizers.momentum(), optimizers.accumulate(optimizers.adam(), 2)):
        state = optimizer.init(TREE)
        message = refusal(lambda o=optimizer, s=state: o.update(s, grads), TypeError)
        assert message == f"grads: layer1/bias expected an array of real numbers, got {kind}"


def test_parameters_without_a_gradient_change_nothing_for_the_full_matrix():
    """As those are that fill a network up: the same steps, to rounding, whatever stands beside."""
    g = NOISE[:12]
    wide = jnp.concatenate([g, jnp.zeros((12, 50))], axis=1)
    optimizer = optimizers.full_matrix_adagrad(0.1)
    alone, beside = (after(optimizer, jnp.zeros(each.shape[1]), each) for each in (g, wide))
    np.testing.assert_allclose(beside[:, :SIZE], alone, rtol=1e-6, atol=1e-9)
    assert (beside[:, SIZE:] == 0).all()
