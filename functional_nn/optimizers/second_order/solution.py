"""What a run of a second-order method returns: the end, its reason in words, and advice on what to do next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from functional_nn import checks
from functional_nn.optimizers.second_order.state import REASONS, STATUSES, Counts, State
from functional_nn.precision import largest


class Path(NamedTuple):
    """One row a step, each (steps,); nan, and 0 in passes, after the end of the run.

    Attributes:
        value: F after the step.
        gradient_norm: The norm of its gradient.
        length: The length of the move tried, relative to the parameters.
        passes: The number of passes so far.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 2))
        >>> path = optimizers.minimize(problem, "newton", jnp.zeros(2), steps=3).path
        >>> path.value.round(3).tolist(), path.passes.tolist()
        ([0.0, nan, nan], [3, 0, 0])
    """

    value: Array
    gradient_norm: Array
    length: Array
    passes: Array


class Solution(NamedTuple):
    """The result of `minimize` and `restarts`.

    For several runs, as `vmap` and `restarts` make them, each array has a leading axis; `best` is the lowest.

    Attributes:
        params: The last parameters. None before were better, except with `variable_learning_rate`.
        value: F there.
        gradient: dF/dparams there, flat (P,).
        ended: The index of the status in `STATUSES`, int32.
        steps: The number of steps made, int32.
        counts: How often the problem was evaluated.
        damped: The number of steps whose matrix was singular or indefinite and was damped, int32.
        path: One row a step, or None.
        state: The last state, to continue from; None from `restarts`.

    Example:
        >>> import jax.numpy as jnp
        >>> from functional_nn import optimizers
        >>> problem = optimizers.problem_from(lambda x: jnp.sum((x - 1) ** 2))
        >>> solution = optimizers.minimize(problem, "newton", jnp.zeros(2))
        >>> solution.status, int(solution.steps), [round(float(x), 3) for x in solution.params]
        ('gradient', 1, [1.0, 1.0])
        >>> solution.reason
        'converged: the gradient is within tolerance'
    """

    params: Any
    value: Array
    gradient: Array
    ended: Array
    steps: Array
    counts: Counts
    damped: Array
    path: Path | None
    state: State | None

    @property
    def status(self) -> str | np.ndarray:
        """One of `STATUSES`; an array of them for several runs."""
        return _text_of(STATUSES, self.ended)

    @property
    def reason(self) -> str | np.ndarray:
        """The status in words; an array of them for several runs."""
        return _text_of(REASONS, self.ended)

    @property
    def advice(self) -> str | np.ndarray:
        """What to do next, in words, "" where nothing is to be done; an array of them for several runs.

        It says more where the path was kept. Without a state, as from `restarts`, it cannot judge rounding.
        """
        runs = np.ndim(self.ended) and range(len(self.ended))
        if not runs:
            return _advice(jax.tree.map(np.asarray, self))
        return np.asarray([_advice(jax.tree.map(lambda x, k=k: np.asarray(x[k]), self)) for k in runs])

    @property
    def best(self) -> "Solution":
        """The run with the lowest value. Raises ValueError for a single run."""
        if self.value.ndim != 1:
            raise ValueError(f"best: expected several runs side by side, got values of shape {self.value.shape}")
        index = jnp.argmin(jnp.where(jnp.isfinite(self.value), self.value, largest(self.value.dtype)))
        return jax.tree.map(lambda x: x[index], self)

    def __repr__(self) -> str:
        if not checks.is_concrete(self.value) or np.ndim(self.value):
            return f"<solutions, values {self.value}>"
        text = "; ".join(filter(None, (self.reason, self.advice)))
        return f"<solution F = {float(self.value):.6g} after {int(self.steps)} steps: {text}>"


def solution_of(state: State, path: Path | None) -> Solution:
    """Returns the solution that a state stands for."""
    return Solution(
        state.params, state.value, state.gradient, state.status, state.step, state.counts, state.damped, path, state
    )


def _text_of(words: tuple[str, ...], number: Array) -> str | np.ndarray:
    """Returns the word with this number, or an array of words."""
    chosen = np.asarray(words)[np.asarray(number)]
    return chosen if chosen.ndim else str(chosen)


# Advice ---------------------------------------------------------------------------------------------------------------


def _advice(solution: Solution) -> str:
    """Returns `Solution.advice` of one run, whose arrays are NumPy's."""
    status, state, dtype = STATUSES[int(solution.ended)], solution.state, solution.value.dtype
    rounding = float(np.finfo(dtype).eps) * abs(float(solution.value))
    if status == "diverged":
        bad = np.flatnonzero(~np.isfinite(solution.gradient))
        where = f"dF/dx_i is not finite for i = {_first_five(bad)}"
        return (
            f"{where if bad.size else 'F is not finite'}: does F have a minimum? Start elsewhere, or use a method that "
            "makes no step to such a point"
        )
    if status in ("gradient", "change"):
        if int(solution.steps) == 0 and not np.any(solution.gradient):
            return (
                "no parameter moves F at the start, which is a minimum, a saddle, a maximum or a plateau: start "
                "elsewhere, or use newton, which leaves a saddle"
            )
        if state is not None and getattr(state.memory, "indefinite", False):
            return (
                "the last step met negative curvature, so this may be a saddle: continue from a point next to it, or "
                "use newton"
            )
        free = np.flatnonzero(getattr(state and state.memory, "undetermined", ()))
        if free.size:
            return (
                f"the residuals do not tell parameters {_first_five(free)} apart, or do not depend on them: hold some "
                "of them fixed, or give more data"
            )
        last = () if solution.path is None else solution.path.value[: int(solution.steps)][-2:]
        if status == "change" and len(last) == 2 and abs(float(last[1] - last[0])) <= 4 * rounding:
            return f"F changes by no more than its rounding error, {rounding:.1g}{_finer(dtype)}"
        return ""
    if status == "search_failed":
        # the predicted fall of a whole step is of F's own size; that of a step at rounding is some of its last digits
        if state is None or not float(state.expected) <= 100 * rounding:
            return (
                "the gradient predicts a fall that F does not show: F may be noisy, jump, or not have this gradient; "
                "compare both (jax.test_util.check_grads), or start elsewhere"
            )
        return (
            f"along its last direction F would fall by less than its rounding error, {rounding:.1g}{_finer(dtype)}; "
            "or, if the sizes of the parameters are far apart, give each a unit of its size, or use newton, which "
            "needs none"
        )
    if status == "budget":
        return _progress(solution)
    return ""


def _first_five(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if numbers[5:].size else "")


def _finer(dtype: np.dtype) -> str:
    """Returns the end of the advice on how to get more digits."""
    if dtype.itemsize >= 8:
        return ": subtract from F what is constant, or accept this minimum"
    return f": for more digits than {dtype.name} has, use float64 (jax_enable_x64)"


def _progress(solution: Solution) -> str:
    """Compares how fast F fell in the last tenth of the steps with the tenth before and with all, and says so."""
    more, steps = "continue from params with more steps or evaluations", int(solution.steps)
    if solution.path is None or steps < 3:
        return more
    values = solution.path.value[:steps].astype(float)
    last = max(1, steps // 10)
    spans = ((last, 0), (2 * last, last), (steps - 1, 0))
    fell, before, whole = (float(values[-1 - start] - values[-1 - end]) for start, end in spans)
    text = f"in the last {last} steps F fell by {fell:.2g}, by {before:.2g} in as many before"
    if fell <= 0:
        return f"{text}: it has stopped falling; start elsewhere, or use another method"
    if fell > before / 2 and fell < 1e-3 * whole:
        return (
            f"{text}: it falls very slowly; use a method that uses more curvature, or give each parameter a unit of "
            "its size"
        )
    return f"{text}: {more}"
