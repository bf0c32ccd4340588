"""What quantities are computed from: a block of examples, its trace, and sweeps back from the output, factored.

Letters: Q examples, C directions swept back at once, S neurons of a layer, R of the source it reads.

The recursion is linear in what it starts from, and its last contraction is the only place where examples meet. Without
that contraction each example's derivative remains as two factors, s (Q, C, S) and a (Q, R), instead of (Q, C, S, R)
numbers.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from functional_nn import checks, platforms
from functional_nn.gradients import backprop, factors, rules
from functional_nn.gradients.backprop import Sweep
from functional_nn.networks import activations, connections, losses
from functional_nn.networks.connections import Factors
from functional_nn.networks.network import Inputs, Network, Params, Trace, dtype_of, forward
from functional_nn.networks.stored import is_stored, taken, whole
from functional_nn.precision import at_least_float32

BLOCK = 2048  # examples swept at once
BUDGET = 2 * 2**30  # bytes that one result may take
COLUMNS = 16  # of the root of the loss's curvature, swept at once
ROOTS = 8  # examples whose roots are formed at once, for a curvature that needs them
LastLayer = Literal["outputs", "net_inputs"]


class Examples(NamedTuple):
    """Prepared examples.

    Attributes:
        inputs: `{name: (Q, *P, R)}`.
        targets: `(Q, *P, S)`, or None.
        part: w_q / sum w, (Q,).
        number: int32 (Q,), for random draws.
        positions: Weight of each position of the outputs in its example, `(Q, *P)`, 1 on average; None if all are
            equal.
    """

    inputs: dict[str, Array]
    targets: Array | None
    part: Array
    number: Array
    positions: Array | None = None


class View:
    """A block of examples: their trace, and every sweep back from the output, computed once when first used.

    A quantity's `measure` function receives a view (see `register`).

    Args:
        network: The network.
        loss: The loss, or None.
        params: Parameters.
        examples: The block's examples, prepared.
        total: What the parts of F sum to: 1 for a mean, the sum of the weights for a sum.
        key: Random key for dropout, and for a random rule if `rule_key` is None.
        input_gradients: Whether sweeps from the loss go on to the inputs.
        rule: Learning rule for the way back from the loss; every other sweep is exact.
        rule_key: Random key for a random rule.

    Attributes:
        part: w_q / sum w, (Q,).
        share: What each F_q counts for in F, (Q,): part times `total`.
        trace: The forward pass.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> from functional_nn.gradients import views
        >>> network, loss = fnn.multilayer((3, 4, 2), ("tanh", "softmax")), fnn.losses.cross_entropy()
        >>> params = network.init(jax.random.key(0))
        >>> examples, total = views.prepare(network, loss, params, jnp.ones((5, 3)), jnp.arange(5) % 2, None)
        >>> view = fnn.quantities.View(network, loss, params, examples, total)
        >>> view.swept.sensitivities["layer1"].shape, view.part.shape
        ((5, 4), (5,))
    """

    def __init__(
        self,
        network: Network,
        loss: losses.Loss | None,
        params: Params,
        examples: Examples,
        total: Array | float = 1.0,
        key: Array | None = None,
        input_gradients: bool = False,
        rule: rules.Rule | rules.ByLayer = rules.exact,
        rule_key: Array | None = None,
    ) -> None:
        self.network, self.loss, self.params, self.examples = network, loss, params, examples
        self.part, self.share, self.input_gradients = examples.part, examples.part * total, input_gradients
        self.trace = forward(network, params, examples.inputs, {}, key)
        self.rule, self.rule_key = rule, key if rule_key is None else rule_key
        self._factors = {}

    @functools.cached_property
    def swept(self) -> Sweep:
        """The recursion from each example's own loss: s_q = dF_q/dn.

        Raises ValueError for a layer without derivative, in a network that is trained by a rule that needs none.
        """
        backprop.check_trainable(self.network)
        return self.swept_from(self.trace, None)

    def swept_from(self, trace: Trace, scale: Array | None) -> Sweep:
        """Returns the recursion from scale_q F_q, scale (Q,): it is linear in what it starts from."""
        alone = dataclasses.replace(self.loss, reduction="sum")
        weights = self.examples.positions
        if scale is not None:
            weights = scale if weights is None else factors.over_rows(weights, scale)
        started = backprop.start(self.network, alone, self.params, trace, self.examples.targets, weights)

        def share():
            return jnp.ones_like(self.part) if scale is None else scale

        way = backprop.way_back(self.rule, self.network, self.params, trace, self.rule_key, share)
        return backprop.sweep(self.network, self.params, trace, started, self.input_gradients, way)

    @functools.cached_property
    def gradients(self) -> Params:
        """g_q, factored: `Factors` in the parameters' structure."""
        return factors.of_examples(self.network, self.params, self.trace, *self.swept[:2])

    def jacobian(self, of: LastLayer) -> Params:
        """Returns d(outputs)/dparams, or of the last layer's net inputs, factored: a direction for each number."""
        if ("jacobian", of) not in self._factors:
            shape = swept_from(self.network, of)
            width = math.prod(shape)
            unit = jnp.eye(width, dtype=self.dtype)[None, :, :]
            columns = jnp.broadcast_to(unit, (len(self.part), width, width)).reshape(-1, width, *shape)
            self._factors["jacobian", of] = self._swept_along(columns, of)
        return self._factors["jacobian", of]

    def over_curvature(self, measure: Callable[[Params], Any]) -> Any:
        """Returns the sum of measure(columns of J^T V, factored) over the columns of V.

        V V^T is the second derivative of what each example's loss counts for in F. `measure` must be a sum over
        columns: they go some at a time, (Q, 16, S) numbers instead of (Q, S, S).
        """
        of, x, curvature, count = self._curved
        examples = len(self.part)
        if curvature.least_root is not None and x.ndim == 2 and x.shape[1] <= COLUMNS + 1:
            columns = curvature.least_root(x, self.examples.targets)
            return measure(self._swept_along(factors.over_rows(columns, self._root_share), of))
        blocks = -(-count // COLUMNS)

        def some(numbers):  # padding of the last block is columns of 0
            units = (numbers[:, None] == jnp.arange(count)[None, :]).astype(self.dtype)
            return measure(self._combined(jnp.broadcast_to(units[None], (examples, *units.shape))))

        if blocks == 1:
            return some(jnp.arange(count))
        numbers = jnp.arange(blocks * COLUMNS).reshape(blocks, COLUMNS)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(some, numbers[0]))
        return lax.scan(lambda sums, own: (jax.tree.map(jnp.add, sums, some(own)), None), zeros, numbers)[0]

    def sampled_curvature(self, key: Array, samples: int) -> Params:
        """Returns `samples` random combinations of those columns, whose outer products have the same expectation."""
        count, dtype = self._curved[3], self.dtype
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(self.examples.number)
        signs = jax.vmap(lambda k: jax.random.rademacher(k, (samples, count), dtype))(keys)
        return self._combined(signs / np.sqrt(samples).astype(dtype))

    @functools.cached_property
    def exact(self) -> "View":
        """The same examples and trace without the rule."""
        return self._with_rule(rules.exact, None)

    def _with_rule(self, rule: rules.Rule | rules.ByLayer, key: Array | None) -> "View":
        view = copy.copy(self)
        view.rule, view.rule_key, view._factors = rule, key, {}
        for name in ("swept", "gradients"):
            view.__dict__.pop(name, None)
        return view

    def by_rule(self, key: Array | None = None) -> tuple[Params, dict[str, Array]]:
        """Returns the block's part of the gradient by the rule, and its sensitivities dF/dn.

        For a rule that makes the whole gradient by itself the sensitivities are {} if it has none. key: another draw of
        the rule.
        """
        if rules.method_of(self.rule) is None:
            view = self if key is None else self._with_rule(self.rule, key)
            s = {name: factors.over_rows(own, self.share) for name, own in view.swept.sensitivities.items()}
            return view.contract(self.share), s
        alone = dataclasses.replace(self.loss, reduction="sum")
        share, positions = self.share.astype(self.dtype), self.examples.positions
        weights = share if positions is None else factors.over_rows(positions, share)
        found = backprop.backpropagate(
            self.network,
            alone,
            self.params,
            self.examples.inputs,
            self.examples.targets,
            weights,
            self.rule_key if key is None else key,
            rule=self.rule,
        )
        return found.gradients, found.sensitivities

    def contract(self, scale: Array) -> Params:
        """Returns sum_q scale_q g_q, for scale (Q,)."""
        s = {name: factors.over_rows(own, scale) for name, own in self.swept.sensitivities.items()}
        learned = factors.each(lambda f: factors.scaled(f, scale), self.swept.learned)
        return backprop.contract(self.network, self.params, self.trace, Sweep(s, learned, {}))

    def contract_formed(self, scale: Array) -> Params:
        """Returns the same, for a scale that depends on the norms of `gradients`, in networks that read signals.

        The derivatives of shared weights that these have formed are weighted, which saves another convolution.
        """
        found = self.contract(scale)
        for layer in self.network.layers:
            for source, f in self.gradients[layer.name]["weights"].items():
                if factors.is_shared(f) and not factors.gram_pays(f):
                    own = found[layer.name]["weights"]
                    own[source] = factors.weighed(f, scale).reshape(own[source].shape)
        return found

    def contract_again(self, scale: Array) -> Params:
        """Returns the same, for a scale that depends on `swept`: swept again, in the memory of a plain gradient."""
        if rules.of_layers(self.rule, self.network) is not None:
            return self.contract(scale)
        scale, trace = lax.optimization_barrier((scale, self.trace))
        return backprop.contract(self.network, self.params, trace, self.swept_from(trace, scale))

    @property
    def dtype(self) -> np.dtype:
        """The parameters' dtype."""
        return self.trace.activations[self.network.output.name].dtype

    @property
    def row_share(self) -> Array:
        """What each example (Q,), or each position of its outputs `(Q, *P)`, counts for in F."""
        positions = self._in_example
        return self.share if positions is None else factors.over_rows(positions, self.share)

    @property
    def _in_example(self) -> Array | None:
        """What each position counts for in F_q, `(Q, *P)`; None for outputs without positions."""
        shape = self.network.shapes[self.network.output.name][:-1]
        if not shape:
            return None
        own = self.examples.positions
        own = jnp.ones((len(self.part), *shape), self.part.dtype) if own is None else own.astype(self.part.dtype)
        return own * self.loss.of_position(math.prod(shape))

    @functools.cached_property
    def _curved(self) -> tuple[LastLayer, Array, losses.Curvature, int]:
        """What the loss is convex in, its values `(Q, *P, S)`, its curvature, and the number of columns of its root.

        The columns of each position follow one another.
        """
        of, curvature = self.loss.convex_in(self.network.output.activation)
        x = (self.trace.activations if of == "outputs" else self.trace.net_inputs)[self.network.output.name]
        of_each = jax.eval_shape(curvature.root, *map(connections.rows, (x, self.examples.targets))).shape[1]
        return of, x, curvature, of_each * math.prod(x.shape[1:-1])

    @property
    def _root_share(self) -> Array:
        # the factor of the columns, (Q,), before they are swept back, where they are the fewest numbers
        return jnp.sqrt(self.share)

    def _combined(self, z: Array) -> Params:
        """Sweeps back sqrt(share_q) sum_c z_qkc V_qc, z (Q, K, C), without ever forming V."""
        of, x, _, _ = self._curved
        if x.ndim == 2:
            columns = self._root_times(z, x, self.examples.targets)
            return self._swept_along(factors.over_rows(columns, self._root_share), of)
        # V has a block for each position, and each block goes by itself
        examples, positions = len(x), x.shape[1:-1]
        z = jnp.moveaxis(z.reshape(*z.shape[:2], math.prod(positions), -1), 1, 2)  # (Q, T, K, C)
        combined = self._root_times(
            z.reshape(-1, *z.shape[2:]), connections.rows(x), connections.rows(self.examples.targets)
        )
        combined = jnp.moveaxis(combined.reshape(*z.shape[:3], -1), 1, 2)  # (Q, K, T, S)
        root = factors.over_rows(jnp.sqrt(self._in_example), self._root_share)
        root = root.astype(combined.dtype).reshape(examples, 1, -1, 1)
        return self._swept_along((combined * root).reshape(examples, -1, *x.shape[1:]), of)

    def _root_times(self, z: Array, x: Array, targets: Array) -> Array:
        # sum_c z_qkc V_qc (Q, K, S), of rows x and t (Q, S)
        curvature = self._curved[2]
        if curvature.combine is not None:
            return curvature.combine(z, x, targets)

        def root_of(row):
            z, x, t = row
            return z @ curvature.root(x[None], t[None])[0]

        return lax.map(root_of, (z, x, targets), batch_size=min(ROOTS, len(x)))

    def _swept_along(self, columns: Array, of: LastLayer) -> Params:
        # columns (Q, C, *P, S) of what the sweep starts from, at the last layer's outputs or net inputs
        network, params, layer = self.network, self.params, self.network.output

        def sweep(column):
            if of == "outputs":
                started = backprop.pullback(layer, params, self.trace, column)
            elif layer.activation.parameters:  # on which its net inputs do not depend
                zeros = jnp.zeros_like(self.trace.activations[layer.name])
                started = column, backprop.pullback(layer, params, self.trace, zeros)[1]
            else:
                started = column, {}
            return backprop.sweep(network, params, self.trace, started)[:2]

        # the right factor of a share is the same in all directions
        learned = {
            own.name: dict.fromkeys(params[own.name].get("learned", {}), Factors(1, None)) for own in network.layers
        }
        s, learned = jax.vmap(sweep, 1, (1, learned))(columns)
        return factors.of_examples(network, params, self.trace, s, learned)


def swept_from(network: Network, of: LastLayer) -> connections.Shape:
    """Returns the shape of what a sweep along directions starts from, for one example."""
    return (network.shapes if of == "outputs" else network.net_shapes)[network.output.name]


# Many examples, and large results ------------------------------------------------------------------------------------


def prepare(
    network: Network,
    loss: losses.Loss | str | None,
    params: Params,
    inputs: Inputs,
    targets: ArrayLike | None,
    weights: ArrayLike | None,
    apart: bool = True,
) -> tuple[Examples, Array | float]:
    """Returns the examples, checked as `backpropagate` checks them, and what the parts of F sum to.

    apart: whether each must be independent. Raises ValueError where an activation mixes them then.
    """
    prepared = isinstance(inputs, Mapping) and is_stored((inputs, targets))  # prepared by training
    inputs = inputs if prepared else network.prepare(params, inputs)
    if loss is not None:
        loss = losses.get(loss)
        loss.check_outputs(network.output.activation)
    if targets is not None and not prepared:
        targets = network.prepare_targets(inputs, targets, loss, dtype_of(params))
    if apart:
        for layer in network.layers:
            activations.check_examples_apart(layer.activation, network.net_shapes[layer.name])
    count, dtype, positions = len(next(iter(inputs.values()))), at_least_float32(dtype_of(params)), None
    if weights is None:
        weight, part = float(count), jnp.full(count, 1 / count, dtype)
    else:
        weights = network.prepare_weights(inputs, weights).astype(dtype)
        if weights.ndim > 1:
            positions, weights = weights, jnp.mean(weights.reshape(count, -1), axis=1)
            positions = factors.over_rows(positions, 1 / jnp.where(weights > 0, weights, 1))
        weight = jnp.sum(weights)
        if checks.is_concrete(weight) and weight == 0:
            raise ValueError("weights: expected at least one above 0, got none")
        part = weights / weight
    total = weight if loss is not None and loss.reduction == "sum" else 1.0
    return Examples(inputs, targets, part, jnp.arange(count, dtype=jnp.int32), positions), total


def fitting(network: Network, params: Params, block: int | None) -> int | None:
    """Returns `block`, or as many examples as suit the platform (`platforms.Suited.swept`).

    What shared weights read at every position is counted.
    """
    if block is None or all(len(shape) == 1 for shape in network.net_shapes.values()):
        return block
    unfolded = 0
    for layer in network.layers:
        positions = math.prod(network.net_shapes[layer.name][:-1])
        unfolded += positions * sum(w.size // len(w) for w in params[layer.name]["weights"].values())
    each = (network.trace_size + unfolded) * dtype_of(params).itemsize
    suited = platforms.here()
    fit = max(suited.swept // each, min(8, suited.most_swept // each))
    return max(1, min(block, fit))


def block_order(count: int, block: int | None) -> np.ndarray:
    """Returns the numbers of the examples of each block, (blocks, size): blocks of one size, at most `block`.

    The last block is padded with the last example.
    """
    blocks = 1 if block is None else -(-count // block)
    size = -(-count // blocks)
    return np.minimum(np.arange(blocks * size), count - 1).reshape(blocks, size)


def in_blocks(measure: Callable[[Examples], tuple[Any, Any]], examples: Examples, block: int | None) -> tuple[Any, Any]:
    """Applies measure(block of examples) -> (rows, sums) to all examples: rows are put side by side, sums added up.

    Padding of the last block has no part in any sum.
    """
    count = len(examples.part)
    order = block_order(count, block)
    if len(order) == 1:
        return measure(whole(examples))
    counted = jnp.asarray(np.arange(order.size) < count, examples.part.dtype).reshape(order.shape)

    def step(sums, row):
        picked, present = row
        chosen = taken(examples, picked)
        rows, more = measure(chosen._replace(part=factors.over_rows(chosen.part, present)))
        return jax.tree.map(jnp.add, sums, more), rows

    first = taken(examples, order[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure, first)[1])
    sums, rows = lax.scan(step, zeros, (jnp.asarray(order), counted))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], rows), sums


def check_budget(name: str, needed: int, budget: int, instead: str) -> None:
    """Raises ValueError if a result of `needed` bytes is larger than `budget`, and says what to use instead."""
    checks.integer(name, "budget", budget, 1)
    if needed > budget:
        raise ValueError(
            f"{name} would take {said_bytes(needed)} of memory, above the budget of {said_bytes(budget)}; {instead}, "
            f"or allow it with budget={needed}"
        )


def said_bytes(count: int) -> str:
    """Returns bytes in the largest unit of which there is at least 1."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
