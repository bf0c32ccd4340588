"""A user's program, as a type checker reads it: mypy (in .ci/run) must accept each line, and refuse the marked ones.

It is not run. It names the contract of the public face. Where `assert_type` finds Any, the library has lost a type.
"""

from typing import Any, assert_type

import jax
import numpy as np
from jax import Array

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.networks.network import Params

key = jax.random.key(0)
x, t = np.ones((8, 3)), np.ones((8, 2))

# Networks ------------------------------------------------------------------------------------------------------------

network = fnn.multilayer((3, 4, 2), activations=("tanh", "softmax"), dropout=0.1)
assert_type(network, fnn.Network)
branched = fnn.graph(
    inputs={"p1": 2, "p2": (28, 28, 1)},
    layers=[
        fnn.Layer("hidden", 4, activation="tanh", sources=("p1",)),
        fnn.Layer("seen", 4, fnn.activations.max_pool((2, 2)), sources=[("p2", fnn.connections.conv((3, 3)))]),
        fnn.Layer("output", 2, "linear", sources=["hidden", ("seen", "full")], bias="none"),
    ],
)
assert_type(branched, fnn.Network)
params = network.init(key)
assert_type(params, Params)
assert_type(network.apply(params, x), Array)
trace = network.forward(params, {"input": x})
assert_type(trace, fnn.Trace)
assert_type(trace.net_inputs["layer1"], Array)
assert_type(fnn.activations.leaky_relu(0.1), fnn.Activation)
assert_type(fnn.activations.get("tanh"), fnn.Activation)
assert_type(fnn.initializers.he_normal(), fnn.initializers.Initializer)
assert_type(fnn.one_hot(np.arange(3), 3), Array)
fnn.multilayer((3, 4, 2), activation="tanh")  # type: ignore[call-arg]

# Gradients -----------------------------------------------------------------------------------------------------------

loss = fnn.losses.cross_entropy(reduction="mean")
assert_type(loss, fnn.Loss)
value, gradient = fnn.value_and_grad(network, loss)(params, x, t)
assert_type(value, Array)
assert_type(gradient, Params)
assert_type(fnn.sensitivities(network, loss, params, x, t), dict[str, Array])
assert_type(fnn.compare(network, loss, params, x, t), fnn.Agreement)
assert_type(fnn.compare(network, loss, params, x, t).verdict in ("agree", "differ"), bool)
assert_type(fnn.quantities.per_example_norms(network, loss, params, x, t), Array)
assert_type(fnn.quantities.compute(network, loss, params, x, t, ("variance",)), dict[str, Any])
fnn.compare(network, loss, params, x)  # type: ignore[call-arg]
fnn.quantities.per_example_norms(network, loss)  # type: ignore[call-arg]

# Optimizers ----------------------------------------------------------------------------------------------------------

adam = optimizers.adam(learning_rate=1e-3)
assert_type(adam, optimizers.Optimizer)
state = adam.init(params)
state = adam.update(state, gradient)
assert_type(optimizers.lbfgs(history=5), optimizers.SecondOrder)
assert_type(optimizers.schedules.cosine(1e-2, steps=200), optimizers.schedules.Schedule)
problem = optimizers.problem_from(lambda p: (p**2).sum())
assert_type(problem, optimizers.Problem)
assert_type(optimizers.minimize(problem, "bfgs", np.ones(3)), optimizers.second_order.Solution)
optimizers.adam(rate=1e-3)  # type: ignore[call-arg]
optimizers.adam(None)  # type: ignore[arg-type]

# Training ------------------------------------------------------------------------------------------------------------

result = fnn.fit(network, loss, adam, x, t, key=key, epochs=3, plan=training.minibatch(4), validation=(x, t))
assert_type(result, training.FitResult)
assert_type(result.history, training.History)
assert_type(result.history.training_loss, np.ndarray)
assert_type(result.params, Params)
assert_type(training.evaluate(network, loss, params, x, t), tuple[Array, Array])
population = training.fit_population(
    network, "cross_entropy", "adam", training.grid(learning_rate=[0.1, 0.2]), (x, t), key=key, epochs=2
)
assert_type(population, training.Population)
fnn.fit(network, loss, adam, x, t, key=key)  # type: ignore[call-arg]
fnn.fit(network, loss, adam, x, t, key=key, epochs="three")  # type: ignore[arg-type]
