r"""Curves fitted to data: parameters, and how well the data determine them.

Letters: N data, P parameters b, :math:`r_i = (f(x_i, b) - y_i) / \sigma_i`, J = dr/db (N, P), :math:`F = r^T r`,
:math:`s^2 = F / (N - P)`.

Near the minimum f is treated as linear in b. Errors e of y with variances :math:`s^2 \sigma_i^2` then move the minimum
by :math:`(J^T J)^{-1} J^T (e / \sigma)`, so that the covariance of b is

.. math:: C = s^2 (J^T J)^{-1}

A standard error is the root of its diagonal (Bates and Watts 1988, Sec. 2.2). f(x, b) has the variance

.. math:: j^T C j, \qquad j = \frac{\partial f}{\partial b} \text{ at } x

and a new observation there :math:`s^2 \sigma^2` more. As s is an estimate, half a band is as many roots as Student's t
with N - P degrees of freedom says. Where sigma is absolute, s is 1, nothing is estimated, and the normal distribution
replaces Student's.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import betainc, ndtri

from functional_nn import checks, linalg, precision
from functional_nn.optimizers.second_order import SecondOrder, Solution, get
from functional_nn.optimizers.second_order.minimization import minimize, run_to_end
from functional_nn.optimizers.second_order.problem import CURVATURES, FlatProblem, Layout, Problem, problem_from
from functional_nn.optimizers.second_order.state import BUDGET_SPENT, DIVERGED, State
from functional_nn.rows import cached

_POLISH = 100  # Gauss-Newton steps after the end, at most


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "covariance", "variance", "residuals", "determined", "solution"),
    meta_fields=("function", "absolute"),
)
@dataclass(frozen=True)
class CurveFit:
    """The result of `curve_fit`; `params, covariance = fit` unpacks it as SciPy's does.

    It is a pytree: fits of several data sets side by side, as `vmap` makes them, have a leading axis in each array.

    Attributes:
        params: The parameters, in the structure of p0.
        covariance: (P, P), in the order of `ravel_pytree`.
        variance: s^2, of an observation with sigma 1; 1 where sigma is absolute.
        residuals: (f - y) / sigma, flat (N,); where sigma is a matrix, those that it makes independent.
        determined: False for a parameter that the data leave free, whose standard error is infinite (P,).
        solution: The `Solution` of `minimize`, with its status and counts.
        function: f.
        absolute: Whether sigma was absolute.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> x = jnp.arange(4.0)
        >>> fit = optimizers.curve_fit(lambda x, a, b: a + b * x, x, jnp.array([1.0, 3.0, 5.0, 7.2]))
        >>> [round(float(b), 2) for b in fit.params], [round(float(e), 3) for e in fit.standard_errors]
        ([0.96, 2.06], [0.065, 0.035])
    """

    params: Any
    covariance: Array
    variance: Array
    residuals: Array
    determined: Array
    solution: Solution
    function: Callable
    absolute: bool = False

    def __iter__(self) -> Iterator[Any]:
        return iter((self.params, self.covariance))

    @property
    def standard_errors(self) -> Any:
        """The standard error of each parameter, in the structure of params."""
        roots = jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))
        if roots.ndim == 1:
            return Layout(self.params).unflatten(roots)
        return jax.vmap(lambda params, root: Layout(params).unflatten(root))(self.params, roots)

    @property
    def correlation(self) -> Array:
        """Covariance over both standard errors (P, P); 0 for pairs with an undetermined parameter."""
        variances = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        roots = jnp.sqrt(jnp.where(jnp.isfinite(variances) & (variances > 0), variances, 1))
        correlation = self.covariance / (roots[..., :, None] * roots[..., None, :])
        return jnp.where(jnp.eye(roots.shape[-1], dtype=bool), 1, jnp.where(jnp.isfinite(correlation), correlation, 0))

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """Returns a confidence interval for each parameter.

        Args:
            level: The confidence level, in (0, 1).

        Returns:
            (lower, upper), each in the structure of params.
        """
        errors, t = self.standard_errors, self._quantile(level)
        sides = [
            jax.tree.map(lambda b, e, sign=sign: b + sign * t.astype(b.dtype) * e, self.params, errors)
            for sign in (-1, 1)
        ]
        return sides[0], sides[1]

    @precision.full
    def band(self, x: Any, level: float = 0.95, prediction: bool = False) -> tuple[Array, Array]:
        """Returns a band around the curve, for each x alone.

        It is for one fit; for several, use `vmap`.

        Args:
            x: Where, as in `curve_fit`.
            level: The confidence level, in (0, 1).
            prediction: False: where the curve itself is. True: where a new observation of sigma 1 is.

        Returns:
            (lower, upper), each in the shape of f(x, b).
        """
        checks.boolean("band", "prediction", prediction)
        layout = Layout(self.params)

        def at(b):
            return _called(self.function, layout.unflatten(b), x)

        b = layout.flatten(self.params)
        middle, slopes = at(b), jax.jacfwd(at)(b)
        covariance = self.covariance.astype(middle.dtype)
        known = jnp.where(jnp.isfinite(covariance), covariance, 0)
        variance = jnp.einsum("...j,jk,...k->...", slopes, known, slopes)
        # an undetermined parameter moves the curve where its slope is not 0
        unknown = jnp.abs(slopes) @ (~jnp.isfinite(jnp.diagonal(covariance))).astype(middle.dtype)
        variance = jnp.where(unknown > 0, jnp.inf, jnp.maximum(variance, 0))
        if prediction:
            variance = variance + self.variance.astype(variance.dtype)
        half = self._quantile(level).astype(middle.dtype) * jnp.sqrt(variance)
        return middle - half, middle + half

    def _quantile(self, level: float) -> Array:
        checks.constant("curve_fit", "level", level, lambda v: (v > 0) & (v < 1), "in (0, 1)")
        freedom = self.residuals.shape[-1] - self.covariance.shape[-1]
        return student(level, np.inf if self.absolute else freedom, self.covariance.dtype)

    def __repr__(self) -> str:
        return f"<fit of {getattr(self.function, '__name__', 'a function')}: {self.solution.reason}>"


def curve_fit(
    f: Callable,
    x: Any,
    y: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    *,
    bounds: tuple | None = None,
    loss: str = "linear",
    loss_scale: float | Array = 1.0,
    method: SecondOrder | str = "levenberg_marquardt",
    steps: int = 1000,
) -> CurveFit:
    """Fits a curve by least squares, as SciPy's `curve_fit`: the parameters and their covariance.

    After `minimize` has converged, Gauss-Newton steps continue while they shrink: to the last digits that r determines.
    Under a loss other than "linear", J is weighted by its curvature. Parameters that the data do not determine have
    infinite standard errors, as all have where N <= P and sigma is relative.

    It is pure, and may be jitted and vmapped, over x, y, sigma and p0. Called with plain arrays it compiles once for
    each f and shapes. It has no derivatives itself.

    Args:
        f: A JAX function whose value has the shape of y: f(x, b1, b2, ...) if p0 is a sequence, f(x, b1=..., b2=...) if
            p0 is a dict.
        x: An array, a list of numbers or a tree of both; f receives arrays of at least float32.
        y: An array or list of numbers.
        p0: The start, one number a parameter. The default is 1 for each of f's parameters; between two bounds their
            middle, with one bound 1 inside it.
        sigma: The standard deviations of y, a number or an array of y's shape, or its covariance (N, N).
        absolute_sigma: True if sigma is in the units of y; then the covariance is :math:`(J^T J)^{-1}`. Else sigma is
            relative, and it is :math:`s^2 (J^T J)^{-1}`.
        bounds: As in `problem_from`.
        loss: As in `problem_from`.
        loss_scale: As in `problem_from`, in the unit of r.
        method: "levenberg_marquardt", or such a method with a trust region.
        steps: The largest number of steps.

    Returns:
        A `CurveFit`.

    Raises:
        ValueError: Data are not finite or masked, shapes do not fit, or F is not finite at the start.
        TypeError: Data are not real numbers, or f does not take p0 or does not return real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> x = jnp.linspace(0.0, 4.0, 9)
        >>> y = 2.5 * jnp.exp(-1.3 * x)
        >>> fit = optimizers.curve_fit(lambda x, height, rate: height * jnp.exp(-rate * x), x, y)
        >>> [round(float(b), 3) for b in fit.params], fit.solution.status
        ([2.5, 1.3], 'gradient')
    """
    if not callable(f):
        raise TypeError(f"curve_fit: f: expected a function f(x, b1, b2, ...), got {type(f).__name__}")
    checks.boolean("curve_fit", "absolute_sigma", absolute_sigma)
    checks.integer("curve_fit", "steps", steps, 1)
    method = get(method)
    if method.name != "levenberg_marquardt" or method.constants["rule"] not in ("auto", "trust_region"):
        raise ValueError(f"curve_fit: method: expected levenberg_marquardt with a trust region, got {method}")
    x, y = _reals("x", x), _real("y", y)
    if not y.size:
        raise ValueError(f"curve_fit: y: expected at least one number, got shape {y.shape}")
    if not isinstance(p0, dict) and isinstance(bounds, list | tuple):  # lists of numbers, as SciPy's users write them
        bounds = tuple(_real("bounds", b, infinite=True) if isinstance(b, list | tuple) else b for b in bounds)
    p0 = _start(f, p0, y.dtype, bounds)
    sigma = _deviations(sigma, y)
    _check_function(f, p0, x, y)
    problem = problem_from(residuals=_residuals(f), data=(x, y, sigma), bounds=bounds, loss=loss, loss_scale=loss_scale)
    FlatProblem(problem, p0).check_start("curve_fit: p0", p0)
    fit = _program(f, method, steps, loss, absolute_sigma)(problem.data, problem.bounds, p0)
    if checks.is_concrete(fit.solution.ended) and int(fit.solution.ended) == DIVERGED:
        minimize(problem, method, p0, steps=1)  # raises, and says where it was not finite
    return fit


def _real(name: str, x: Any, infinite: bool = False) -> Array:
    """Returns real numbers in at least float32. Raises TypeError for others, ValueError unless finite or `infinite`."""
    try:
        x = x if isinstance(x, jax.Array) else np.asanyarray(x)
    except ValueError:  # lists of different lengths
        raise ValueError(f"curve_fit: {name}: expected numbers, got rows of different lengths") from None
    checks.numeric(f"curve_fit: {name}", x, np.float32)
    if not infinite:
        checks.finite(f"curve_fit: {name}", x)
    return jnp.asarray(x, precision.default()) if x.dtype.kind in "biu" else precision.wide(jnp.asarray(x))


def _reals(name: str, tree: Any) -> Any:
    """Returns a tree of real numbers; a list of numbers becomes an array, a list of arrays stays a tree."""

    def listed(node):
        return isinstance(node, list | tuple) and all(map(np.isscalar, jax.tree.leaves(node)))

    leaves, structure = jax.tree.flatten(tree, is_leaf=listed)
    names = checks.by_path(structure.unflatten(range(len(leaves))))
    return structure.unflatten([_real("/".join(filter(None, (name, at))), leaves[i]) for at, i in names.items()])


def _check_function(f: Callable, p0: Any, x: Any, y: Array) -> None:
    """Raises TypeError, or ValueError for a shape, if the function does not suit the parameters and data."""
    try:
        signature = inspect.signature(f)
    except ValueError:  # a built-in function
        signature = None
    if signature is not None:
        try:
            signature.bind(x, **p0) if isinstance(p0, dict) else signature.bind(x, *p0)
        except TypeError as error:
            starts = f"the starts of {', '.join(p0)}" if isinstance(p0, dict) else f"{len(p0)} starts"
            raise TypeError(f"curve_fit: p0: f does not take {starts}: {error}") from None
    try:
        value = jax.eval_shape(lambda p, x: _called(f, p, x), p0, x)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError("curve_fit: f: expected a JAX function, of jax.numpy; got one that needs NumPy's arrays") from (
            error
        )
    if value.shape != y.shape:
        raise ValueError(f"curve_fit: expected f(x, ...) to have the shape of y, {y.shape}, got {value.shape}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"curve_fit: expected f(x, ...) to return real numbers that vary with b, got {value.dtype}")


def _called(f: Callable, params: Any, x: Any) -> Array:
    value = f(x, **params) if isinstance(params, dict) else f(x, *params)
    if value is None:
        raise TypeError("curve_fit: f: expected a function that returns numbers, got None")
    return precision.wide(jnp.asarray(value))


def _start(f: Callable, p0: Any, dtype: np.dtype, bounds: tuple | None) -> Any:
    if p0 is None:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [each for each in inspect.signature(f).parameters.values() if each.kind in kinds][1:]
        if not names:
            raise ValueError("curve_fit: p0: the number of parameters of f is unknown; give their starts")
        p0 = jnp.ones(len(names), precision.default())
        if bounds is not None and len(bounds) == 2 and all(jnp.ndim(b) < 2 for b in bounds):
            p0 = _between(*(jnp.broadcast_to(jnp.asarray(b, p0.dtype), p0.shape) for b in bounds))
    p0 = {name: _real(f"p0: {name}", b) for name, b in p0.items()} if isinstance(p0, dict) else _real("p0", p0)
    if not isinstance(p0, dict) and p0.ndim != 1:
        raise ValueError(f"curve_fit: p0: expected one number a parameter, or a dict of them, got shape {p0.shape}")
    if not sum(leaf.size for leaf in jax.tree.leaves(p0)):
        raise ValueError("curve_fit: p0: expected at least one number")
    return jax.tree.map(lambda b: b.astype(np.promote_types(b.dtype, dtype)), p0)


def _between(lower: Array, upper: Array) -> Array:
    """Returns SciPy's default start: 1, the middle of two bounds, or 1 inside the only one."""
    least, most = jnp.isfinite(lower), jnp.isfinite(upper)
    below, above = jnp.where(least, lower, 0), jnp.where(most, upper, 0)
    return jnp.where(least & most, below / 2 + above / 2, jnp.where(least, below + 1, jnp.where(most, above - 1, 1)))


def _deviations(sigma: Any, y: Array) -> Array | None:
    """Returns None, deviations in y's shape, or the Cholesky factor (N, N) of a covariance."""
    if sigma is None:
        return None
    sigma = _real("sigma", sigma).astype(y.dtype)
    if sigma.shape in ((), y.shape):
        if checks.is_concrete(sigma) and not np.all(np.asarray(sigma) > 0):
            raise ValueError("curve_fit: sigma: expected standard deviations > 0")
        return jnp.broadcast_to(sigma, y.shape)
    if sigma.shape != (y.size, y.size):
        raise ValueError(
            f"curve_fit: sigma: expected a number, y's shape {y.shape} or a covariance {(y.size, y.size)}, got shape "
            f"{sigma.shape}"
        )
    if checks.is_concrete(sigma):
        apart = np.abs(np.asarray(sigma) - np.asarray(sigma).T).max()
        if apart > jnp.finfo(sigma.dtype).eps ** 0.5 * np.abs(np.asarray(sigma)).max():
            raise ValueError(f"curve_fit: sigma: expected a symmetric covariance matrix, got sides {apart:g} apart")
    L = linalg.cholesky(sigma)
    if checks.is_concrete(L) and not np.isfinite(np.asarray(L)).all():
        raise ValueError("curve_fit: sigma: expected a positive definite covariance matrix")
    return L


@functools.partial(cached, size=32)
def _residuals(f: Callable) -> Callable:
    def residuals(params, x, y, sigma):
        value = _called(f, params, x)
        dtype = np.promote_types(value.dtype, y.dtype)
        r = value.astype(dtype) - y.astype(dtype)
        if sigma is None:
            return r.reshape(-1)
        if sigma.shape == y.shape:
            return (r / sigma.astype(dtype)).reshape(-1)
        return solve_triangular(sigma.astype(dtype), r.reshape(-1), lower=True)

    residuals.__name__ = getattr(f, "__name__", "of a function")
    return residuals


@functools.partial(cached, size=32)
def _program(f: Callable, method: SecondOrder, steps: int, loss: str, absolute: bool) -> Callable:
    """Returns the compiled function (data, bounds, p0) -> CurveFit."""
    functions = problem_from(residuals=_residuals(f), data=(), loss=loss).functions

    @precision.full
    def run(data: tuple, bounds: tuple | None, p0: Any) -> CurveFit:
        problem = Problem(functions, data, "of a curve", bounds)
        flat = FlatProblem(problem, p0)
        limits = jnp.asarray(-precision.largest(flat.dtype)), None, None, jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
        solution = run_to_end(method, steps, False, problem, p0, *limits)
        state = _polish(method, problem, solution.state)
        solution = solution._replace(
            params=state.params,
            value=state.value,
            gradient=state.gradient,
            counts=state.counts,
            steps=state.step,
            state=None,
        )
        plain = FlatProblem(problem_from(residuals=_residuals(f), data=data[-3:]), p0)
        r, J = plain.jacobian(plain.flatten(state.params))
        if loss != "linear":
            scale = jnp.asarray(data[0], r.dtype)
            J = J * jnp.sqrt(jnp.maximum(CURVATURES[loss](r / scale), jnp.finfo(r.dtype).eps))[:, None]
        freedom = r.size - plain.size
        variance = jnp.ones_like(state.value)
        if not absolute:
            variance = state.value / freedom if freedom > 0 else jnp.full_like(state.value, jnp.inf)
        covariance, determined = _covariance(J, variance)
        return CurveFit(state.params, covariance, variance, r, determined, solution, f, absolute)

    return jax.jit(run)


def _polish(method: SecondOrder, problem: Problem, state: State) -> State:
    """Returns the state after further steps, while one moves: they shrink where F no longer distinguishes them."""

    def moving(carry):
        _, moved, count = carry
        return moved & (count < _POLISH)

    def step(carry):
        before, _, count = carry
        after = method.update(before, problem)
        layout = Layout(before.params)
        return after, jnp.any(layout.flatten(after.params) != layout.flatten(before.params)), count + 1

    converged = (state.status != DIVERGED) & (state.status != BUDGET_SPENT) & jnp.isfinite(state.value)
    return lax.while_loop(moving, step, (state, converged, jnp.zeros((), jnp.int32)))[0]


def _covariance(J: Array, variance: Array) -> tuple[Array, Array]:
    """Returns variance (J^T J)^-1 (P, P), infinite for parameters that J does not determine, and which it does (P,)."""
    length = jnp.max(jnp.abs(J), axis=0)
    length = jnp.where(length > 0, length, 1)
    _, s, V = linalg.singular(J / length[None, :])
    limits = jnp.finfo(J.dtype)
    distinct = s > jnp.max(s) * max(J.shape) * limits.eps
    rows = V * jnp.where(distinct, 1 / jnp.where(distinct, s, 1), 0)[:, None] / length[None, :]
    spanned = jnp.sum(jnp.where(distinct[:, None], V**2, 0), axis=0)
    determined = 1 - spanned <= limits.eps**0.5
    inverse = rows.T @ rows
    both = determined[:, None] & determined[None, :]
    infinite = jnp.diag(jnp.where(determined & jnp.isfinite(variance), 0, jnp.inf))
    scaled = jnp.where(both, inverse, 0) * jnp.where(jnp.isfinite(variance), variance, 0)
    return jnp.where(jnp.eye(len(inverse), dtype=bool), scaled + infinite, scaled), determined


_MANY = 300  # degrees of freedom; above, Student's quantile is the normal one and four terms


def student(level: float, freedom: float, dtype: np.dtype) -> Array:
    r"""Returns t with :math:`P(\lvert T \rvert \le t)` = level for Student's distribution; nan without freedom.

    With z = freedom / (freedom + t^2) and I the regularized incomplete beta function (Abramowitz and Stegun 26.5.27)

    .. math:: 1 - \mathrm{level} = I_z(\mathrm{freedom} / 2, 1 / 2)

    For many degrees of freedom it is computed from the normal quantile (26.7.5), since with a large first argument the
    fraction is lost to rounding; for infinitely many it is that quantile.
    """
    if freedom <= 0:
        return jnp.full((), jnp.nan, dtype)
    if freedom > _MANY:
        z, n = ndtri((1 + jnp.asarray(level, dtype)) / 2), float(freedom)
        return z + (
            (z**3 + z) / (4 * n)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
            + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
        )
    a, b = jnp.asarray(freedom / 2, dtype), jnp.asarray(0.5, dtype)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        beyond = betainc(a, b, 1 / (1 + middle**2 / freedom)) > 1 - level
        return jnp.where(beyond, middle, low), jnp.where(beyond, high, middle)

    wide = lax.while_loop(
        lambda t: betainc(a, b, 1 / (1 + t**2 / freedom)) > 1 - level, lambda t: 2 * t, jnp.ones((), dtype)
    )
    low, high = lax.fori_loop(0, 64, halve, (jnp.zeros((), dtype), wide))
    return (low + high) / 2
