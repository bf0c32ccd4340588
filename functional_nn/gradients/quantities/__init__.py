r"""Quantities: norms, moments, kernels and curvature of every example's gradient, from one backward sweep.

Each quantity is a short contraction of sensitivities and activations. Letters: Q examples, S neurons of a layer, R of
the source it reads, C directions swept back at once, P parameters in all. :math:`g_q = \partial F_q / \partial
\mathrm{params}` is the gradient of example q's own loss :math:`F_q`, whatever the reduction of F.

The gradient of example q by a layer's weights is the outer product :math:`s_q a_q^T`, which is never formed. Sweeps
back from another matrix than :math:`\partial F / \partial n^M` (unit vectors, or a root of the loss's curvature) give
the Jacobian, the tangent kernel and Gauss-Newton quantities by the same contractions. For a layer with a bias per
neuron, which reads a 1 in addition to a (sums over layers, and over the sources of a layer, are left out):

Norms:

.. math:: \lVert g_q \rVert^2 = \lVert s_q \rVert^2 \, (\lVert a_q \rVert^2 + 1)

Inner products:

.. math:: g_q \cdot g_r = (s_q \cdot s_r) (a_q \cdot a_r + 1)

Second moment, elementwise; the variance is this less the square of the mean of :math:`g_q`:

.. math:: \frac{1}{Q} \sum_q g_q^2 = \frac{1}{Q} (s^2)^T a^2

Clipped gradient:

.. math:: \sum_q \min\left(1, \frac{c}{\lVert g_q \rVert}\right) s_q a_q^T

Noise scale :math:`\mathrm{tr}(\Sigma) / \lVert G \rVert^2`, with G the gradient of the whole distribution:

.. math:: \begin{aligned}
   E \, \frac{1}{Q} \sum_q \lVert g_q \rVert^2 &= \lVert G \rVert^2 + \mathrm{tr}(\Sigma) \\
   E \left\lVert \frac{1}{Q} \sum_q g_q \right\rVert^2 &= \lVert G \rVert^2 + \frac{\mathrm{tr}(\Sigma)}{Q}
   \end{aligned}

Tangent kernel, with :math:`s_{qc}` swept from the unit vector of output c:

.. math:: K_{qr,cd} = (s_{qc} \cdot s_{rd}) (a_q \cdot a_r + 1)

Gauss-Newton matrix, with :math:`s_{qc}` swept from column c of a root V of the loss's curvature,
:math:`H_q = V V^T`:

.. math:: \sum_q J_q^T H_q J_q = \sum_{q,c} \mathrm{vec}(s_{qc} a_q^T) \, \mathrm{vec}(s_{qc} a_q^T)^T

Kronecker factors sum over q in each factor alone:

.. math:: \sum_{q,c} (s_{qc} s_{qc}^T) \otimes (a_q a_q^T)
   \approx \Big(\sum_{q,c} s_{qc} s_{qc}^T\Big) \otimes \Big(\frac{1}{Q} \sum_q a_q a_q^T\Big)

Every quantity is a function of `(network, loss, params, inputs, targets)`, as `backpropagate` is, with its own options
by keyword and those of `compute`. Norms, moments and noise are in at least float32, everything else in the parameters'
dtype. Dropout drops no neuron. Compile what you call repeatedly:
`jax.jit(lambda params: fnn.quantities.variance(network, loss, params, inputs, targets))`.

A quantity of your own is one function; see `register`.
"""

from functional_nn.gradients.quantities.declaring import Quantity as Quantity
from functional_nn.gradients.quantities.declaring import Whole, compute, names, register
from functional_nn.gradients.quantities.declaring import check_names as check_names
from functional_nn.gradients.quantities.gauss_newton_matrix import (
    gauss_newton,
    gauss_newton_diagonal,
    sampled_gauss_newton_diagonal,
)
from functional_nn.gradients.quantities.kernels import jacobian, tangent_kernel, tangent_kernel_trace
from functional_nn.gradients.quantities.kronecker import KroneckerFactors, kfac, kflr
from functional_nn.gradients.quantities.layers import LayerStatistics, layer_statistics
from functional_nn.gradients.quantities.learning_rules import Alignment, RuleNoise, alignment, rule_noise
from functional_nn.gradients.quantities.noise import Noise, NoiseScale, noise_scale, signal_to_noise
from functional_nn.gradients.quantities.per_example import (
    inner_products,
    input_gradients,
    per_example_gradients,
    per_example_layer_norms,
    per_example_losses,
    per_example_norms,
)
from functional_nn.gradients.quantities.sums import add_noise as add_noise
from functional_nn.gradients.quantities.sums import clip as clip
from functional_nn.gradients.quantities.sums import (
    clipped_gradient,
    gradient,
    second_moment,
    variance,
)
from functional_nn.gradients.views import View

__all__ = [
    "Alignment",
    "KroneckerFactors",
    "LayerStatistics",
    "Noise",
    "NoiseScale",
    "RuleNoise",
    "View",
    "Whole",
    "alignment",
    "clipped_gradient",
    "compute",
    "gauss_newton",
    "gauss_newton_diagonal",
    "gradient",
    "inner_products",
    "input_gradients",
    "jacobian",
    "kfac",
    "kflr",
    "layer_statistics",
    "names",
    "noise_scale",
    "per_example_gradients",
    "per_example_layer_norms",
    "per_example_losses",
    "per_example_norms",
    "register",
    "rule_noise",
    "sampled_gauss_newton_diagonal",
    "second_moment",
    "signal_to_noise",
    "tangent_kernel",
    "tangent_kernel_trace",
    "variance",
]
