r"""How far rounding may move the result of a program: every operation's result is moved, and the effect is measured.

Letters: u the unit roundoff of a dtype, x the result of an operation, :math:`t_k` the K terms of a sum, h a step,
:math:`\delta` a displacement of the result per unit roundoff.

To first order rounding adds to each x an error of the size

.. math:: u |x|

for any operation, and

.. math:: u |x| + u \sqrt{K} \sum_k |t_k|

for a sum or an inner product: its partial sums are rounded too, and they are as large as the terms, however these
cancel (Higham and Mary 2019, Thm 3.1, for independent roundings). There is no error where nothing is computed (a
transpose, a choice). So each x is moved by :math:`\pm h` times that size without u, at random, and

.. math:: \delta = \frac{\mathrm{result} - \mathrm{unmoved\ result}}{h}

Its root mean square over the draws, times u, is the effect of rounding on the result: a running error bound, with the
probable growth of errors instead of the worst. It accounts for cancellation: a gradient that is a sum of cancelling
terms moves as its terms do. Results that are not floats (a comparison, an index, random bits) are decided once,
unmoved, so that no move jumps over a kink.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.precision import at_least_float32

_DRAWS = 16  # as many as a uint16 has bits; with fewer, the root mean square of a number may be small by chance

# Operations that move, choose or copy their operands
_EXACT = {
    "abs",
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "copy_p",
    "device_put",
    "dynamic_slice",
    "dynamic_update_slice",
    "expand_dims",
    "gather",
    "iota",
    "max",
    "min",
    "neg",
    "optimization_barrier",
    "pad",
    "pbroadcast",
    "reduce_max",
    "reduce_min",
    "reduce_window_max",
    "reduce_window_min",
    "reshape",
    "rev",
    "scatter",
    "select_n",
    "sign",
    "slice",
    "sort",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}
# Programs that are called inside another; under custom derivatives the function itself
_CALLS = {
    "pjit",
    "jit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "remat",
    "remat2",
    "checkpoint",
}


def unit_roundoff(dtype: Any) -> float:
    """Returns u: half the distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps) / 2


def displacements(function: Callable, args: tuple, key: Array) -> Any:
    """Returns the root mean square of delta, elementwise, in the structure of `function(*args)`; inf if undefined.

    u is that of the first result's dtype; operations in another dtype count in proportion. Derivatives within the
    function are traced as they are. With concrete `args` everything goes operation by operation, also through loops and
    branches; under `jit`, for repeated use, a loop or a branch counts as one operation.
    """
    closed, result = jax.make_jaxpr(function, return_shape=True)(*args)
    unit = unit_roundoff(jax.tree.leaves(result)[0].dtype)
    step = 2.0 ** round(math.log2(unit) * 2 / 3)  # between the program's curvature and its own rounding
    inputs = jax.tree.leaves(args)
    traced = not all(map(checks.is_concrete, inputs))
    first = _Unmoved(unit, jnp if traced else np)
    unmoved = _run(closed.jaxpr, closed.consts, inputs, first)

    def delta(signs: Callable[[Any], Any]) -> list:
        moved = _run(closed.jaxpr, closed.consts, inputs, _Moved(iter(first.record), step, signs))
        return [(_wide(x, first.np) - _wide(y, first.np)) / step for x, y in zip(moved, unmoved, strict=True)]

    if traced:
        drawn = _drawn(key, first.record)
        found = lax.map(lambda i: delta(_Signs(drawn, i)), jnp.arange(_DRAWS))
    else:
        generator = np.random.default_rng(np.ravel(jax.random.key_data(key)))

        def draw(size):
            return generator.integers(0, 2, size.shape, np.int8) * 2 - 1

        with np.errstate(all="ignore"):
            found = [np.stack(column) for column in zip(*(delta(draw) for _ in range(_DRAWS)), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(result), [_root_mean_square(x, first.np) for x in found])


def _root_mean_square(x, numpy):
    """Returns it over the first axis; inf where there is nan."""
    largest = numpy.max(numpy.abs(x), axis=0, keepdims=True)  # taken out before squares could underflow
    sound = (largest > 0) & numpy.isfinite(largest)
    scaled = numpy.where(sound, x, 0) / numpy.where(sound, largest, 1)
    mean = numpy.mean(scaled**2, axis=0, keepdims=True)
    return numpy.where(sound, largest * numpy.sqrt(mean), numpy.where(largest == 0, 0.0, numpy.inf))[0]


class _Unmoved:
    """The first run. For every operation it records what is decided, and how large the error of a float may be."""

    def __init__(self, unit: float, numpy):
        self.record: list[list] = []
        self.unit, self.np = unit, numpy

    def __call__(self, equation, operands: list) -> list:
        outputs = _bind(equation, operands)
        exact = equation.primitive.name in _EXACT
        self.record.append(
            [_Decided(x) if not _is_float(x) else None if exact else self.size(equation, operands, x) for x in outputs]
        )
        return outputs

    def size(self, equation, operands: list, result: Array):
        """Returns the size of the result's error over u; 0 where the result is not finite."""
        own = unit_roundoff(result.dtype) / self.unit
        # Below `least` results are rounded absolutely: to subnormals, or, where those are flushed, to 0.
        tiny = float(jnp.finfo(result.dtype).tiny)
        least = tiny if result.dtype == jnp.float16 else tiny / unit_roundoff(result.dtype)
        x = _wide(result, self.np)
        size = own * math.sqrt(_operations(equation)) * self.np.maximum(self.np.abs(x), least)
        terms = _terms(equation, operands)
        if terms is not None:
            count, total = terms
            total = _wide(total, self.np)
            if equation.primitive.name in _PRODUCTS:  # in 16 bits they accumulate in float32, and round once
                own = unit_roundoff(at_least_float32(result.dtype)) / self.unit
            root = self.np.sqrt(self.np.asarray(count, total.dtype))
            size = size + own * root * self.np.where(self.np.isfinite(total), total, 0)
        return self.np.where(self.np.isfinite(x), size, 0)


class _Decided(NamedTuple):
    """An operation's result that is no float: the same in every run."""

    value: Array


class _Moved:
    """Another run, along what the first has recorded."""

    def __init__(self, record: Iterator[list], step: float, signs: Callable[[Any], Any]):
        self.record, self.step, self.signs = record, step, signs

    def __call__(self, equation, operands: list) -> list:
        recorded = next(self.record)
        if all(isinstance(kept, _Decided) for kept in recorded):
            return [kept.value for kept in recorded]
        return [self.outcome(x, kept) for x, kept in zip(_bind(equation, operands), recorded, strict=True)]

    def outcome(self, x: Array, kept) -> Array:
        if kept is None:
            return x
        if isinstance(kept, _Decided):
            return kept.value
        return x + jnp.asarray(self.step * self.signs(kept) * kept, x.dtype)


def _drawn(key: Array, record: list[list]) -> Array:
    """Returns random bits for every number that is moved; of each 16, one for every draw."""
    sizes = [kept.size for kept in sum(record, []) if kept is not None and not isinstance(kept, _Decided)]
    return jax.random.bits(key, (sum(sizes),), jnp.uint16)


class _Signs:
    """+-1 for one number after the other, from the bits of one draw."""

    def __init__(self, bits: Array, draw: Array):
        self.bits, self.draw, self.taken = bits, draw.astype(jnp.uint16), 0

    def __call__(self, size: Array) -> Array:
        own = self.bits[self.taken : self.taken + size.size].reshape(size.shape)
        self.taken += size.size
        return jnp.where((own >> self.draw) & 1 == 1, jnp.ones((), size.dtype), -1)


def _run(jaxpr, consts, args: list, outcome: Callable) -> list:
    """Returns the results of a program, each operation's by `outcome(equation, operands)`."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v):
        return v.val if hasattr(v, "val") else values[v]  # a literal holds its value

    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, list(map(read, equation.invars))
        inner = _INNER.get(name)
        if inner is None or not (name in _CALLS or all(map(checks.is_concrete, operands))):
            results = outcome(equation, operands)
        else:
            results = inner(equation, operands, outcome)
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def _closed(jaxpr, args: list, outcome: Callable) -> list:
    return _run(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), args, outcome)


def _call(equation, args: list, outcome: Callable) -> list:
    params = equation.params
    program = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    return _closed(program, args, outcome)


def _cond(equation, args: list, outcome: Callable) -> list:
    return _closed(equation.params["branches"][int(args[0])], args[1:], outcome)


def _while(equation, args: list, outcome: Callable) -> list:
    params = equation.params
    asks, does = params["cond_nconsts"], params["body_nconsts"]
    of_cond, of_body, carry = args[:asks], args[asks : asks + does], args[asks + does :]
    while bool(_closed(params["cond_jaxpr"], [*of_cond, *carry], outcome)[0]):
        carry = _closed(params["body_jaxpr"], [*of_body, *carry], outcome)
    return carry


def _scan(equation, args: list, outcome: Callable) -> list:
    # scanned arrays have one axis more outside than inside; JAX's names for the counts change between versions
    params = equation.params
    inside = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])

    def same(outer, inner):
        return sum(x.aval.ndim == y.aval.ndim for x, y in zip(outer, inner, strict=True))

    kept, carried = same(equation.invars, inside.invars), same(equation.outvars, inside.outvars)
    consts, carry, xs = args[: kept - carried], args[kept - carried : kept], args[kept:]
    rows, count = [], params["length"]
    for i in reversed(range(count)) if params["reverse"] else range(count):
        out = _closed(params["jaxpr"], [*consts, *carry, *(x[i] for x in xs)], outcome)
        carry = out[: len(carry)]
        rows.append(out[len(carry) :])
    rows = rows[::-1] if params["reverse"] else rows
    return [*carry, *(jnp.stack(column) for column in zip(*rows, strict=True))]


_INNER = {**dict.fromkeys(_CALLS, _call), "cond": _cond, "while": _while, "scan": _scan}


def _bind(equation, operands: list) -> list:
    outputs = equation.primitive.bind(*operands, **equation.params)
    return outputs if equation.primitive.multiple_results else [outputs]


def _operations(equation) -> int:
    """Returns how many operations follow one another in it: 1, or all those of a loop's or a branch's program."""
    programs = [
        getattr(p, "jaxpr", p)
        for value in equation.params.values()
        for p in (value if isinstance(value, tuple) else (value,))
        if hasattr(p, "eqns")
    ]
    inside = sum(_operations(each) for program in programs for each in program.eqns)
    return max(1, inside * equation.params.get("length", 1))


def _terms(equation, operands: list) -> tuple[int | Array, Array] | None:
    """Returns K and sum `|t_k|` of every result of a sum or an inner product; None for other operations."""
    count, inside = _COUNTS.get(equation.primitive.name), getattr(equation.params.get("jaxpr"), "eqns", ())
    if count is None or any(each.primitive.name != "add" for each in inside) or len(equation.outvars) > 1:
        return None
    # as the operation itself would give them, had its operands no signs
    unsigned = [jnp.abs(x) if _is_float(x) else x for x in operands]
    return count(equation.params, operands), _bind(equation, unsigned)[0]


def _of_product(params, operands: list) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return math.prod(operands[0].shape[axis] for axis in contracted)


def _of_convolution(params, operands: list) -> int:
    """Counts, along each axis, the part of the kernel that meets the signal; zeros of dilation or padding do not."""
    signal, kernel, _ = params["dimension_numbers"]
    read, weights = (x.shape for x in operands)
    count = weights[kernel[1]]  # of channels, those of one group
    axes = zip(signal[2:], kernel[2:], params["lhs_dilation"], params["rhs_dilation"], strict=True)
    for x, w, gap, step in axes:
        both = math.gcd(gap, step)
        count *= min(-(-weights[w] * both // gap), -(-read[x] * both // step))
    return count


def _of_scatter(params, operands: list) -> Array:
    """Counts for each result the value that was there, and how often it is added to."""
    into, indices, updates = (jnp.ones(x.shape, jnp.int32) if _is_float(x) else x for x in operands)
    options = {name: params[name] for name in ("indices_are_sorted", "unique_indices", "mode")}
    return lax.scatter_add(into, indices, updates, params["dimension_numbers"], **options)


def _over(axes: str) -> Callable[..., int]:
    return lambda params, operands: math.prod(operands[0].shape[axis] for axis in params[axes])


def _of_window(params, operands: list) -> int:
    return math.prod(params["window_dimensions"])


_PRODUCTS = {"dot_general": _of_product, "conv_general_dilated": _of_convolution}
# How many terms a result is the sum of, K
_COUNTS = _PRODUCTS | {
    "reduce_sum": _over("axes"),
    "reduce": _over("dimensions"),
    "reduce_window_sum": _of_window,
    "reduce_window": _of_window,
    "cumsum": lambda params, operands: operands[0].shape[params["axis"]],
    "scatter-add": _of_scatter,
}


def _is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _wide(x, numpy):
    """Returns x in float64 on the host; when traced, in what a product of the dtype and float32 has."""
    return np.asarray(x).astype(np.float64) if numpy is np else x.astype(at_least_float32(x.dtype))
