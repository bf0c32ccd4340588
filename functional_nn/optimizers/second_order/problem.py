r"""Problems of second-order methods: a function to be minimized, and the derivatives that can be evaluated.

Letters: P parameters in all, N residuals r, J = dr/dparams (N, P). Where there are residuals F is the sum of their
squares, without 1/2 (Hagan and Menhaj 1994; More, Garbow and Hillstrom 1981):

.. math::
    F = r^T r, \qquad \frac{\partial F}{\partial \mathrm{params}} = 2 J^T r, \qquad
    2 J^T J \text{ is the Gauss-Newton matrix of } F

Matrices and vectors over all parameters are in the order of `jax.flatten_util.ravel_pytree`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks
from functional_nn.precision import at_least_float32
from functional_nn.rows import cached

Function = Callable[..., Any]


class Functions(NamedTuple):
    """The functions of (params, data) that a problem provides; None where it does not provide one.

    Trees are in the parameters' structure.

    Attributes:
        value: Returns F.
        value_and_gradient: Returns F and a tree, dF/dparams.
        hessian_product: Returns the function tree -> tree that multiplies by the Hessian at one point.
        gauss_newton_product: The same for the Gauss-Newton matrix.
        hessian: Returns the Hessian (P, P).
        residuals: Returns r (N,).
        jacobian: Returns r (N,) and J (N, P).
        kernel: Returns r (N,), J J^T (N, N), and the function y (N,) -> J^T y, a tree.
        square_gradients: Returns a tree, the mean over the examples of the squares of their gradients.
        factors: Returns Kronecker factors of the Gauss-Newton matrix.
        solve: solve(factors, damping, tree), which takes no data, returns the product of the factors' damped inverse
            and the tree.
        measured: True where each parameter may have its own unit and magnitude, as in a formula and unlike a network's
            weights; then Levenberg-Marquardt scales by default.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> functions = optimizers.problem_from(lambda x: jnp.sum(x**2)).functions
        >>> functions.hessian(jnp.ones(2), ()).tolist(), functions.residuals is None
        ([[2.0, 0.0], [0.0, 2.0]], True)
    """

    value: Function
    value_and_gradient: Function
    hessian_product: Function
    gauss_newton_product: Function | None
    hessian: Function
    residuals: Function | None = None
    jacobian: Function | None = None
    kernel: Function | None = None
    square_gradients: Function | None = None
    factors: Function | None = None
    solve: Function | None = None
    measured: bool = False


@functools.partial(jax.tree_util.register_dataclass, data_fields=("data", "bounds"), meta_fields=("functions", "name"))
@dataclass(frozen=True)
class Problem:
    """A function to be minimized, with its derivatives: a pytree of its data, which `jit` and `vmap` accept.

    `problem_from` makes one from a function, `training.problem` from a network.

    Attributes:
        functions: The functions that it provides.
        data: Their second argument, a pytree.
        name: Its name in messages.
        bounds: (lower, upper), trees in the parameters' structure; None without bounds.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x, t: jnp.sum((x - t) ** 2), data=(jnp.ones(2),))
        >>> float(problem.value(jnp.zeros(2)))
        2.0
    """

    functions: Functions
    data: Any
    name: str
    bounds: Any = None

    def __repr__(self) -> str:
        return f"<problem {self.name}>"

    def value(self, params: Any) -> Array:
        """Returns F, a scalar."""
        return self.functions.value(params, self.data)

    def value_and_gradient(self, params: Any) -> tuple[Array, Any]:
        """Returns F and dF/dparams."""
        return self.functions.value_and_gradient(params, self.data)


def check_problem(owner: str, problem: Any) -> None:
    """Raises TypeError unless it is a `Problem`."""
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{owner}: problem: expected one from optimizers.problem_from(function) or training.problem(network, ...), "
            f"got {type(problem).__name__}"
        )


def problem_from(
    function: Callable | None = None,
    *,
    residuals: Callable | None = None,
    data: tuple = (),
    bounds: tuple | None = None,
    loss: str = "linear",
    loss_scale: float | Array = 1.0,
) -> Problem:
    r"""Returns the problem of a plain JAX function, whose derivatives are automatic.

    The same function with other data of the same shapes compiles nothing again. With a loss other than "linear",

    .. math:: F = \sum_i c^2 \rho\big((r_i / c)^2\big)

    and methods see the residuals :math:`c \, \mathrm{sign}(r) \sqrt{\rho}`, whose squares sum to F.

    Args:
        function: function(params, \*data) returns F, a scalar.
        residuals: residuals(params, \*data) returns r, an array of any shape whose squares sum to F. Give either
            this or `function`.
        data: Further arguments of the function.
        bounds: (lower, upper): numbers, or trees of the parameters' structure whose arrays broadcast to theirs;
            infinite where a parameter has no bound. Only `levenberg_marquardt` keeps them.
        loss: How residuals count, :math:`\rho(z)`: "linear", z; "huber", z, or :math:`2 \sqrt z - 1` above 1;
            "soft_l1", :math:`2 (\sqrt{1 + z} - 1)`; "cauchy", :math:`\log(1 + z)`. Residuals below c count as squares
            and larger ones for less, so that single outliers do not decide (Huber 1964).
        loss_scale: c, > 0, in the unit of r.

    Returns:
        The problem.

    Raises:
        TypeError: Not exactly one of `function` and `residuals` is given, or the bounds are not a pair.
        ValueError: The loss is unknown, or given without residuals; `loss_scale` is not positive; or a lower bound is
            above the upper.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(residuals=lambda x, t: x - t, data=(jnp.ones(2),))
        >>> float(problem.value(jnp.zeros(2)))
        2.0
    """
    functions = [each for each in (function, residuals) if each is not None]
    if len(functions) != 1 or not callable(functions[0]):
        raise TypeError("problem_from: expected one function, of F or (residuals=) of residuals whose squares sum to F")
    checks.one_of("problem_from", "loss", loss, tuple(ROOTS))
    if checks.is_concrete(loss_scale):
        checks.constant("problem_from", "loss_scale", loss_scale, *checks.POSITIVE)
    _check_bounds(bounds)
    name, data = getattr(functions[0], "__name__", "of a function"), tuple(data)
    if residuals is None:
        if loss != "linear":
            raise ValueError(f"problem_from: loss={loss!r} is of residuals; give them by problem_from(residuals=...)")
        return Problem(_of_function(functions[0]), data, name, bounds)
    if loss != "linear":
        residuals, data = _robust(residuals, loss), (loss_scale, *data)
    return Problem(_of_residuals(residuals), data, name, bounds)


def _check_bounds(bounds: Any) -> None:
    if bounds is None:
        return
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise TypeError(f"problem_from: bounds: expected a pair (lower, upper), got {type(bounds).__name__}")
    if jax.tree.structure(bounds[0]) == jax.tree.structure(bounds[1]):
        for low, high in zip(*map(jax.tree.leaves, bounds), strict=True):
            if checks.is_concrete(low) and checks.is_concrete(high) and not np.all(np.asarray(low) <= np.asarray(high)):
                raise ValueError(f"problem_from: bounds: expected lower <= upper everywhere, got {low} and {high}")


# u -> sign(u) sqrt(rho(u^2)), whose square is the loss. The branch not taken is computed, too, and must stay finite.
ROOTS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda u: u,
    "huber": lambda u: jnp.where(jnp.abs(u) <= 1, u, jnp.sign(u) * jnp.sqrt(2 * jnp.maximum(jnp.abs(u), 1) - 1)),
    "soft_l1": lambda u: u * jnp.sqrt(2 / (1 + jnp.sqrt(1 + u**2))),
    "cauchy": lambda u: u * jnp.sqrt(_log_share(u**2)),
}
# u -> rho' + 2 z rho'' at z = u^2, half the second derivative of rho(u^2) by u
CURVATURES: dict[str, Callable[[Array], Array]] = {
    "linear": jnp.ones_like,
    "huber": lambda u: jnp.where(jnp.abs(u) <= 1, jnp.ones_like(u), 0),
    "soft_l1": lambda u: (1 + u**2) ** -1.5,
    "cauchy": lambda u: (1 - u**2) / (1 + u**2) ** 2,
}


def _log_share(z: Array) -> Array:
    """Returns log(1 + z) / z, 1 at 0."""
    small = z < 1e-4
    series = 1 - z / 2 + z**2 / 3 - z**3 / 4
    return jnp.where(small, series, jnp.log1p(z) / jnp.where(small, 1, z))


@functools.partial(cached, size=32)
def _robust(residuals: Callable, loss: str) -> Callable:
    """Returns the residuals `(params, scale, *data) -> r`, whose squares sum to the loss."""

    def robust(params, scale, *data):
        r = _array("residuals", residuals(params, *data))
        scale = jnp.asarray(scale, r.dtype)
        return scale * ROOTS[loss](r / scale)

    return robust


def _array(name: str, result: Any) -> Array:
    """Returns the result of a function as an array. Raises TypeError unless it holds real numbers."""
    if isinstance(result, list | tuple) and all(map(np.isscalar, result)) or np.isscalar(result):
        result = jnp.asarray(result)
    if isinstance(result, list | tuple | dict):
        raise TypeError(
            f"problem_from: expected the function to return {name} as an array, got {type(result).__name__}; "
            "jnp.concatenate makes one of several"
        )
    checks.numeric(f"problem_from: {name}", result, np.float32)
    return jnp.asarray(result)


def _scalar(function: Callable) -> Function:
    def value(params, data):
        F = _array("F", function(params, *data))
        if F.shape != ():
            raise ValueError(
                f"problem_from: expected the function to return a scalar, got shape {F.shape}; for residuals use "
                "problem_from(residuals=function)"
            )
        return F

    return value


@functools.partial(cached, size=32)
def _of_function(function: Callable) -> Functions:
    value = _scalar(function)

    def hessian_product(params, data):
        return jax.linearize(lambda x: jax.grad(value)(x, data), params)[1]

    return Functions(value, jax.value_and_grad(value), hessian_product, None, _hessian(hessian_product), measured=True)


@functools.partial(cached, size=32)
def _of_residuals(function: Callable) -> Functions:
    def residuals(params, data):
        r = _array("residuals", function(params, *data))
        if r.ndim == 0:
            raise ValueError(
                "problem_from: expected an array of residuals, got one number; is it F, without residuals=?"
            )
        if not r.size:
            raise ValueError(f"problem_from: expected at least one residual, got shape {r.shape}")
        return r.reshape(-1)

    def value(params, data):
        r = residuals(params, data)
        return jnp.vdot(r, r)

    def value_and_gradient(params, data):
        r, pull = jax.vjp(lambda x: residuals(x, data), params)
        return jnp.vdot(r, r), jax.tree.map(lambda g: 2 * g, pull(r)[0])

    def hessian_product(params, data):
        return jax.linearize(lambda x: value_and_gradient(x, data)[1], params)[1]

    def gauss_newton_product(params, data):
        _, push = jax.linearize(lambda x: residuals(x, data), params)
        pull = jax.linear_transpose(push, params)
        return lambda vector: jax.tree.map(lambda g: 2 * g, pull(push(vector))[0])

    def jacobian(params, data):
        layout = Layout(params)
        x = layout.flatten(params)

        def residuals_at(x):
            return residuals(layout.unflatten(x), data)

        r, push = jax.linearize(residuals_at, x)
        if r.size < x.size:
            return r, jax.vmap(lambda y: jax.linear_transpose(push, x)(y)[0])(jnp.eye(r.size, dtype=r.dtype))
        return r, jax.vmap(push, out_axes=1)(jnp.eye(x.size, dtype=x.dtype))

    def kernel(params, data):
        r, J = jacobian(params, data)
        return r, J @ J.T, lambda y: Layout(params).unflatten(J.T @ y)

    return Functions(
        value,
        value_and_gradient,
        hessian_product,
        gauss_newton_product,
        _hessian(hessian_product),
        residuals,
        jacobian,
        kernel,
        measured=True,
    )


def _hessian(product: Function) -> Function:
    def hessian(params, data):
        layout, multiply = Layout(params), product(params, data)
        rows = jnp.eye(layout.size, dtype=layout.dtype)
        return jax.vmap(lambda v: layout.flatten(multiply(layout.unflatten(v))))(rows)

    return hessian


class Layout:
    """Parameters as one vector (P,), in at least float32, in the order of `ravel_pytree`; dtypes may be mixed."""

    def __init__(self, params: Any):
        leaves, self._structure = jax.tree.flatten(params)
        self._shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        self.size = sum(leaf.size for leaf in leaves)
        self.dtype = functools.reduce(jnp.promote_types, (at_least_float32(leaf.dtype) for leaf in leaves))

    def flatten(self, tree: Any) -> Array:
        """Returns the vector (P,) of a tree in the parameters' structure."""
        return jnp.concatenate([leaf.reshape(-1).astype(self.dtype) for leaf in self._structure.flatten_up_to(tree)])

    def unflatten(self, x: Array) -> Any:
        """Returns the parameters that x (P,) stands for, each in its own shape and dtype."""
        leaves, start = [], 0
        for shape, dtype in self._shapes:
            size = int(functools.reduce(int.__mul__, shape, 1))
            leaves.append(x[start : start + size].reshape(shape).astype(dtype))
            start += size
        return self._structure.unflatten(leaves)


class FlatProblem(Layout):
    """A problem as methods see it: on vectors x (P,) of parameters of one structure."""

    evaluates_end = True  # evaluate the end of each step, or only the beginning of the next?

    def __init__(self, problem: Problem, params: Any):
        self._functions, self._data = problem.functions, problem.data
        self.measured = problem.functions.measured
        super().__init__(params)
        bounds = problem.bounds
        self.bounds = None if bounds is None else tuple(self._bound(params, bound) for bound in bounds)

    def _bound(self, params: Any, bound: Any) -> Array:
        """Returns a bound as a vector (P,). Raises ValueError where its shape does not suit the parameters."""
        if jax.tree.structure(bound).num_leaves == 1:
            bound = jax.tree.map(lambda leaf: jax.tree.leaves(bound)[0], params)
        try:
            whole = jax.tree.map(lambda x, b: jnp.broadcast_to(jnp.asarray(b, x.dtype), x.shape), params, bound)
        except ValueError:
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (bound, params)]
            raise ValueError(
                f"bounds: expected numbers or arrays that broadcast to the parameters', got shapes {shapes[0]} for "
                f"{shapes[1]}"
            ) from None
        return self.flatten(whole)

    def check_start(self, owner: str, params: Any) -> None:
        """Raises ValueError for the first parameter that is outside its bounds, where both are concrete."""
        if self.bounds is None:
            return
        x, (lower, upper) = self.flatten(params), self.bounds
        if all(map(checks.is_concrete, (x, lower, upper))):
            index = checks.first(np.arange(x.size), lambda i: np.asarray((x < lower) | (x > upper))[i])
            if index is not None:
                i = index[0]
                raise ValueError(
                    f"{owner}: {x[i]:g} of parameter {i} is outside its bounds, {lower[i]:g} to {upper[i]:g}"
                )

    def _evaluate(self, function: str, x: Array) -> Any:
        return getattr(self._functions, function)(self.unflatten(x), self._data)

    def value(self, x: Array) -> Array:
        """Returns F."""
        return lax.optimization_barrier(self._evaluate("value", x).astype(self.dtype))

    def value_and_gradient(self, x: Array) -> tuple[Array, Array]:
        """Returns F and g (P,)."""
        value, gradient = self._evaluate("value_and_gradient", x)
        # Computed once: in two fusions it could be two values, and two decisions would depend on them.
        return lax.optimization_barrier((value.astype(self.dtype), self.flatten(gradient)))

    def product(self, x: Array, of: str) -> Callable[[Array], Array]:
        """Returns v -> A v, (P,) -> (P,), with A the Hessian or the Gauss-Newton matrix at x."""
        multiply = self._evaluate(f"{of}_product", x)
        return lambda v: self.flatten(multiply(self.unflatten(v)))

    def hessian(self, x: Array) -> Array:
        """Returns the Hessian (P, P), symmetric to the last bit."""
        H = self._evaluate("hessian", x).astype(self.dtype)
        return (H + H.T) / 2

    def jacobian(self, x: Array) -> tuple[Array, Array]:
        """Returns r (N,) and J (N, P)."""
        r, J = self._evaluate("jacobian", x)
        return r.astype(self.dtype), J.astype(self.dtype)

    def second_derivative(self, x: Array, direction: Array) -> Array:
        """Returns d^2 r(x + t direction) / dt^2 at t = 0, (N,)."""

        def along(x):
            return jax.jvp(lambda x: self._evaluate("residuals", x), (x,), (direction,))[1]

        return jax.jvp(along, (x,), (direction,))[1].astype(self.dtype)

    def kernel(self, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        """Returns r (N,), J J^T (N, N) and the function y (N,) -> J^T y (P,)."""
        r, K, pull = self._evaluate("kernel", x)
        return r.astype(self.dtype), K.astype(self.dtype), lambda y: self.flatten(pull(y.astype(r.dtype)))

    def provides(self, function: str) -> bool:
        """Returns whether the problem provides this function."""
        return getattr(self._functions, function) is not None

    def residual_count(self) -> int:
        """Returns N."""
        x = jax.ShapeDtypeStruct((self.size,), self.dtype)
        return jax.eval_shape(lambda x: self._evaluate("residuals", x), x).size

    def square_gradients(self, x: Array) -> Array:
        """Returns the mean over the examples of the squares of their gradients (P,)."""
        return self.flatten(self._evaluate("square_gradients", x))

    def factors(self, x: Array) -> Any:
        """Returns Kronecker factors of the Gauss-Newton matrix."""
        return self._evaluate("factors", x)

    def solve(self, factors: Any, damping: Array, v: Array) -> Array:
        """Returns the product (P,) of the factors' damped inverse and v (P,)."""
        return self.flatten(self._functions.solve(factors, damping, self.unflatten(v)))
