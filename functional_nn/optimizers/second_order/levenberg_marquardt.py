"""Levenberg-Marquardt: Gauss-Newton steps, damped as far as F asks for; and Bayesian regularization on top of it.

Letters: P parameters, N residuals r, J = dr/dparams (N, P), A = J^T J, F = r^T r; a step delta solves
(A + mu D^2) delta = -J^T r, D = I (Levenberg) or D^2 the largest diagonal of A met so far (Marquardt, scaled as More).

dF/dx = 2 J^T r and H = 2 (A + sum_i r_i d2r_i/dx2); Gauss-Newton leaves the sum out, which is small where residuals
are small or nearly linear. delta is the minimum of |r + J delta|^2 + mu |D delta|^2, a Gauss-Newton step for mu = 0
and, for mu large, -D^-2 J^T r / mu, a short one against the gradient; its predicted decrease is

    |r|^2 - |r + J delta|^2 = -(2 r^T J delta + delta^T A delta) = delta^T (mu D^2 delta - J^T r) > 0

Among the samples: (J^T J + mu I) J^T = J^T (J J^T + mu I), so that delta = -J^T (J J^T + mu I)^-1 r.

mu from a trust region: `least_squares_region`.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from functional_nn import checks, linalg, precision
from functional_nn.optimizers.second_order.least_squares_region import TrustRegion
from functional_nn.optimizers.second_order.method import (
    BUDGET,
    CHANGE,
    GRADIENT,
    NO_EVIDENCE,
    RUNNING,
    Here,
    Move,
    SecondOrder,
    choice,
    constant,
    counts,
    landed,
    no_verdict,
    register,
)

_GROWS = (lambda v: v > 1, "a number > 1")
_SHRINKS = (lambda v: (v > 0) & (v < 1), "in (0, 1)")
_SETTLED = 1e-4  # Bayesian regularization: the fit has settled where a step lowers F by no more than this share of it
_FIRST, _STILL = 100, 25  # steps of the first fit, of which a settled one counts for so many and divides the penalty by
# 10, to leave a plateau, as where a network is still linear
_LIGHT = 1e-2  # and until then alpha / beta is this share of the curvature, or of F at x = 0 for each |x|^2
_SMALL = 256  # parameters: of more, singular values take too long beside a factorization
_NONE = 0.5  # gamma below it rounds to 0 parameters


class Evidence(NamedTuple):
    """Of Bayesian regularization, F_B = beta F + alpha |x|^2: alpha, beta, and gamma, the effective number of
    parameters, P - 2 alpha tr((2 beta A + 2 alpha I)^-1).
    """

    alpha: Array
    beta: Array
    gamma: Array


class LMMemory(NamedTuple):
    """mu; growth: what mu is multiplied by when the next step is refused; scale: D^2 (P,), None where it is I;
    residuals (N,); matrix: A (P, P), J (N, P) for "qr", or J J^T (N, N) where the step is solved among the samples;
    evidence, or None; waits: steps that the evidence still waits for, int32, or None.
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
    """Levenberg-Marquardt: delta = -(J^T J + mu D^2)^-1 J^T r (Hagan and Menhaj 1994, Eq. 13; NND2 12).

    rule, how mu is found: "trust_region", of More (1978): the step is the best one of length |D delta| <= Delta, and
    Delta, which begins at `radius` times |D x|, follows how well F was foretold; the equations are solved by the
    singular values of J. "factor", of Hagan and Menhaj: where F falls the step is made and mu is multiplied by
    `decrease`, else it is not made and mu is multiplied by `increase`; mu begins at `mu` itself (1e-3). "gain_ratio",
    of Nielsen (1999, Eq. 2.5): with rho the decrease of F over the one predicted, mu is multiplied by max(`decrease`, 1
    - (2 rho - 1)^3) where F falls, else by 2, 4, 8, ...; mu begins at `mu` times the largest diagonal of A, or, among
    the samples, of J J^T (Nielsen's decrease is 1/3). The method gives up where mu is beyond `largest`, which without
    scaling counts in units of A's largest diagonal, or, among the samples, of its mean. "auto": "trust_region" of
    `problem_from` with up to 256 parameters, "gain_ratio" of a network, and where `mu` is given.
    scaling: D = I ("identity"), or D^2 the running maximum of A's diagonal ("marquardt": More 1978), which makes every
    step independent of the units of F and of each parameter. "auto": of a network the identity; of `problem_from`,
    whose parameters may be of any magnitude, Marquardt's; with mu given, where there are as many residuals as
    parameters or more.
    space: where the equations are solved: for the parameters, (P, P), or, where there are fewer residuals, among the
    samples: delta = -J^T (J J^T + mu I)^-1 r, (N, N), in which a network never forms J; "auto" takes the smaller, and
    the parameters where `scaling` is not the identity.

    solver: in the parameters' space, "cholesky" of A + mu D^2, or "qr" of J over sqrt(mu) D, which does not square the
    condition number: twice to four times the work, for problems where the last digits matter. "auto": by a trust region
    "qr" (with "cholesky" it takes the eigenvalues of A), else "cholesky".
    geodesic: with a trust region, the step is bent along r's second derivative in its direction (Transtrum and Sethna
    2012), one product more a step: fewer steps along curved valleys.

    Bounds of `problem_from` are kept by a trust region alone: a parameter at a bound that F would leave is held there,
    and a step is cut off at the bounds.

    One step tries one mu; a step refused keeps its Jacobian. Where F is a mean, so are the squares of r: mu then counts
    for as many times more. minibatches=True lets `fit` give another batch to every step, on which F is compared before
    and after. Raises ValueError for constants out of range, a problem without residuals, and a matrix above `budget`.
    """
    name = "levenberg_marquardt"
    constants = _constants(
        name, 1e-3 if mu is None else mu, rule, decrease, increase, largest, ("auto", "trust_region")
    )
    choice(name, "scaling", scaling, ("auto", "identity", "marquardt"))
    choice(name, "space", space, ("auto", "parameters", "samples"))
    choice(name, "solver", solver, ("auto", "cholesky", "qr"))
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
    """Levenberg-Marquardt on F_B = beta F + alpha |x|^2, whose alpha and beta are found on the way: MacKay 1992 (Eq.
    2.14, 4.8-4.10), Foresee and Hagan 1997 (Sec. 3).

    After every step made, gamma = P - 2 alpha tr((2 beta A + 2 alpha I)^-1), alpha = gamma / (2 |x|^2) and beta =
    (N - gamma) / (2 F); gamma, the number of parameters that the data determine, stands in `state.memory.evidence`.
    value and gradient are of F and of F_B / beta. Other arguments as `levenberg_marquardt`; the penalty needs the
    matrix of the parameters. Data of unit scale suit it: all parameters are penalized alike.

    wait: the equations hold at a minimum of F_B (MacKay 1992, Sec. 4). Far from one, F is large because nothing is
    fitted yet, which they take for noise: beta is small, the penalty then keeps the network from fitting, and all
    parameters may go to 0. With True a first fit comes before: under a light penalty, alpha / beta at 1e-2 times the
    lesser of tr A / P and F(0) / |x|^2 at the start, in place of the paper's alpha = 0, with which fewer data than
    parameters leave nothing for beta. A step that lowers F, or would, by no more than 1e-4 of itself has settled: the
    penalty is then divided by 10, since it may be what keeps the network on a plateau, as a linear one. The first fit
    ends after four such steps, or 100 steps, of which each that settled takes 25; or where F is below the penalty. With
    False the equations are used from the start, where gamma is P, or half of N if less.

    Where it has converged and gamma is below 1/2, the data determine no parameter, and the status is "no_evidence".
    Raises TypeError where `wait` is no bool, and ValueError as `levenberg_marquardt`.
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


def _constants(name, mu, rule, decrease, increase, largest, more: tuple[str, ...] = ()) -> dict[str, Any]:
    choice(name, "rule", rule, ("factor", "gain_ratio", *more))
    return {
        "mu": constant(name, "mu", mu, checks.POSITIVE),
        "rule": rule,
        "decrease": constant(name, "decrease", decrease, _SHRINKS),
        "increase": constant(name, "increase", increase, _GROWS),
        "largest": constant(name, "largest", largest, checks.POSITIVE),
    }


def _method(name: str, made_of: dict[str, Any], bayesian: bool) -> SecondOrder:
    rule, decrease, increase, largest = (made_of[each] for each in ("rule", "decrease", "increase", "largest"))
    mu, ratio_rule = 1e-3 if made_of["mu"] is None else made_of["mu"], rule != "factor"
    scaling, space, orthogonal = made_of["scaling"], made_of["space"], made_of["solver"] == "qr"
    geodesic = made_of.get("geodesic", False)
    trusted = TrustRegion(made_of.get("radius"), scaling != "identity", made_of["solver"] != "cholesky", geodesic)

    def by_radius(flat) -> bool:
        if rule != "auto" or geodesic or flat.bounds is not None:
            return rule in ("auto", "trust_region")
        return flat.measured and flat.size <= _SMALL and made_of["mu"] is None and space != "samples"

    def among_samples(size: int, count: int | None) -> bool:
        fewer = scaling != "marquardt" and not orthogonal and count is not None and count < size
        return space == "samples" or (space == "auto" and fewer)

    def scales(flat, count: int) -> bool:
        """Is D other than I?"""
        own = flat.measured and space != "samples" and count >= flat.size
        return scaling == "marquardt" or (scaling == "auto" and own)

    def linearize(flat, x):
        """r, J^T r, the matrix that is kept, and the diagonal of A, or of J J^T."""
        if among_samples(flat.size, flat.residual_count()):
            r, K, pull = flat.kernel(x)
            return r, pull(r), K, jnp.diagonal(K)
        r, J = flat.jacobian(x)
        if orthogonal:
            return r, r @ J, J, jnp.sum(J**2, axis=0)
        A = J.T @ J
        return r, r @ J, A, jnp.diagonal(A)

    def look(flat, x, memory):
        if by_radius(flat):
            return trusted.look(flat, x, memory)
        r, slope, matrix, diagonal = linearize(flat, x)
        value, scaled = jnp.vdot(r, r), scales(flat, r.size)
        if memory is None:
            first = jnp.asarray(mu, x.dtype)
            if ratio_rule:
                first = first * (1 if scaled else jnp.max(diagonal))
            growth = jnp.asarray(2.0 if ratio_rule else increase, x.dtype)
            gamma = jnp.full((), min(x.size, r.size / 2), x.dtype)
            evidence = _weighed(gamma, x, value, r.size) if bayesian else None
            waits = jnp.asarray(_FIRST if made_of["wait"] else 0, jnp.int32) if bayesian else None
            if bayesian and made_of["wait"]:
                evidence = evidence._replace(alpha=evidence.beta * _light(flat, x, value, diagonal))
            memory = LMMemory(first, growth, diagonal if scaled else None, r, matrix, evidence, waits)
        else:
            scale = jnp.maximum(memory.scale, diagonal) if scaled else None
            evidence, waits = None, None
            if bayesian:
                before, light = jnp.vdot(memory.residuals, memory.residuals), memory.evidence
                settled = (memory.waits > 0) & (before - value <= _SETTLED * before)
                below = value <= light.alpha / light.beta * jnp.vdot(x, x)
                lighter, left = _lighter(light, memory.waits, settled)
                waits = jnp.where(below, 0, left)
                evidence = lax.cond(waits > 0, lambda: lighter, lambda: _evidence(light, matrix, x, value, r.size))
            memory = memory._replace(residuals=r, matrix=matrix, scale=scale, evidence=evidence, waits=waits)
        gradient = 2 * slope
        if bayesian:
            gradient = gradient + 2 * (memory.evidence.alpha / memory.evidence.beta) * x
        return Here(x, value, gradient, memory, counts(values=1, matrices=1))

    def move(flat, here: Here) -> Move:
        if by_radius(flat):
            return trusted.move(flat, here)
        memory, slope = here.memory, here.gradient / 2  # J^T r, and the penalty's part
        scaled = memory.scale is not None
        penalty = memory.evidence.alpha / memory.evidence.beta if bayesian else 0.0
        square = _square(memory.scale, flat) if scaled else jnp.ones(flat.size, flat.dtype)
        if among_samples(flat.size, memory.residuals.size):
            damped = memory.matrix + memory.mu * jnp.eye(memory.residuals.size, dtype=flat.dtype)
            y, broken = _sound(linalg.positive_solve(damped, memory.residuals))
            delta = -flat.kernel(here.x)[2](y)
        elif orthogonal:
            above = jnp.concatenate([memory.matrix, jnp.diag(jnp.sqrt(memory.mu * square))])
            right = jnp.concatenate([-memory.residuals, jnp.zeros_like(square)])
            delta, broken = _sound(linalg.least_squares(above, right))
        else:
            damped = memory.matrix + jnp.diag(penalty + memory.mu * square)
            delta, broken = _sound(linalg.positive_solve(damped, -slope))
        # What the parabola predicts of F: -2 delta' J'r - delta' A delta, with A delta from the equation solved
        predicted = jnp.vdot(delta, memory.mu * square * delta - slope)
        x = here.x + delta
        value = flat.value(x)

        def objective(value, x):
            return value + penalty * jnp.vdot(x, x)

        fall = objective(here.value, here.x) - objective(value, x)
        ratio = fall / jnp.where(predicted > 0, predicted, 1)
        made = ~broken & jnp.isfinite(value) & (fall > 0) & (predicted > 0)
        if ratio_rule:
            eased = memory.mu * jnp.maximum(decrease, 1 - (2 * jnp.where(made, ratio, 1) - 1) ** 3)
            growth = jnp.where(made, 2, 2 * memory.growth)
        else:
            eased, growth = memory.mu * decrease, memory.growth
        mu = jnp.where(made, jnp.maximum(eased, jnp.finfo(x.dtype).tiny), memory.mu * memory.growth)

        def stay():
            return here

        if bayesian:
            # a step that is refused, and was worth little, as at a minimum of F, has settled, too
            settled = (memory.waits > 0) & ~broken & (predicted <= _SETTLED * here.value)

            def stay():
                return lax.cond(settled, lambda: _settled(here), lambda: here)

        after = lax.cond(made, lambda: landed(flat, look, here, x, value, memory), stay)
        # A Jacobian comes with its residuals, but those at x were the trial's already.
        asked = counts(values=1, matrices=after.counts.matrices)
        after = after._replace(memory=after.memory._replace(mu=mu, growth=growth), counts=asked)
        expected = jnp.where(broken, precision.largest(x.dtype), jnp.where(made, 0, predicted))
        # mu counts beside D^-1 A D^-1, whose diagonal is 1 at most, or beside A
        most = largest if scaled else largest * jnp.max(diagonal(flat, memory))
        return Move(after, delta, ~made & ~(mu <= most), broken, expected)

    def diagonal(flat, memory: LMMemory) -> Array:
        """(P,), of A; among the samples the mean of it, which is all that J J^T tells."""
        if among_samples(flat.size, memory.residuals.size):
            return jnp.full(flat.size, jnp.trace(memory.matrix) / flat.size, flat.dtype)
        return jnp.sum(memory.matrix**2, axis=0) if orthogonal else jnp.diagonal(memory.matrix)

    def stationary(flat, state, x0, tolerance):
        """Of the residuals, to which the penalty's, sqrt(alpha / beta) x, belong."""
        if by_radius(flat):
            return trusted.stationary(flat, state, x0, tolerance)
        memory, x, eps = state.memory, flat.flatten(state.params), jnp.finfo(flat.dtype).eps
        penalty = memory.evidence.alpha / memory.evidence.beta if bayesian else 0.0
        squares = diagonal(flat, memory) + penalty
        length = jnp.sqrt(squares)
        r = jnp.sqrt(state.value + penalty * jnp.vdot(x, x))
        # a minimum at x = 0 is as near as it can be told from where the run began
        w = jnp.maximum(jnp.abs(x), eps**0.5 * jnp.abs(x0))
        rounding = 4 * eps * jnp.linalg.norm(length * w)
        return jnp.all(jnp.abs(state.gradient) / 2 <= length * (tolerance * r + rounding))

    def elements(size: int, count: int | None) -> int:
        return count**2 if among_samples(size, count) else size * max(size, count or 0)

    return SecondOrder(
        name,
        look,
        move,
        made_of,
        ("residuals", "jacobian"),
        full_batch=not made_of["minibatches"],
        elements=elements,
        budget=made_of["budget"],
        stationary=stationary,
        verdict=_verdict if bayesian else no_verdict,
        bounded=rule in ("auto", "trust_region"),
    )


def _square(scale: Array, flat) -> Array:
    # a parameter that F does not depend on, here, is damped like the others
    return jnp.where(scale > 0, scale, jnp.maximum(jnp.max(scale), jnp.finfo(flat.dtype).tiny))


def _sound(found: Array) -> tuple[Array, Array]:
    """The solution, and whether there is none, for want of a matrix that can be inverted: then 0."""
    sound = jnp.all(jnp.isfinite(found))
    return jnp.where(sound, found, 0), ~sound


def _evidence(last: Evidence, A: Array, x: Array, value: Array, count: int) -> Evidence:
    """Foresee and Hagan 1997, step 4: gamma by the last alpha and beta, then both anew."""
    alpha, beta, _ = last
    values = jnp.maximum(linalg.eigh(A)[0], 0)  # below 0 by rounding alone
    determined = jnp.where(values > 0, values / (values + alpha / beta), 0)
    gamma = jnp.sum(determined)  # P - alpha tr((beta A + alpha I)^-1), without its cancellation
    return _weighed(gamma, x, value, count)


def _weighed(gamma: Array, x: Array, value: Array, count: int) -> Evidence:
    free = jnp.maximum(count - gamma, jnp.finfo(x.dtype).eps * count)
    # 0 parameters, or F = 0, leave both finite
    least = 4 * max(count, x.size) * jnp.finfo(x.dtype).tiny
    return Evidence(gamma / jnp.maximum(2 * jnp.vdot(x, x), least), free / jnp.maximum(2 * value, least), gamma)


def _light(flat, x: Array, value: Array, diagonal: Array) -> Array:
    """alpha / beta during the first fit: small beside the curvature, and beside F for F in any unit."""
    tiny = jnp.finfo(x.dtype).tiny
    without = flat.value(jnp.zeros_like(x))  # F of the prior's mean; a random start may be far above it
    level = jnp.where(jnp.isfinite(without), jnp.minimum(without, value), value)
    return _LIGHT * jnp.minimum(jnp.mean(diagonal), level / jnp.maximum(jnp.vdot(x, x), tiny))


def _lighter(light: Evidence, waits: Array, settled: Array | bool) -> tuple[Evidence, Array]:
    """After a step of the first fit: the penalty, a tenth as large where it has settled, and the steps left."""
    alpha = jnp.where(settled, light.alpha / 10, light.alpha)
    left = waits - jnp.where(settled, _STILL, 1).astype(jnp.int32)
    return light._replace(alpha=alpha), jnp.maximum(left, 0)


def _settled(here: Here) -> Here:
    """The same point under a penalty a tenth as large, or with the evidence that the first fit has waited for."""
    memory, x = here.memory, here.x
    last = memory.evidence
    lighter, waits = _lighter(last, memory.waits, True)

    def found():
        return _evidence(last, memory.matrix, x, here.value, memory.residuals.size)

    evidence = lax.cond(waits > 0, lambda: lighter, found)
    gradient = here.gradient + 2 * (evidence.alpha / evidence.beta - last.alpha / last.beta) * x
    return here._replace(gradient=gradient, memory=memory._replace(evidence=evidence, waits=waits))


def _verdict(before: LMMemory, memory: LMMemory, status: Array) -> Array:
    """The first fit is no end, nor is the step that ends it; and an end at which gamma is 0 has a status of its own."""
    converged = (status == GRADIENT) | (status == CHANGE)
    status = jnp.where(converged & (memory.evidence.gamma < _NONE), NO_EVIDENCE, status)
    unjudged = (memory.waits > 0) | ((before.waits > 0) & (status == CHANGE))
    return jnp.where(converged & unjudged, RUNNING, status)
