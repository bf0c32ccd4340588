"""What a second-order method may ask: a value, a gradient, residuals and their Jacobian, products with curvature.

Letters: P parameters in all, N residuals r, J = dr/dparams (N, P). Where there are residuals, F = r^T r: the sum of
their squares, without 1/2 (Hagan and Menhaj 1994; More, Garbow and Hillstrom 1981), so that dF/dparams = 2 J^T r and
the Gauss-Newton matrix of F is 2 J^T J. Matrices and vectors over all parameters are in
`jax.flatten_util.ravel_pytree`'s order.
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
from functional_nn.registry import cached

Function = Callable[..., Any]


class Functions(NamedTuple):
    """What can be asked, each a function of (params, data); None where there is no answer. Trees are in the parameters'
    structure.

    value -> F; value_and_gradient -> F, tree; hessian_product, gauss_newton_product -> (tree -> tree), at one point;
    hessian -> (P, P); residuals -> r (N,); jacobian -> r (N,), J (N, P); kernel -> r (N,), J J^T (N, N),
    (y (N,) -> J^T y, a tree); square_gradients -> tree, the mean over the examples of their gradients' squares;
    factors -> Kronecker factors of the Gauss-Newton matrix; solve(factors, damping, tree) -> the tree that their damped
    inverse makes of it (of no data). measured: True where each parameter may have a unit and a magnitude of its own, as
    in a formula, and unlike a network's weights: then Levenberg-Marquardt scales by default.
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
    """A function to be minimized, and what is known of it. A pytree of its data: `jit` and `vmap` take it as it is.

    Made by `problem_from` of any function, by `training.problem` of a network.
    """

    functions: Functions
    data: Any
    name: str
    bounds: Any = None  # (lower, upper), trees in the parameters' structure

    def __repr__(self) -> str:
        return f"<problem {self.name}>"

    def value(self, params) -> Array:
        """F, a scalar."""
        return self.functions.value(params, self.data)

    def value_and_gradient(self, params) -> tuple[Array, Any]:
        """F and dF/dparams."""
        return self.functions.value_and_gradient(params, self.data)


def problem_from(
    function: Callable | None = None,
    *,
    residuals: Callable | None = None,
    data: tuple = (),
    bounds: tuple | None = None,
    loss: str = "linear",
    loss_scale: float | Array = 1.0,
) -> Problem:
    """The problem of a plain JAX function, with derivatives by autodiff.

    function(params, *data) -> F, a scalar; or residuals(params, *data) -> r of any shape, whose squares sum to F.
    The same function with other data of the same shapes compiles nothing anew.

    bounds: (lower, upper), numbers, or trees of the parameters' structure whose arrays have, or broadcast to, their
    shapes; infinite where there is none. `levenberg_marquardt` keeps them.
    loss: of residuals, F = sum_i c^2 rho((r_i / c)^2), c the `loss_scale`, in the unit of r: "linear", rho(z) = z;
    "huber", z or, above 1, 2 sqrt(z) - 1; "soft_l1", 2 (sqrt(1 + z) - 1); "cauchy", log(1 + z). Residuals below c count
    as squares, larger ones for less, so that single wrong ones do not decide (Huber 1964). Methods see residuals
    c sign(r) sqrt(rho), whose squares sum to F.

    >>> import jax.numpy as jnp
    >>> float(problem_from(residuals=lambda x, t: x - t, data=(jnp.ones(2),)).value(jnp.zeros(2)))
    2.0

    Raises TypeError unless one of the two is given, and for bounds that are no pair; ValueError for an unknown loss,
    for one without residuals, a loss_scale that is not positive, and a lower bound above the upper.
    """
    given = [each for each in (function, residuals) if each is not None]
    if len(given) != 1 or not callable(given[0]):
        raise TypeError("problem_from: expected one function, of F or (residuals=) of residuals whose squares sum to F")
    checks.one_of("problem_from", "loss", loss, tuple(ROOTS))
    if checks.is_concrete(loss_scale):
        checks.constant("problem_from", "loss_scale", loss_scale, *checks.POSITIVE)
    _check_bounds(bounds)
    name, data = getattr(given[0], "__name__", "of a function"), tuple(data)
    if residuals is None:
        if loss != "linear":
            raise ValueError(f"problem_from: loss={loss!r} is of residuals; give them by problem_from(residuals=...)")
        return Problem(_of_function(function), data, name, bounds)
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


# u -> sign(u) sqrt(rho(u^2)), whose square is the loss. What is not taken is computed, too, and must stay finite.
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
    """log(1 + z) / z, 1 at 0."""
    small = z < 1e-4
    series = 1 - z / 2 + z**2 / 3 - z**3 / 4
    return jnp.where(small, series, jnp.log1p(z) / jnp.where(small, 1, z))


@functools.partial(cached, size=32)
def _robust(residuals: Callable, loss: str) -> Callable:
    """The residuals (scale, *data) -> r, whose squares sum to the loss."""

    def of_loss(params, scale, *data):
        r = _array("residuals", residuals(params, *data))
        scale = jnp.asarray(scale, r.dtype)
        return scale * ROOTS[loss](r / scale)

    return of_loss


def _array(what: str, found: Any) -> Array:
    """What a function gave, as an array of real numbers. Raises TypeError where it is none."""
    if isinstance(found, list | tuple) and all(map(np.isscalar, found)) or np.isscalar(found):
        found = jnp.asarray(found)
    if isinstance(found, list | tuple | dict):
        raise TypeError(
            f"problem_from: expected the function to give {what} as an array, got {type(found).__name__}; "
            "jnp.concatenate makes one of several"
        )
    checks.numeric(f"problem_from: {what}", found, np.float32)
    return jnp.asarray(found)


def _scalar(function: Callable) -> Function:
    def value(params, data):
        found = _array("F", function(params, *data))
        if found.shape != ():
            raise ValueError(
                f"problem_from: expected the function to give a scalar, got shape {found.shape}; of residuals, give "
                "problem_from(residuals=function)"
            )
        return found

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
        found = _array("residuals", function(params, *data))
        if found.ndim == 0:
            raise ValueError(
                "problem_from: expected an array of residuals, got one number; is it F, without residuals=?"
            )
        if not found.size:
            raise ValueError(f"problem_from: expected at least one residual, got shape {found.shape}")
        return found.reshape(-1)

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

        def flat(x):
            return residuals(layout.unflatten(x), data)

        r, push = jax.linearize(flat, x)
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
    """Parameters as one vector (P,), in at least float32, in `ravel_pytree`'s order; also of mixed dtypes."""

    def __init__(self, params: Any):
        leaves, self._structure = jax.tree.flatten(params)
        self._shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        self.size = sum(leaf.size for leaf in leaves)
        self.dtype = functools.reduce(jnp.promote_types, (at_least_float32(leaf.dtype) for leaf in leaves))

    def flatten(self, tree: Any) -> Array:
        """(P,) of a tree in the parameters' structure."""
        return jnp.concatenate([leaf.reshape(-1).astype(self.dtype) for leaf in self._structure.flatten_up_to(tree)])

    def unflatten(self, x: Array) -> Any:
        """The parameters that x (P,) stands for, each in its own shape and dtype."""
        leaves, start = [], 0
        for shape, dtype in self._shapes:
            size = int(functools.reduce(int.__mul__, shape, 1))
            leaves.append(x[start : start + size].reshape(shape).astype(dtype))
            start += size
        return self._structure.unflatten(leaves)


class Flat(Layout):
    """A problem as methods see it: on vectors x (P,) of parameters of the given structure."""

    looks = True  # is the end of a step to be looked at, or only where the next begins?

    def __init__(self, problem: Problem, params: Any):
        self._functions, self._data = problem.functions, problem.data
        self.measured = problem.functions.measured
        super().__init__(params)
        bounds = problem.bounds
        self.bounds = None if bounds is None else tuple(self._bound(params, bound) for bound in bounds)

    def _bound(self, params: Any, bound: Any) -> Array:
        """(P,). Raises ValueError where it does not suit the parameters."""
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
        """Raises ValueError for the first parameter that is known to be outside its bounds."""
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

    def _ask(self, what: str, x: Array) -> Any:
        return getattr(self._functions, what)(self.unflatten(x), self._data)

    def value(self, x: Array) -> Array:
        """F."""
        return lax.optimization_barrier(self._ask("value", x).astype(self.dtype))

    def value_and_gradient(self, x: Array) -> tuple[Array, Array]:
        """F and g (P,)."""
        value, gradient = self._ask("value_and_gradient", x)
        # Computed once: in two fusions it could be two values, on which two decisions would rest.
        return lax.optimization_barrier((value.astype(self.dtype), self.flatten(gradient)))

    def product(self, x: Array, of: str) -> Callable[[Array], Array]:
        """v -> A v, (P,) -> (P,), A the Hessian or the Gauss-Newton matrix at x."""
        multiply = self._ask(f"{of}_product", x)
        return lambda v: self.flatten(multiply(self.unflatten(v)))

    def hessian(self, x: Array) -> Array:
        """(P, P), symmetric to the last bit."""
        H = self._ask("hessian", x).astype(self.dtype)
        return (H + H.T) / 2

    def jacobian(self, x: Array) -> tuple[Array, Array]:
        """r (N,) and J (N, P)."""
        r, J = self._ask("jacobian", x)
        return r.astype(self.dtype), J.astype(self.dtype)

    def second_derivative(self, x: Array, direction: Array) -> Array:
        """d^2 r(x + t direction) / dt^2 at t = 0, (N,)."""

        def along(x):
            return jax.jvp(lambda x: self._ask("residuals", x), (x,), (direction,))[1]

        return jax.jvp(along, (x,), (direction,))[1].astype(self.dtype)

    def kernel(self, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        """r (N,), J J^T (N, N) and y (N,) -> J^T y (P,)."""
        r, K, pull = self._ask("kernel", x)
        return r.astype(self.dtype), K.astype(self.dtype), lambda y: self.flatten(pull(y.astype(r.dtype)))

    def knows(self, what: str) -> bool:
        """Can the problem be asked that?"""
        return getattr(self._functions, what) is not None

    def residual_count(self) -> int:
        """N."""
        x = jax.ShapeDtypeStruct((self.size,), self.dtype)
        return jax.eval_shape(lambda x: self._ask("residuals", x), x).size

    def square_gradients(self, x: Array) -> Array:
        """(P,)."""
        return self.flatten(self._ask("square_gradients", x))

    def factors(self, x: Array) -> Any:
        """Kronecker factors of the Gauss-Newton matrix."""
        return self._ask("factors", x)

    def solve(self, factors: Any, damping: Array, v: Array) -> Array:
        """(P,) -> (P,): what the factors' damped inverse makes of v."""
        return self.flatten(self._functions.solve(factors, damping, self.unflatten(v)))
