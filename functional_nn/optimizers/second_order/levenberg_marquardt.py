r"""Levenberg-Marquardt: Gauss-Newton steps, damped as far as F requires; and Bayesian regularization on top of it.

Letters: P parameters, N residuals r, J = dr/dparams (N, P), :math:`A = J^T J`, :math:`F = r^T r`, :math:`\delta` a
step, :math:`\mu` its damping, D = I (Levenberg) or :math:`D^2` the largest diagonal of A met so far (Marquardt, as More
scales). The derivatives of F are

.. math::
    \frac{\partial F}{\partial x} = 2 J^T r, \qquad
    H = 2 \Big( A + \sum_i r_i \frac{\partial^2 r_i}{\partial x^2} \Big)

Gauss-Newton leaves the sum out, which is small where residuals are small or nearly linear. A step solves

.. math:: (A + \mu D^2) \, \delta = -J^T r

It is the minimum of :math:`\lVert r + J \delta \rVert^2 + \mu \lVert D \delta \rVert^2`: a Gauss-Newton step for
:math:`\mu = 0` and, for large :math:`\mu`, a short step against the gradient, :math:`-D^{-2} J^T r / \mu`. Its
predicted decrease is

.. math::
    \lVert r \rVert^2 - \lVert r + J \delta \rVert^2 = -(2 r^T J \delta + \delta^T A \delta)
    = \delta^T (\mu D^2 \delta - J^T r) > 0

Among the samples the same step needs only an (N, N) matrix. As
:math:`(J^T J + \mu I) J^T = J^T (J J^T + \mu I)`,

.. math:: \delta = -J^T (J J^T + \mu I)^{-1} r

`least_squares_region` finds :math:`\mu` from a trust region.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks, linalg, precision
from functional_nn.optimizers.second_order.least_squares_region import TrustRegion
from functional_nn.optimizers.second_order.method import (
    BUDGET,
    SecondOrder,
    constant,
    evaluation_at,
    keep_status,
    register,
)
from functional_nn.optimizers.second_order.problem import FlatProblem
from functional_nn.optimizers.second_order.state import CHANGE, GRADIENT, NO_EVIDENCE, RUNNING, Evaluation, Move, counts

_GROWS = (lambda v: v > 1, "a number > 1")
_SHRINKS = (lambda v: (v > 0) & (v < 1), "in (0, 1)")
# Bayesian regularization: the first fit has stalled where a step lowers F by no more than this share of it
_STALLED = 1e-4
# The steps of the first fit, and how many of them a stalled one counts. A stalled step divides the penalty by 10, to
# leave a plateau, such as a network that is still linear.
_FIRST_FIT, _STALLED_STEPS = 100, 25
_LIGHT = 1e-2  # during it alpha / beta is this share of the curvature, or of F at x = 0 for each |x|^2
_FEW_PARAMETERS = 256  # with more, singular values take too long compared to a factorization
_NO_PARAMETER = 0.5  # gamma below it rounds to 0 parameters


class Evidence(NamedTuple):
    r"""The constants of Bayesian regularization, :math:`F_B = \beta F + \alpha \lVert x \rVert^2`.

    Attributes:
        alpha: The weight of the penalty.
        beta: The weight of F.
        gamma: The effective number of parameters, :math:`P - 2 \alpha \, \mathrm{tr}((2 \beta A + 2 \alpha I)^{-1})`.
    """

    alpha: Array
    beta: Array
    gamma: Array


class LMMemory(NamedTuple):
    """The memory of Levenberg-Marquardt without a trust region.

    Attributes:
        mu: The damping.
        growth: The factor of mu when the next step is refused.
        scale: D^2 (P,), None where it is I.
        residuals: r (N,).
        matrix: A (P, P), J (N, P) for "qr", or J J^T (N, N) where the step is solved among the samples.
        evidence: The constants of Bayesian regularization, or None.
        waits: The steps that the evidence still waits for, int32, or None.
    """

    mu: Array
    growth: Array
    scale: Array | None
    residuals: Array
    matrix: Array
    evidence: Evidence | None
    waits: Array | None = None


@register
def levenberg_marquardt(
    mu: float | Array | None = None,
    rule: Literal["auto", "factor", "gain_ratio", "trust_region"] = "auto",
    decrease: float | Array = 0.1,
    increase: float | Array = 10.0,
    largest: float | Array = 1e10,
    radius: float | Array = 1.0,
    scaling: Literal["auto", "identity", "marquardt"] = "auto",
    space: Literal["auto", "parameters", "samples"] = "auto",
    solver: Literal["auto", "cholesky", "qr"] = "auto",
    geodesic: bool = False,
    minibatches: bool = False,
    budget: int = BUDGET,
) -> SecondOrder:
    r"""Levenberg-Marquardt: damped Gauss-Newton steps, for least squares.

    .. math:: \delta = -(J^T J + \mu D^2)^{-1} J^T r

    One step tries one :math:`\mu`; a step that is refused keeps its Jacobian. Where F is a mean, so are the squares of
    r: then :math:`\mu` counts for as many times more. Bounds of `problem_from` are kept by a trust region only: a
    parameter at a bound that F would leave is held there, and a step is cut off at the bounds.

    Args:
        mu: The first :math:`\mu`, > 0, for the rules "factor" and "gain_ratio"; 1e-3 by default.
        rule: How :math:`\mu` is found. "trust_region" (More 1978): the step is the best one of length :math:`\lVert D
            \delta \rVert \le \Delta`, and :math:`\Delta`, which begins at `radius` times :math:`\lVert D x \rVert`,
            follows how well F was predicted; the equations are solved by the singular values of J. "factor" (Hagan and
            Menhaj): where F falls the step is made and :math:`\mu` is multiplied by `decrease`; else it is not made and
            :math:`\mu` is multiplied by `increase`; :math:`\mu` begins at `mu` itself. "gain_ratio" (Nielsen 1999, Eq.
            2.5): with :math:`\rho` the decrease of F over the predicted one, :math:`\mu` is multiplied by
            :math:`\max(\mathrm{decrease}, 1 - (2 \rho - 1)^3)` where F falls, else by 2, 4, 8, ...; :math:`\mu` begins
            at `mu` times the largest diagonal of A, or, among the samples, of :math:`J J^T`. "auto": "trust_region" for
            problems of `problem_from` with up to 256 parameters, "gain_ratio" for a network, and where `mu` is given.
        decrease: In (0, 1); Nielsen's is 1/3.
        increase: > 1.
        largest: The method gives up where :math:`\mu` is above it, > 0. Without scaling it counts in units of A's
            largest diagonal, or, among the samples, of its mean.
        radius: Of the first trust region, > 0.
        scaling: "identity": D = I. "marquardt": :math:`D^2` is the running maximum of A's diagonal (More 1978), which
            makes every step independent of the units of F and of each parameter. "auto": the identity for a network;
            Marquardt's for `problem_from`, whose parameters may have any magnitude, except with `mu` given and fewer
            residuals than parameters.
        space: Where the equations are solved. "parameters": (P, P). "samples": (N, N), without forming J for a network.
            "auto": the smaller; the parameters' where `scaling` is not the identity.
        solver: In the parameters' space, "cholesky" of :math:`A + \mu D^2`, or "qr" of J over :math:`\sqrt \mu D`,
            which does not square the condition number: two to four times the work, for problems where the last digits
            matter. "auto": "qr" with a trust region (where "cholesky" takes the eigenvalues of A), else "cholesky".
        geodesic: With a trust region, whether the step is bent along the second derivative of r in its direction
            (Transtrum and Sethna 2012): one product more a step, and fewer steps along curved valleys.
        minibatches: Whether `fit` may use another batch for every step, on which F is compared before and after.
        budget: The bytes that the largest matrix may take.

    Returns:
        The method.

    Raises:
        ValueError: A constant is out of range, two arguments contradict each other, or (in `init`) the problem has no
            residuals or needs a matrix above the budget.

    References:
        Hagan and Menhaj 1994, Eq. 13; NND2, ch. 12.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> t = jnp.linspace(0.0, 2.0, 9)
        >>> data = jnp.exp(-1.5 * t) + 0.25
        >>> problem = optimizers.problem_from(residuals=lambda x: jnp.exp(-x[0] * t) + x[1] - data)
        >>> solution = optimizers.minimize(problem, optimizers.levenberg_marquardt(), jnp.zeros(2))
        >>> solution.status, [round(float(x), 3) for x in solution.params]
        ('gradient', [1.5, 0.25])
    """
    name = "levenberg_marquardt"
    constants = _constants(
        name, 1e-3 if mu is None else mu, rule, decrease, increase, largest, ("auto", "trust_region")
    )
    checks.one_of(name, "scaling", scaling, ("auto", "identity", "marquardt"))
    checks.one_of(name, "space", space, ("auto", "parameters", "samples"))
    checks.one_of(name, "solver", solver, ("auto", "cholesky", "qr"))
    checks.boolean(name, "geodesic", geodesic)
    checks.boolean(name, "minibatches", minibatches)
    checks.integer(name, "budget", budget, 1)
    constants |= {
        "mu": None if mu is None else constants["mu"],
        "radius": constant(name, "radius", radius, checks.POSITIVE),
        "scaling": scaling,
        "space": space,
        "solver": solver,
        "geodesic": geodesic,
        "minibatches": minibatches,
        "budget": budget,
    }
    if space == "samples" and (scaling == "marquardt" or solver == "qr"):
        raise ValueError(
            f"{name}: space='samples' solves with J J^T, which takes scaling='identity' or 'auto' and "
            "solver='cholesky' or 'auto'; space='parameters' or 'auto' takes every scaling and solver; for scaling and "
            f"solver got {scaling!r} and {solver!r}"
        )
    if (geodesic or rule == "trust_region") and (mu is not None or space == "samples"):
        raise ValueError(
            f"{name}: a trust region finds mu itself, in the parameters' space; it takes radius=, and mu and "
            f"space='samples' go with rule='gain_ratio' and 'factor'; got mu={mu} and space={space!r}"
        )
    if geodesic and rule not in ("auto", "trust_region"):
        raise ValueError(f"{name}: geodesic=True goes with rule='trust_region', got rule={rule!r}")
    return _method(name, constants, bayesian=False)


@register
def bayesian_regularization(
    mu: float | Array = 5e-3,
    rule: Literal["factor", "gain_ratio"] = "gain_ratio",
    decrease: float | Array = 0.1,
    increase: float | Array = 10.0,
    largest: float | Array = 1e10,
    wait: bool = True,
    budget: int = BUDGET,
) -> SecondOrder:
    r"""Levenberg-Marquardt with a penalty whose weight is estimated from the data.

    It minimizes

    .. math:: F_B = \beta F + \alpha \lVert x \rVert^2

    and after every step made it sets

    .. math::
        \begin{aligned}
        \gamma &= P - 2 \alpha \, \mathrm{tr}\big((2 \beta A + 2 \alpha I)^{-1}\big) \\
        \alpha &= \frac{\gamma}{2 \lVert x \rVert^2} \\
        \beta &= \frac{N - \gamma}{2 F}
        \end{aligned}

    :math:`\gamma`, in `state.memory.evidence`, is the number of parameters that the data determine. The state's `value`
    is F, and its `gradient` that of :math:`F_B / \beta`. The penalty needs the matrix of the parameters. Data of unit
    scale suit it, since all parameters are penalized alike. Where the run has converged and :math:`\gamma` is below
    1/2, the data determine no parameter, and the status is "no_evidence".

    These equations hold at a minimum of :math:`F_B` (MacKay 1992, Sec. 4). Far from one, F is large because nothing is
    fitted yet, and the equations take that for noise: :math:`\beta` is small, the penalty keeps the network from
    fitting, and all parameters may go to 0. Therefore `wait` makes a first fit under a light penalty, with
    :math:`\alpha / \beta` at 1e-2 times the smaller of :math:`\mathrm{tr} A / P` and :math:`F(0) / \lVert x \rVert^2`
    at the start; the paper's :math:`\alpha = 0` would leave nothing for :math:`\beta` where there are fewer data than
    parameters. Where a step lowers F, or would lower it, by no more than 1e-4 of itself, the fit has stalled. The
    penalty is then divided by 10, since it may be what keeps the network on a plateau, such as a linear one. The first
    fit ends after 100 steps, of which a stalled one counts 25 (so after four of those at the latest), or where F is
    below the penalty.

    Args:
        mu: As in `levenberg_marquardt`.
        rule: "factor" or "gain_ratio", as in `levenberg_marquardt`.
        decrease: As in `levenberg_marquardt`.
        increase: As in `levenberg_marquardt`.
        largest: As in `levenberg_marquardt`.
        wait: Whether a first fit comes before the equations. Without it they are used from the start, where
            :math:`\gamma` is P, or N / 2 if that is less.
        budget: The bytes that the largest matrix may take.

    Returns:
        The method.

    Raises:
        ValueError: As `levenberg_marquardt`.

    References:
        MacKay 1992, Eq. 2.14 and 4.8-4.10; Foresee and Hagan 1997, Sec. 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> t = jnp.linspace(-1.0, 1.0, 9)
        >>> problem = optimizers.problem_from(residuals=lambda x: x[0] * t + x[1] * t**3 - jnp.sin(t))
        >>> solution = optimizers.minimize(problem, optimizers.bayesian_regularization(), jnp.ones(2))
        >>> solution.status, round(float(solution.state.memory.evidence.gamma))
        ('gradient', 2)
    """
    constants = _constants("bayesian_regularization", mu, rule, decrease, increase, largest)
    checks.boolean("bayesian_regularization", "wait", wait)
    checks.integer("bayesian_regularization", "budget", budget, 1)
    constants |= {
        "wait": wait,
        "scaling": "identity",
        "space": "parameters",
        "solver": "cholesky",
        "minibatches": False,
        "budget": budget,
    }
    return _method("bayesian_regularization", constants, bayesian=True)


def _constants(
    name: str, mu: Any, rule: str, decrease: Any, increase: Any, largest: Any, more: tuple[str, ...] = ()
) -> dict[str, Any]:
    checks.one_of(name, "rule", rule, ("factor", "gain_ratio", *more))
    return {
        "mu": constant(name, "mu", mu, checks.POSITIVE),
        "rule": rule,
        "decrease": constant(name, "decrease", decrease, _SHRINKS),
        "increase": constant(name, "increase", increase, _GROWS),
        "largest": constant(name, "largest", largest, checks.POSITIVE),
    }


def _method(name: str, constants: dict[str, Any], bayesian: bool) -> SecondOrder:
    rule, decrease, increase, largest = (constants[each] for each in ("rule", "decrease", "increase", "largest"))
    mu, ratio_rule = 1e-3 if constants["mu"] is None else constants["mu"], rule != "factor"
    scaling, space, orthogonal = constants["scaling"], constants["space"], constants["solver"] == "qr"
    geodesic = constants.get("geodesic", False)
    region = TrustRegion(constants.get("radius"), scaling != "identity", constants["solver"] != "cholesky", geodesic)

    def by_radius(flat) -> bool:
        if rule != "auto" or geodesic or flat.bounds is not None:
            return rule in ("auto", "trust_region")
        return flat.measured and flat.size <= _FEW_PARAMETERS and constants["mu"] is None and space != "samples"

    def among_samples(size: int, count: int | None) -> bool:
        fewer = scaling != "marquardt" and not orthogonal and count is not None and count < size
        return space == "samples" or (space == "auto" and fewer)

    def scales(flat, count: int) -> bool:
        """Returns whether D is not I."""
        by_default = flat.measured and space != "samples" and count >= flat.size
        return scaling == "marquardt" or (scaling == "auto" and by_default)

    def linearize(flat, x):
        """Returns r, J^T r, the matrix that is kept, and the diagonal of A, or of J J^T."""
        if among_samples(flat.size, flat.residual_count()):
            r, K, pull = flat.kernel(x)
            return r, pull(r), K, jnp.diagonal(K)
        r, J = flat.jacobian(x)
        if orthogonal:
            return r, r @ J, J, jnp.sum(J**2, axis=0)
        A = J.T @ J
        return r, r @ J, A, jnp.diagonal(A)

    def evaluate(flat, x, memory):
        if by_radius(flat):
            return region.evaluate(flat, x, memory)
        r, slope, matrix, diagonal = linearize(flat, x)
        value, scaled = jnp.vdot(r, r), scales(flat, r.size)
        if memory is None:
            first = jnp.asarray(mu, x.dtype)
            if ratio_rule:
                first = first * (1 if scaled else jnp.max(diagonal))
            growth = jnp.asarray(2.0 if ratio_rule else increase, x.dtype)
            gamma = jnp.full((), min(x.size, r.size / 2), x.dtype)
            evidence = _weighed(gamma, x, value, r.size) if bayesian else None
            waits = jnp.asarray(_FIRST_FIT if constants["wait"] else 0, jnp.int32) if bayesian else None
            if bayesian and constants["wait"]:
                evidence = evidence._replace(alpha=evidence.beta * _light(flat, x, value, diagonal))
            memory = LMMemory(first, growth, diagonal if scaled else None, r, matrix, evidence, waits)
        else:
            scale = jnp.maximum(memory.scale, diagonal) if scaled else None
            evidence, waits = None, None
            if bayesian:
                before, light = jnp.vdot(memory.residuals, memory.residuals), memory.evidence
                stalled = (memory.waits > 0) & (before - value <= _STALLED * before)
                below = value <= light.alpha / light.beta * jnp.vdot(x, x)
                lighter, left = _lighter(light, memory.waits, stalled)
                waits = jnp.where(below, 0, left)
                evidence = lax.cond(waits > 0, lambda: lighter, lambda: _evidence(light, matrix, x, value, r.size))
            memory = memory._replace(residuals=r, matrix=matrix, scale=scale, evidence=evidence, waits=waits)
        gradient = 2 * slope
        if bayesian:
            gradient = gradient + 2 * (memory.evidence.alpha / memory.evidence.beta) * x
        return Evaluation(x, value, gradient, memory, counts(values=1, matrices=1))

    def move(flat, current: Evaluation) -> Move:
        if by_radius(flat):
            return region.move(flat, current)
        memory, slope = current.memory, current.gradient / 2  # J^T r, and the penalty's part
        scaled = memory.scale is not None
        penalty = memory.evidence.alpha / memory.evidence.beta if bayesian else 0.0
        square = _square(memory.scale, flat) if scaled else jnp.ones(flat.size, flat.dtype)
        if among_samples(flat.size, memory.residuals.size):
            damped = memory.matrix + memory.mu * jnp.eye(memory.residuals.size, dtype=flat.dtype)
            y, broken = _finite(linalg.positive_solve(damped, memory.residuals))
            delta = -flat.kernel(current.x)[2](y)
        elif orthogonal:
            above = jnp.concatenate([memory.matrix, jnp.diag(jnp.sqrt(memory.mu * square))])
            right = jnp.concatenate([-memory.residuals, jnp.zeros_like(square)])
            delta, broken = _finite(linalg.least_squares(above, right))
        else:
            damped = memory.matrix + jnp.diag(penalty + memory.mu * square)
            delta, broken = _finite(linalg.positive_solve(damped, -slope))
        # The predicted decrease of F, -2 delta' J'r - delta' A delta, with A delta from the equation solved
        predicted = jnp.vdot(delta, memory.mu * square * delta - slope)
        x = current.x + delta
        value = flat.value(x)

        def objective(value, x):
            return value + penalty * jnp.vdot(x, x)

        fall = objective(current.value, current.x) - objective(value, x)
        ratio = fall / jnp.where(predicted > 0, predicted, 1)
        accepted = ~broken & jnp.isfinite(value) & (fall > 0) & (predicted > 0)
        if ratio_rule:
            eased = memory.mu * jnp.maximum(decrease, 1 - (2 * jnp.where(accepted, ratio, 1) - 1) ** 3)
            growth = jnp.where(accepted, 2, 2 * memory.growth)
        else:
            eased, growth = memory.mu * decrease, memory.growth
        mu = jnp.where(accepted, jnp.maximum(eased, jnp.finfo(x.dtype).tiny), memory.mu * memory.growth)

        def stay():
            return current

        if bayesian:
            # a refused step that would have lowered F by little, as at a minimum of F, has stalled, too
            stalled = (memory.waits > 0) & ~broken & (predicted <= _STALLED * current.value)

            def stay():
                return lax.cond(stalled, lambda: _after_stalled_step(current), lambda: current)

        end = lax.cond(accepted, lambda: evaluation_at(flat, evaluate, current, x, value, memory), stay)
        # A Jacobian comes with its residuals, but those at x were the trial's already.
        evaluations = counts(values=1, matrices=end.counts.matrices)
        end = end._replace(memory=end.memory._replace(mu=mu, growth=growth), counts=evaluations)
        expected = jnp.where(broken, precision.largest(x.dtype), jnp.where(accepted, 0, predicted))
        # mu is compared with D^-1 A D^-1, whose diagonal is 1 at most, or with A
        most = largest if scaled else largest * jnp.max(diagonal(flat, memory))
        return Move(end, delta, ~accepted & ~(mu <= most), broken, expected)

    def diagonal(flat, memory: LMMemory) -> Array:
        """Returns the diagonal of A (P,); among the samples its mean, which is all that J J^T determines."""
        if among_samples(flat.size, memory.residuals.size):
            return jnp.full(flat.size, jnp.trace(memory.matrix) / flat.size, flat.dtype)
        return jnp.sum(memory.matrix**2, axis=0) if orthogonal else jnp.diagonal(memory.matrix)

    def stationary(flat, state, x0, tolerance):
        """Returns whether the residuals, including the penalty's, sqrt(alpha / beta) x, are nearly orthogonal to J."""
        if by_radius(flat):
            return region.stationary(flat, state, x0, tolerance)
        memory, x, eps = state.memory, flat.flatten(state.params), jnp.finfo(flat.dtype).eps
        penalty = memory.evidence.alpha / memory.evidence.beta if bayesian else 0.0
        squares = diagonal(flat, memory) + penalty
        length = jnp.sqrt(squares)
        r = jnp.sqrt(state.value + penalty * jnp.vdot(x, x))
        # near a minimum at x = 0 the start says how small is small
        w = jnp.maximum(jnp.abs(x), eps**0.5 * jnp.abs(x0))
        rounding = 4 * eps * jnp.linalg.norm(length * w)
        return jnp.all(jnp.abs(state.gradient) / 2 <= length * (tolerance * r + rounding))

    def elements(size: int, count: int | None) -> int:
        return count**2 if among_samples(size, count) else size * max(size, count or 0)

    return SecondOrder(
        name,
        evaluate,
        move,
        constants,
        ("residuals", "jacobian"),
        full_batch=not constants["minibatches"],
        elements=elements,
        budget=constants["budget"],
        stationary=stationary,
        verdict=_verdict if bayesian else keep_status,
        bounded=rule in ("auto", "trust_region"),
    )


def _square(scale: Array, flat: FlatProblem) -> Array:
    """Returns D^2, positive: a parameter that F does not depend on at this point is damped like the others."""
    return jnp.where(scale > 0, scale, jnp.maximum(jnp.max(scale), jnp.finfo(flat.dtype).tiny))


def _finite(solution: Array) -> tuple[Array, Array]:
    """Returns the solution, or 0 where the matrix has no inverse, and whether that is so."""
    finite = jnp.all(jnp.isfinite(solution))
    return jnp.where(finite, solution, 0), ~finite


def _evidence(last: Evidence, A: Array, x: Array, value: Array, count: int) -> Evidence:
    """Returns gamma from the last alpha and beta, then both again: Foresee and Hagan 1997, step 4."""
    alpha, beta, _ = last
    values = jnp.maximum(linalg.eigh(A)[0], 0)  # negative by rounding only
    determined = jnp.where(values > 0, values / (values + alpha / beta), 0)
    gamma = jnp.sum(determined)  # P - alpha tr((beta A + alpha I)^-1), without its cancellation
    return _weighed(gamma, x, value, count)


def _weighed(gamma: Array, x: Array, value: Array, count: int) -> Evidence:
    """Returns the evidence with this gamma."""
    freedom = jnp.maximum(count - gamma, jnp.finfo(x.dtype).eps * count)
    # with 0 parameters, or F = 0, both stay finite
    least = 4 * max(count, x.size) * jnp.finfo(x.dtype).tiny
    return Evidence(gamma / jnp.maximum(2 * jnp.vdot(x, x), least), freedom / jnp.maximum(2 * value, least), gamma)


def _light(flat: FlatProblem, x: Array, value: Array, diagonal: Array) -> Array:
    """Returns alpha / beta during the first fit: small compared to the curvature, and to F in any unit."""
    tiny = jnp.finfo(x.dtype).tiny
    at_zero = flat.value(jnp.zeros_like(x))  # F of the prior's mean; a random start may be far above it
    level = jnp.where(jnp.isfinite(at_zero), jnp.minimum(at_zero, value), value)
    return _LIGHT * jnp.minimum(jnp.mean(diagonal), level / jnp.maximum(jnp.vdot(x, x), tiny))


def _lighter(light: Evidence, waits: Array, stalled: Array | bool) -> tuple[Evidence, Array]:
    """Returns the penalty after a step of the first fit, a tenth as large where it stalled, and the steps left."""
    alpha = jnp.where(stalled, light.alpha / 10, light.alpha)
    left = waits - jnp.where(stalled, _STALLED_STEPS, 1).astype(jnp.int32)
    return light._replace(alpha=alpha), jnp.maximum(left, 0)


def _after_stalled_step(current: Evaluation) -> Evaluation:
    """Returns the same point with a tenth of the penalty, or with the evidence that the first fit has waited for."""
    memory, x = current.memory, current.x
    last = memory.evidence
    lighter, waits = _lighter(last, memory.waits, True)

    def estimated():
        return _evidence(last, memory.matrix, x, current.value, memory.residuals.size)

    evidence = lax.cond(waits > 0, lambda: lighter, estimated)
    gradient = current.gradient + 2 * (evidence.alpha / evidence.beta - last.alpha / last.beta) * x
    return current._replace(gradient=gradient, memory=memory._replace(evidence=evidence, waits=waits))


def _verdict(before: Any, memory: Any, status: Array) -> Array:
    """Returns the status: the first fit and its last step do not end the run.

    An end at which gamma is 0 has its own status.
    """
    converged = (status == GRADIENT) | (status == CHANGE)
    status = jnp.where(converged & (memory.evidence.gamma < _NO_PARAMETER), NO_EVIDENCE, status)
    first_fit = (memory.waits > 0) | ((before.waits > 0) & (status == CHANGE))
    return jnp.where(converged & first_fit, RUNNING, status)
