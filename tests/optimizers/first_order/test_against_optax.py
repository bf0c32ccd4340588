"""First-order methods have the trajectories of optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import relative_error
from first_order_cases import NOISE, START, assert_one_trajectory, gradient, trajectory

from functional_nn import optimizers


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
