"""What a comparison finds, as records: pytrees of numbers that print as a table and save as CSV and JSON."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax

Verdict = Literal["agree", "differ", "inconclusive", "another rule"]
Record = TypeVar("Record")


def _pytree(cls: type[Record]) -> type[Record]:
    """Makes a dataclass a pytree: numbers are leaves, text and positions belong to its structure."""
    static = (str, str | None, Verdict, tuple[int, ...])
    names = [f.name for f in dataclasses.fields(cls)]
    meta = [f.name for f in dataclasses.fields(cls) if f.type in static or f.metadata.get("static")]
    jax.tree_util.register_dataclass(cls, [n for n in names if n not in meta], meta)
    return cls


@_pytree
@dataclasses.dataclass(frozen=True)
class Difference:
    r"""How far apart two arrays are, and how far rounding alone may drive them.

    Attributes:
        name: Path of the array, such as "layer1/weights/input".
        error: :math:`\lVert \mathrm{manual} - \mathrm{automatic} \rVert`.
        allowed: The largest `error` that rounding alone explains.
        relative: `error` over `norm`.
        bound: `allowed` over `norm`.
        largest: The largest difference of one element.
        ulps: The largest difference of one element, in units in the last place.
        index: Where `largest` is.
        manual: The manual value there.
        automatic: The automatic value there.
        norm: :math:`\lVert \mathrm{automatic} \rVert`.
        undefined: Number of elements that are nan or infinite in both. They are left out of everything above.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> found = fnn.compare_callables(lambda x: 2 * x, lambda x: x + x, jnp.arange(3.0)).total
        >>> found.error, found.agrees
        (0.0, True)
    """

    name: str
    error: float
    allowed: float
    relative: float
    bound: float
    largest: float
    ulps: float
    index: tuple[int, ...]
    manual: float
    automatic: float
    norm: float
    undefined: int

    @property
    def agrees(self) -> bool:
        """True where rounding explains the difference; False for nan."""
        return self.error <= self.allowed

    @property
    def vanishes(self) -> bool:
        """True where the array itself is no larger than its rounding, because its terms cancel."""
        return 0 < self.allowed and self.norm <= self.allowed


@_pytree
@dataclasses.dataclass(frozen=True)
class ThirdOpinion:
    """Directional derivatives in float64 from values of the objective alone, and how far each gradient is from them.

    Attributes:
        method: "complex step" or "central differences".
        says: The conclusion in words, such as "both are right" or "the manual gradient is wrong".
        manual_error: Relative error of the manual gradient.
        automatic_error: Relative error of the automatic gradient.
        accuracy: Relative accuracy of the method itself.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> f = lambda x: jnp.sum(x**2)
        >>> fnn.compare_callables(lambda x: 3 * x, jax.grad(f), jnp.ones(2), objective=f).third_opinion.says
        'the manual gradient is wrong'
    """

    method: str  # "complex step" or "central differences"
    says: str
    manual_error: float
    automatic_error: float
    accuracy: float  # what the method itself can be trusted to, relatively


@_pytree
@dataclasses.dataclass(frozen=True)
class TaylorTest:
    """The slope in :math:`h` of the Taylor remainder :math:`|F(x + h d) - F(x) - h g^T d|`.

    The slope is 2 for a right gradient :math:`g` and 1 for a wrong one.

    Attributes:
        says: "right", "wrong" or "inconclusive".
        slope: Median over the directions :math:`d`.
        directions: How many directions were tried.
        conclusive: How many had a remainder above rounding.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> f = lambda x: jnp.sum(jnp.sin(x))
        >>> fnn.compare_callables(jnp.cos, jax.grad(f), jnp.ones(2), objective=f).taylor.says
        'right'
    """

    says: Literal["right", "wrong", "inconclusive"] = dataclasses.field(metadata={"static": True})
    slope: float
    directions: int
    conclusive: int  # directions along which the remainder stood above rounding


@_pytree
@dataclasses.dataclass(frozen=True)
class KinkAudit:
    """How many net inputs of a layer (or outputs, for a loss with a kink) are where there is no derivative.

    Attributes:
        name: Layer, or loss and layer.
        at_kink: Number of elements exactly on a kink.
        within_rounding: Number of elements within rounding of one.
        of: Number of elements in all.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> network, x = fnn.multilayer((2, 3, 1), ("relu", "linear")), jnp.zeros((1, 2))
        >>> params = {name: {"weights": {source: jnp.ones(shape)}, "bias": jnp.zeros(shape[0])}
        ...           for name, source, shape in (("layer1", "input", (3, 2)), ("layer2", "layer1", (1, 3)))}
        >>> audit, = fnn.compare(network, "mean_square_error", params, x, jnp.ones((1, 1)), jit=False).kinks
        >>> audit.name, audit.at_kink, audit.of
        ('layer1', 3, 3)
    """

    name: str
    at_kink: int
    within_rounding: int
    of: int


@_pytree
@dataclasses.dataclass(frozen=True)
class Cost:
    """What one gradient costs; times are medians.

    Attributes:
        name: "manual" or "automatic", or the name given to `measure_costs`.
        trace_seconds: Seconds to trace.
        compile_seconds: Seconds to compile.
        run_seconds: Seconds to run the compiled program.
        flops: Floating-point operations, as the compiler reports them.
        temporary_bytes: Bytes of temporary memory, as the compiler reports them.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> cost, = fnn.comparison.measure_costs({"sine": jnp.sin}, jnp.ones(4), repeats=1, inner_seconds=1e-4)
        >>> cost.name, cost.run_seconds > 0
        ('sine', True)
    """

    name: str
    trace_seconds: float
    compile_seconds: float
    run_seconds: float
    flops: float
    temporary_bytes: int


@_pytree
@dataclasses.dataclass(frozen=True)
class Angle:
    """How far a learning rule turns one layer's gradient from the exact one. All are nan where a side is 0 or missing.

    Attributes:
        name: The layer.
        degrees: Angle between the two gradients of the layer's parameters.
        ratio: Ratio of their norms, rule over exact.
        sensitivity_degrees: Angle between the layer's sensitivities.
        sensitivity_ratio: Ratio of their norms.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "linear"))
        >>> x, t, params = jnp.ones((2, 3)), jnp.ones((2, 2)), network.init(jax.random.key(0))
        >>> found = fnn.compare(network, "mean_square_error", params, x, t, rule="feedback_alignment", jit=False)
        >>> [angle.name for angle in found.angles], round(found.angles[1].degrees)
        (['layer1', 'layer2'], 0)
    """

    name: str
    degrees: float
    ratio: float
    sensitivity_degrees: float
    sensitivity_ratio: float


@_pytree
@dataclasses.dataclass(frozen=True)
class Agreement:
    r"""The result of `compare`. It prints as a table, saves as CSV or JSON, and is a pytree of its numbers.

    Attributes:
        title: Network, loss and number of examples.
        dtype: The dtype that was compared.
        verdict: "agree", "differ", "inconclusive" (the bound is too large to decide, or the result is not finite) or
            "another rule". It covers the gradient as a whole and each array of it.
        where: The first layer, counted from the output back, at which the two differ; None where they agree.
        total: The gradient as one vector.
        parameters: One `Difference` for each parameter array.
        sensitivities: One `Difference` for each layer's :math:`\partial F / \partial n`, from the output back.
        condition: Condition number of the gradient: relative change of the gradient per relative change of the
            arguments.
        third_opinion: Directional derivatives from values of F, or None.
        taylor: The Taylor test, or None.
        kinks: Counts of elements where there is no derivative.
        convention: How much the gradient would change under another derivative at the kinks, relatively.
        costs: `Cost` of each side, where asked for.
        rule: The learning rule that was compared; None for the exact one. If a rule gives another gradient, the verdict
            is "another rule", which is no error.
        angles: How far the rule turns each layer's gradient.

    Example:
        >>> import jax, jax.numpy as jnp, functional_nn as fnn
        >>> network = fnn.multilayer((3, 4, 2), ("tanh", "linear"))
        >>> x, t, params = jnp.ones((2, 3)), jnp.ones((2, 2)), network.init(jax.random.key(0))
        >>> found = fnn.compare(network, "mean_square_error", params, x, t, second_opinions=False, jit=False)
        >>> found.verdict, found.total.relative <= found.total.bound
        ('agree', True)
    """

    title: str
    dtype: str
    verdict: Verdict
    where: str | None
    total: Difference
    parameters: tuple[Difference, ...]
    sensitivities: tuple[Difference, ...]
    condition: float
    third_opinion: ThirdOpinion | None
    taylor: TaylorTest | None
    kinks: tuple[KinkAudit, ...]
    convention: float
    costs: tuple[Cost, ...]
    rule: str | None = None
    angles: tuple[Angle, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Returns one dict for each array: its kind ("total", "parameter", "sensitivity") and its `Difference`."""
        kinds = (("total", (self.total,)), ("parameter", self.parameters), ("sensitivity", self.sensitivities))
        return [{"kind": kind, **dataclasses.asdict(d)} for kind, differences in kinds for d in differences]

    def to_csv(self, path: str | Path) -> None:
        """Writes `rows` as CSV with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows()[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        Path(path).write_text(text.getvalue())

    def to_json(self, path: str | Path) -> None:
        """Writes the whole record as JSON; nan and infinities become null."""
        Path(path).write_text(json.dumps(finite_or_none(dataclasses.asdict(self)), indent=2) + "\n")

    def __str__(self) -> str:
        return _as_text(self)


def finite_or_none(value: Any) -> Any:
    """Replaces every float that JSON cannot write (nan, infinity) by None.

    Args:
        value: Nested dicts, lists and tuples of plain values.

    Returns:
        The same structure, tuples as lists.

    Example:
        >>> import math, functional_nn as fnn
        >>> fnn.comparison.finite_or_none({"a": math.nan, "b": (1.0, math.inf)})
        {'a': None, 'b': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mark(row: dict[str, Any], rule: str | None = None) -> str:
    """Returns one word for a row of `Agreement.rows`.

    Args:
        row: A row, or the fields of a `Difference` as a dict.
        rule: The learning rule that was compared, None for the exact one.

    Returns:
        "ok"; "DIFFERS"; "another" where a difference is by a learning rule; "undefined" for nan or infinity in both;
        "vanishes" for an array that is no larger than its rounding, so that its relative difference is meaningless.

    Example:
        >>> import jax.numpy as jnp, functional_nn as fnn
        >>> found = fnn.compare_callables(jnp.sin, jnp.sin, jnp.ones(2))
        >>> [fnn.comparison.mark(row) for row in found.rows()]
        ['ok', 'ok']
    """
    difference = Difference(**{name: value for name, value in row.items() if name != "kind"})
    if not difference.agrees:
        return "another" if rule else "DIFFERS"
    return "undefined" if difference.undefined else "vanishes" if difference.vanishes else "ok"


def _degrees(degrees: float, ratio: float) -> str:
    return "an undefined angle" if math.isnan(degrees) else f"{degrees:.1f} degrees, {ratio:.3g} times as long"


def _as_text(a: Agreement) -> str:
    header = ("", "relative", "bound", "largest", "ulps", "at", "")
    rows: list[tuple[str, ...]] = [header]
    for measured in a.rows():
        name = f"dF/dn {measured['name']}" if measured["kind"] == "sensitivity" else measured["name"]
        numbers = [f"{measured[column]:.2e}" for column in ("relative", "bound", "largest")]
        rows.append((name, *numbers, f"{measured['ulps']:.3g}", str(measured["index"]), mark(measured, a.rule)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    by_rule = "" if a.rule is None else f" by {a.rule}" if a.verdict != "another rule" else f", not an error: {a.rule}"
    lines = [f"{a.title}, {a.dtype}: {a.verdict}{by_rule}"]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    for angle in a.angles:
        lines.append(
            f"{angle.name}: {_degrees(angle.degrees, angle.ratio)} from its gradient; "
            f"{_degrees(angle.sensitivity_degrees, angle.sensitivity_ratio)} from its sensitivities"
        )
    if a.where:
        lines.append(f"first apart at {a.where}")
    if a.total.undefined:
        lines.append(f"{a.total.undefined} elements are nan or infinite in both, and are left out of the comparison")
    elif a.verdict == "inconclusive":
        lines.append(f"a bound of {a.total.bound:.1e} in {a.dtype} would pass gradients that are wrong; try float64")
    lines.append(f"condition number of the gradient {a.condition:.3g}")
    if a.third_opinion:
        third = a.third_opinion
        lines.append(
            f"third opinion (float64, {third.method}): {third.says}; manual {third.manual_error:.1e}, "
            f"automatic {third.automatic_error:.1e}, itself accurate to {third.accuracy:.1e}"
        )
    if a.taylor:
        taylor = a.taylor
        lines.append(
            f"Taylor test: {taylor.says}; slope {taylor.slope:.2f}, "
            f"{taylor.conclusive} of {taylor.directions} directions conclusive"
        )
    for k in a.kinks:
        lines.append(f"kinks of {k.name}: {k.at_kink} of {k.of} on one, {k.within_rounding} within rounding of one")
    if a.convention:
        lines.append(f"another derivative at the kinks would change the gradient by {a.convention:.1e}")
    for c in a.costs:
        lines.append(
            f"{c.name}: trace {1e3 * c.trace_seconds:.2f} ms, compile {1e3 * c.compile_seconds:.0f} ms, "
            f"run {1e6 * c.run_seconds:.1f} us, {c.flops:.4g} FLOPs, {c.temporary_bytes} bytes of temporaries"
        )
    return "\n".join(lines)
