r"""Compares a hand-written gradient with an automatic one: how far apart they are, which is wrong, where, and the cost.

**What the bound means.** Two right programs for the same gradient differ, because each rounds its own way. `bound` is
the largest relative difference that rounding alone explains, for this program, these numbers and this dtype. A
difference within the bound counts as agreement. A difference above it means that one of the two programs is wrong.
The bound is measured, not chosen by the user: for a small network it is near 1e-14 in float64 and near 1e-5 in float32,
and it grows where large terms cancel. A bound above 0.1 would pass gradients that are wrong by a tenth, so the verdict
is "inconclusive" then, and float64 usually settles it.

**How the bound is measured.** Every operation of the automatic gradient is run again with its result moved at random,
by as much as rounding may move it (`gradients.roundings`). Let :math:`u` be the unit roundoff of the dtype (half the
distance from 1 to the next number) and :math:`\delta` the root mean square of how far an array of the gradient moves,
divided by :math:`u`. Then

.. math:: \mathrm{allowed} = \lambda \, u \, \lVert \delta \rVert,
   \qquad \mathrm{bound} = \frac{\mathrm{allowed}}{\lVert g_{\mathrm{auto}} \rVert},
   \qquad \lambda = 6

and two arrays agree where :math:`\lVert g_{\mathrm{manual}} - g_{\mathrm{auto}} \rVert \le \mathrm{allowed}`.
Independent roundings add up like a random walk. A rounding error is uniform within :math:`\pm u`, so its root mean
square is :math:`u / \sqrt 3`, and :math:`\lambda = 6` is more than 7 standard deviations of the difference of two
gradients, each with its own roundings. :math:`\delta` is an estimate, though, from 16 draws. For a result of one
number, Student's t with 16 degrees of freedom therefore calls a right gradient wrong about twice in 1e6 results; for
arrays of many numbers the estimate is better and the chance much smaller.

**Further evidence.** The *third opinion* and the *Taylor test* use values of the objective only, so they tell which of
two different gradients is right. The *kinks* count where no derivative exists.
"""

from functional_nn.gradients.comparison.bound import ulp_distance
from functional_nn.gradients.comparison.callables import compare_activation, compare_callables, compare_connection
from functional_nn.gradients.comparison.cost import measure_costs
from functional_nn.gradients.comparison.networks import compare, monitor
from functional_nn.gradients.comparison.records import (
    Agreement,
    Angle,
    Cost,
    Difference,
    KinkAudit,
    TaylorTest,
    ThirdOpinion,
    finite_or_none,
    mark,
)
from functional_nn.gradients.comparison.records import Verdict as Verdict

__all__ = [
    "Agreement",
    "Angle",
    "Cost",
    "Difference",
    "KinkAudit",
    "TaylorTest",
    "ThirdOpinion",
    "compare",
    "compare_activation",
    "compare_callables",
    "compare_connection",
    "finite_or_none",
    "mark",
    "measure_costs",
    "monitor",
    "ulp_distance",
]
