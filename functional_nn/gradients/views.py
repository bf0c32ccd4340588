"""What derived quantities are computed from: a block of examples, its trace, and sweeps back from the output, factored.

Letters: Q examples, C directions swept back at once, S neurons of a layer, R of the source it reads.

The recursion is linear in what it starts from, and its last contraction is the only place where examples meet. Left
out, it leaves each example's derivative as two factors, s (Q, C, S) and a (Q, R), in place of (Q, C, S, R) numbers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.gradients import backprop, factors
from functional_nn.gradients.backprop import Sweep
from functional_nn.networks import activations, losses
from functional_nn.networks.network import Params, Trace, forward, theta
from functional_nn.precision import at_least_float32

BLOCK = 2048  # examples swept at once
BUDGET = 2 * 2**30  # bytes that one result may take
COLUMNS = 16  # of the root of the loss's curvature, swept at once
ROOTS = 8  # examples whose roots are formed at once, of a curvature that cannot do without
Of = Literal["outputs", "net_inputs"]


class Examples(NamedTuple):
    """inputs {name: (Q, R)}, targets (Q, S); part (Q,): w_q / sum w; number (Q,): int32, for random draws."""

    inputs: dict[str, Array]
    targets: Array | None
    part: Array
    number: Array


class View:
    """A block of examples: their trace, and every sweep back from the output, made once when first asked for.

    part (Q,): w_q / sum w; share (Q,): what each F_q counts for in F, part times `total`, which is 1 for a mean and
    sum w for a sum. key: drops neurons.
    """

    def __init__(self, network, loss, params, examples: Examples, total=1.0, key=None, input_gradients=False):
        self.network, self.loss, self.params, self.examples = network, loss, params, examples
        self.part, self.share, self.input_gradients = examples.part, examples.part * total, input_gradients
        self.trace = forward(network, params, examples.inputs, {}, key)
        self._factors = {}

    @functools.cached_property
    def swept(self) -> Sweep:
        """The recursion from each example's own loss: s_q = dF_q/dn."""
        return self.swept_from(self.trace, None)

    def swept_from(self, trace: Trace, scale: Array | None) -> Sweep:
        """The recursion from scale_q F_q, scale (Q,): it is linear in what it starts from."""
        alone = dataclasses.replace(self.loss, reduction="sum")
        started = backprop.start(self.network, alone, self.params, trace, self.examples.targets, scale)
        return backprop.sweep(self.network, self.params, trace, started, self.input_gradients)

    @functools.cached_property
    def gradients(self) -> Params:
        """g_q, factored: `Factors` in the parameters' structure."""
        return self._factored(self.swept)

    def jacobian(self, of: Of) -> Params:
        """d(outputs)/dparams or d(net inputs of the last layer)/dparams, factored: C = S of them an example."""
        if ("jacobian", of) not in self._factors:
            layer = self.network.output
            width = layer.size if of == "outputs" else layer.rows
            unit = jnp.eye(width, dtype=self.dtype)[None, :, :]
            columns = jnp.broadcast_to(unit, (len(self.part), width, width))
            self._factors["jacobian", of] = self._swept_along(columns, of)
        return self._factors["jacobian", of]

    def over_curvature(self, measure: Callable[[Params], Any]) -> Any:
        """The sum of measure(columns of J^T V, factored) over the columns, V V^T the loss's second derivative, of which
        `measure` is a sum: some columns at a time, (Q, 16, S) numbers in place of (Q, S, S).
        """
        count, width = self._curved[3], self._curved[1].shape
        blocks = -(-count // COLUMNS)

        def some(numbers):  # those that fill up the last block are columns of 0
            units = (numbers[:, None] == jnp.arange(count)[None, :]).astype(self.dtype)
            return measure(self._combined(jnp.broadcast_to(units[None], (width[0], *units.shape))))

        if blocks == 1:
            return some(jnp.arange(count))
        numbers = jnp.arange(blocks * COLUMNS).reshape(blocks, COLUMNS)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(some, numbers[0]))
        return lax.scan(lambda sums, own: (jax.tree.map(jnp.add, sums, some(own)), None), zeros, numbers)[0]

    def sampled_curvature(self, key: Array, samples: int) -> Params:
        """`samples` random combinations of those columns, whose outer products have the same expectation."""
        count, dtype = self._curved[3], self.dtype
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(self.examples.number)
        signs = jax.vmap(lambda k: jax.random.rademacher(k, (samples, count), dtype))(keys)
        return self._combined(signs / np.sqrt(samples).astype(dtype))

    def contract(self, scale: Array) -> Params:
        """sum_q scale_q g_q, for scale (Q,)."""
        scaled = jax.tree.map(lambda s: s * scale.astype(s.dtype)[:, None], self.swept[:2])
        return backprop.contract(self.network, self.params, self.trace, Sweep(*scaled, {}))

    def contract_anew(self, scale: Array) -> Params:
        """The same for a scale that comes out of `swept`: swept again, in the memory that a plain gradient takes.

        Otherwise the sensitivities of all layers would be kept until the last is known, as large as the trace. The
        barrier keeps the compiler from seeing that it knows most of them already.
        """
        scale, trace = lax.optimization_barrier((scale, self.trace))
        return backprop.contract(self.network, self.params, trace, self.swept_from(trace, scale))

    @property
    def dtype(self) -> np.dtype:
        """The parameters'."""
        return self.trace.activations[self.network.output.name].dtype

    @functools.cached_property
    def _curved(self) -> tuple[Of, Array, losses.Curvature, int]:
        """What the loss is convex in, that (Q, S), its curvature there, and C, the columns of its root."""
        of, curvature = self.loss.convex_in(self.network.output.activation)
        x = (self.trace.activations if of == "outputs" else self.trace.net_inputs)[self.network.output.name]
        return of, x, curvature, jax.eval_shape(curvature.root, x, self.examples.targets).shape[1]

    def _combined(self, z: Array) -> Params:
        """What sum_c z_qkc V_qc is swept back to, z (Q, K, C), V never whole."""
        of, x, curvature, _ = self._curved
        if curvature.combine is not None:
            return self._swept_along(curvature.combine(z, x, self.examples.targets), of)

        def one(row):
            z, x, t = row
            return z @ curvature.root(x[None], t[None])[0]

        rows = (z, x, self.examples.targets)
        return self._swept_along(lax.map(one, rows, batch_size=min(ROOTS, len(x))), of)

    def _swept_along(self, columns: Array, of: Of) -> Params:
        # columns (Q, C, S) of what the sweep starts from, at the last layer's outputs or net inputs
        layer = self.network.output

        def sweep(column):
            if of == "outputs":
                started = backprop.pullback(layer, self.params, self.trace, column)
            else:
                learned = theta(layer, self.params[layer.name])
                started = column, {name: jnp.zeros((len(column), layer.size), column.dtype) for name in learned}
            return backprop.sweep(self.network, self.params, self.trace, started)

        return self._factored(jax.vmap(sweep, 1, 1)(columns))

    def _factored(self, swept: Sweep) -> Params:
        return factors.of_sweep(self.network, self.params, self.trace, swept)


# Many examples, and large results ------------------------------------------------------------------------------------


def prepare(network, loss, params, inputs, targets, weights) -> tuple[Examples, Array | float]:
    """The examples, checked as `backpropagate` checks them, and what the parts of F sum to."""
    inputs = network.prepare(params, inputs)
    if loss is not None:
        loss = losses.get(loss)
        loss.check_outputs(network.output.activation)
    if targets is not None:
        targets = network.prepare_targets(inputs, targets, loss)
    for layer in network.layers:
        activations.check_examples_apart(layer.activation)
    x = next(iter(inputs.values()))
    count, dtype = len(x), at_least_float32(x.dtype)
    if weights is None:
        weight, part = float(count), jnp.full(count, 1 / count, dtype)
    else:
        weights = network.prepare_weights(inputs, weights).astype(dtype)
        weight = jnp.sum(weights)
        if checks.is_concrete(weight) and weight == 0:
            raise ValueError("weights: expected at least one above 0, got none")
        part = weights / weight
    total = weight if loss is not None and loss.reduction == "sum" else 1.0
    return Examples(inputs, targets, part, jnp.arange(count, dtype=jnp.int32)), total


def block_order(count: int, block: int | None) -> np.ndarray:
    """Numbers of the examples of each block, (blocks, size): blocks of one size, at most `block`; what is missing from
    the last is filled up with the last example.
    """
    blocks = 1 if block is None else -(-count // block)
    size = -(-count // blocks)
    return np.minimum(np.arange(blocks * size), count - 1).reshape(blocks, size)


def in_blocks(measure: Callable[[Examples], tuple[Any, Any]], examples: Examples, block: int | None) -> tuple[Any, Any]:
    """measure(block of examples) -> (rows, sums) over all examples: rows put side by side, sums added up.

    What fills up the last block has no part in any sum.
    """
    count = len(examples.part)
    order = block_order(count, block)
    if len(order) == 1:
        return measure(examples)
    counted = jnp.asarray(np.arange(order.size) < count, examples.part.dtype).reshape(order.shape)

    def one(sums, row):
        picked, present = row
        chosen = jax.tree.map(lambda x: x[picked], examples)
        rows, more = measure(chosen._replace(part=chosen.part * present))
        return jax.tree.map(jnp.add, sums, more), rows

    first = jax.tree.map(lambda x: x[order[0]], examples)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure, first)[1])
    sums, rows = lax.scan(one, zeros, (jnp.asarray(order), counted))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], rows), sums


def check_budget(name: str, needed: int, budget: int, instead: str) -> None:
    """Raises ValueError where a result of `needed` bytes is larger than `budget`, and says what to use instead."""
    checks.integer(name, "budget", budget, 1)
    if needed > budget:
        raise ValueError(
            f"{name} would take {said_bytes(needed)} of memory, above the budget of {said_bytes(budget)}; {instead}, "
            f"or allow it with budget={needed}"
        )


def said_bytes(count: int) -> str:
    """Bytes in the largest unit that leaves at least 1 of them."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
