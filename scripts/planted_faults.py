#!/usr/bin/env python
"""Mistakes that people make in backpropagation, planted on purpose, and which checker catches each.

    python scripts/planted_faults.py --csv results/planted_faults.csv

Every fault is a `backpropagate` that is wrong in one way, made from the right one's own pieces. `functional_nn.compare`
must call each of them different, and name the place. The table also says what `jax.test_util.check_grads`-style
differences (the third opinion) and the Taylor test make of it on their own.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

import functional_nn as fnn
from functional_nn.gradients import backprop
from functional_nn.gradients.backprop import Backpropagation


class Fault(NamedTuple):
    """A wrong `backpropagate`; where `compare` should say the two part first; what the mistake is."""

    name: str
    backpropagate: Callable[..., Backpropagation]
    where: str
    explanation: str


def bench():
    """The network all faults are planted in: two inputs, fan-out, a skip connection, a shared bias, softmax."""
    network = fnn.graph(
        inputs={"p1": 4, "p2": 3},
        layers=[
            fnn.Layer("first", 5, "tanh", ("p1",)),
            fnn.Layer("second", 5, "sigmoid", ("first",), bias="shared"),
            fnn.Layer("third", 5, "tanh", ("first", "p2")),
            fnn.Layer("output", 3, "softmax", ("second", "third")),
        ],
    )
    keys = jax.random.split(jax.random.key(7), 4)
    params = network.init(keys[0])
    inputs = {"p1": jax.random.normal(keys[1], (6, 4)), "p2": jax.random.normal(keys[2], (6, 3))}
    targets = fnn.one_hot(jax.random.randint(keys[3], (6,), 0, 3), 3)
    return network, fnn.losses.cross_entropy(), params, inputs, targets


def pieces(network, loss, params, inputs, targets, *, start=None, sweep=None, contract=None) -> Backpropagation:
    """`backpropagate` with one of its three steps replaced."""
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets)
    trace = backprop.forward(network, params, inputs, {})
    started = (start or backprop.start)(network, loss, params, trace, targets, None)
    swept = (sweep or backprop.sweep)(network, params, trace, started)
    gradients = (contract or backprop.contract)(network, params, trace, swept)
    value = backprop.loss_value(network, loss, trace, targets, None)
    return Backpropagation(value, gradients, swept.sensitivities, {}, trace)


def with_layer(network, name, **changes):
    """The network with one layer described otherwise, for the backward pass only."""
    return replace(network, layers=tuple(replace(x, **changes) if x.name == name else x for x in network.layers))


def with_pullback(network, name, pullback):
    """The network with another pullback in one layer."""
    layer = next(x for x in network.layers if x.name == name)
    return with_layer(network, name, activation=replace(layer.activation, pullback=pullback))


def sign(*args):
    def start(*a):
        s, learned = backprop.start(*a)
        return -s, learned

    return pieces(*args, start=start)


def missing_one_over_q(*args):
    def start(*a):
        s, learned = backprop.start(*a)
        return s * s.shape[0], learned

    return pieces(*args, start=start)


def fused_pair_off(*args):
    def start(network, loss, params, trace, targets, weights):
        # the pair a - t belongs to softmax's *outputs*; here it is given the net inputs
        return loss.scale(trace.net_inputs[network.output.name] - targets, weights), {}

    return pieces(*args, start=start)


def elementwise_at_softmax(*args):
    def start(network, loss, params, trace, targets, weights):
        a = trace.activations[network.output.name]
        return a * (1 - a) * loss.gradient(a, targets, weights), {}  # Kordecki's and Lecture 2's slip

    return pieces(*args, start=start)


def transpose(*args):
    def sweep(network, params, trace, started):
        weights = params["third"]["weights"] | {"first": params["third"]["weights"]["first"].T}
        return backprop.sweep(network, params | {"third": params["third"] | {"weights": weights}}, trace, started)

    return pieces(*args, sweep=sweep)


def lost_fan_out_term(*args):
    def sweep(network, params, trace, started):
        weights = params["third"]["weights"]
        cut = params["third"] | {"weights": weights | {"first": jnp.zeros_like(weights["first"])}}
        return backprop.sweep(network, params | {"third": cut}, trace, started)

    return pieces(*args, sweep=sweep)


def dropped_derivative(*args):
    def sweep(network, params, trace, started):
        return backprop.sweep(
            with_pullback(network, "second", lambda g, n, a, kept, theta: (g, {})), params, trace, started
        )

    return pieces(*args, sweep=sweep)


def derivative_of_net_input(*args):
    def sweep(network, params, trace, started):
        wrong = lambda g, n, a, kept, theta: (g * n * (1 - n), {})  # noqa: E731 (a (1 - a) asked of n)
        return backprop.sweep(with_pullback(network, "second", wrong), params, trace, started)

    return pieces(*args, sweep=sweep)


def wrong_layers_activation(*args):
    def sweep(network, params, trace, started):
        swapped = trace.activations | {"second": trace.activations["third"]}
        return backprop.sweep(network, params, trace._replace(activations=swapped), started)

    return pieces(*args, sweep=sweep)


def updated_too_early(*args):
    def sweep(network, params, trace, started):
        moved = jax.tree.map(lambda w, g: w - 0.1 * g, params, pieces(*args).gradients)
        return backprop.sweep(network, params | {"output": moved["output"]}, trace, started)

    return pieces(*args, sweep=sweep)


def shared_bias_not_summed(*args):
    def contract(network, params, trace, swept):
        gradients = backprop.contract(network, params, trace, swept)
        first_neuron = jnp.sum(swept.sensitivities["second"][:, :1], axis=0)
        return gradients | {"second": gradients["second"] | {"bias": first_neuron}}

    return pieces(*args, contract=contract)


def last_example_only(*args):
    def contract(network, params, trace, swept):
        # `:=` for `+=` over the examples (blog 001, step 11)
        kept = {name: s.at[:-1].set(0) for name, s in swept.sensitivities.items()}
        return backprop.contract(network, params, trace, swept._replace(sensitivities=kept))

    return pieces(*args, contract=contract)


def contraction_with_own_layer(*args):
    def contract(network, params, trace, swept):
        shifted = trace.activations | {"first": trace.activations["third"]}
        return backprop.contract(network, params, trace._replace(activations=shifted), swept)

    return pieces(*args, contract=contract)


FAULTS = (
    Fault("sign", sign, "output: dF/dn", "t - a for a - t at the start"),
    Fault("missing 1/Q", missing_one_over_q, "output: dF/dn", "the mean's 1/Q is left out"),
    Fault("fused pair off", fused_pair_off, "output: dF/dn", "a - t formed from net inputs"),
    Fault("elementwise at softmax", elementwise_at_softmax, "output: dF/dn", "f' a(1-a) for softmax's Jacobian"),
    Fault("transpose", transpose, "first: dF/dn", "W for W^T on a square layer"),
    Fault("lost fan-out term", lost_fan_out_term, "first: dF/dn", "one of two readers adds nothing"),
    Fault("dropped derivative", dropped_derivative, "second: dF/dn", "F' left out of one layer"),
    Fault("derivative of n", derivative_of_net_input, "second: dF/dn", "a(1-a) evaluated at n"),
    Fault("wrong layer's activation", wrong_layers_activation, "second: dF/dn", "f' from another layer's outputs"),
    Fault("updated too early", updated_too_early, "third: dF/dn", "weights move before they are propagated through"),
    Fault("shared bias not summed", shared_bias_not_summed, "second/bias", "the first neuron's term for the sum"),
    Fault(":= for +=", last_example_only, "first/bias", "the last example's gradient for the sum"),
    Fault("contraction", contraction_with_own_layer, "second/weights/first", "s a^T with another layer's a"),
)


def examine(fault: Fault, jit: bool = False) -> fnn.Agreement:
    """`compare` of one planted fault."""
    return fnn.compare(*bench(), manual=fault.backpropagate, jit=jit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    print(f"{'fault':<26}{'compare':<9}{'third opinion':<31}{'Taylor test':<16}where")
    for fault in (Fault("none", backprop.backpropagate, "", "the right one"), *FAULTS):
        a = examine(fault)
        rows.append(
            {
                "fault": fault.name,
                "mistake": fault.explanation,
                "compare": a.verdict,
                "where": a.where or "",
                "relative error": f"{a.total.relative:.1e}",
                "third opinion": a.third_opinion.says,
                "Taylor test": f"{a.taylor.says} ({a.taylor.slope:.2f})",
            }
        )
        row = rows[-1]
        print(f"{row['fault']:<26}{row['compare']:<9}{row['third opinion']:<31}{row['Taylor test']:<16}{row['where']}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
