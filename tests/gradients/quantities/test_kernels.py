"""The Jacobian and the tangent kernel: between two batches, and of the net inputs."""

import jax
import numpy as np
import pytest
from cases import chain, inputs_for, problem, relative_error
from quantity_cases import NETWORK, TOLERANCE, each_jacobian, rows

from functional_nn import quantities


@pytest.mark.slow
def test_the_kernel_between_two_batches(data):
    params, inputs, _ = data
    others = inputs_for(NETWORK, jax.random.key(5), 7)
    for of, block in (("outputs", 1024), ("net_inputs", 3)):
        J, K = (each_jacobian(NETWORK, of, params, x) for x in (inputs, others))
        full, trace = jax.jit(
            lambda params, of=of, block=block: [
                ask(NETWORK, None, params, inputs, others=others, of=of, block=block)
                for ask in (quantities.tangent_kernel, quantities.tangent_kernel_trace)
            ]
        )(params)
        assert relative_error(full, np.einsum("qcp,rdp->qrcd", J, K)) <= TOLERANCE
        assert relative_error(trace, np.einsum("qcp,rcp->qr", J, K)) <= TOLERANCE


def test_the_jacobian_of_the_net_inputs_of_maxout_and_prelu():
    for output in ("maxout", "prelu"):
        network = chain((3, 4, 2), "tanh", output)
        params, inputs, _ = problem(network, "mean_square_error")
        found = quantities.jacobian(network, None, params, inputs, of="net_inputs")
        assert relative_error(rows(found, 2), each_jacobian(network, "net_inputs", params, inputs)) <= TOLERANCE
