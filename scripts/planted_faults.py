#!/usr/bin/env python
"""Mistakes that people make in backpropagation, planted on purpose, and which checker catches each.

    python scripts/planted_faults.py --csv results/planted_faults.csv

Every fault is a `backpropagate` that is wrong in one way, made from the pieces of the right one.
`functional_nn.compare` must call each of them different, and name the place. The table also says what
`jax.test_util.check_grads`-style differences (the third opinion) and the Taylor test find on their own.
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


def vectors():
    """Two inputs, fan-out, a skip connection, a shared bias, softmax."""
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


def signals():
    """An image and a line of tokens, of which some repeat; convolutions, a residual, means that meet padding."""
    network = fnn.graph(
        inputs={"image": (6, 5, 2), "text": 4},
        layers=[
            fnn.Layer("first", 4, "tanh", [("image", "conv((3, 3))")]),
            fnn.Layer("narrow", 4, "tanh", [("first", "conv((3, 3), stride=2)")]),
            fnn.Layer("deep", 4, "linear", [("narrow", "conv((3, 3))")]),
            fnn.Layer("block", 4, "tanh", [("deep", "identity"), ("narrow", "identity")], bias="none"),
            fnn.Layer("pooled", 4, "sigmoid", [("block", "mean_pool((3, 2), stride=2, padding='same')")]),
            fnn.Layer("embedded", 3, "tanh", [("text", "embedding(3)")]),
            fnn.Layer("output", 3, "softmax", [("pooled", "full"), ("embedded", "full")]),
        ],
    )
    keys = jax.random.split(jax.random.key(7), 4)
    text = jax.random.randint(keys[2], (6, 4), 0, 3)
    inputs = {"image": jax.random.normal(keys[1], (6, 6, 5, 2)), "text": text.at[:, 1].set(text[:, 0])}
    targets = fnn.one_hot(jax.random.randint(keys[3], (6,), 0, 3), 3)
    return network, fnn.losses.cross_entropy(), network.init(keys[0]), inputs, targets


def pictures():
    """Convolutions normalized by the batch and by position, and pooled; zeros that tie in every window."""
    network = fnn.graph(
        inputs={"image": (6, 6, 2)},
        layers=[
            fnn.Layer("first", 4, "batch_norm", [("image", "conv((3, 3))")], bias="none"),
            fnn.Layer("active", 4, "relu", [("first", "identity")]),
            fnn.Layer("pooled", 4, "max_pool((2, 2))", [("active", "identity")], bias="none"),
            fnn.Layer("second", 6, "layer_norm", [("pooled", "conv((3, 3))")]),
            fnn.Layer("output", 3, "softmax", [("second", "full")]),
        ],
    )
    keys = jax.random.split(jax.random.key(7), 3)
    inputs = {"image": jax.random.normal(keys[1], (6, 6, 6, 2))}
    targets = fnn.one_hot(jax.random.randint(keys[2], (6,), 0, 3), 3)
    return network, fnn.losses.cross_entropy(), network.init(keys[0]), inputs, targets


def sentences():
    """Tokens, causal attention with lengths, a residual, a gate, a recurrence; a class at each step."""
    network = fnn.graph(
        inputs={"text": 6, "lengths": ()},
        layers=[
            fnn.Layer("embedded", 4, "linear", [("text", "embedding(5)")]),
            fnn.Layer("attention", 4, "attention(2, True)", ["embedded"], lengths="lengths"),
            fnn.Layer("mixed", 4, "linear", ["attention", ("embedded", "identity")]),
            fnn.Layer("gate", 4, "glu", ["mixed"]),
            fnn.Layer("state", 3, "gru", ["gate"]),
            fnn.Layer("output", 5, "softmax", ["state"]),
        ],
    )
    keys = jax.random.split(jax.random.key(7), 3)
    inputs = {"text": jax.random.randint(keys[1], (6, 6), 0, 5), "lengths": jnp.array([6, 5, 6, 4, 2, 6])}
    params = jax.tree.map(lambda x: x + 0.3, network.init(keys[0]))  # an initial state that is not 0
    targets = fnn.one_hot(jax.random.randint(keys[2], (6, 6), 0, 5), 5)
    return network, fnn.losses.cross_entropy(), params, inputs, targets


BENCHES = (vectors, signals, pictures, sentences)


class Fault(NamedTuple):
    """A wrong `backpropagate`; where `compare` should say that the two first differ; the mistake; and the network that
    it is planted in.
    """

    name: str
    backpropagate: Callable[..., Backpropagation]
    where: str
    explanation: str
    bench: Callable[[], tuple] = vectors


def assembled(network, loss, params, inputs, targets, *, start=None, sweep=None, contract=None) -> Backpropagation:
    """Computes `backpropagate` with one of its three steps replaced."""
    inputs = network.prepare(params, inputs)
    targets = network.prepare_targets(inputs, targets, loss, targets.dtype)
    trace = backprop.forward(network, params, inputs, {})
    started = (start or backprop.start)(network, loss, params, trace, targets, None)
    swept = (sweep or backprop.sweep)(network, params, trace, started)
    gradients = (contract or backprop.contract)(network, params, trace, swept)
    value = backprop.loss_value(network, loss, trace, targets, None)
    return Backpropagation(value, gradients, swept.sensitivities, {}, trace)


def with_layer(network, name, **changes):
    """Returns the network with one layer changed, for the backward pass only."""
    return replace(network, layers=tuple(replace(x, **changes) if x.name == name else x for x in network.layers))


def with_pullback(network, name, pullback):
    """Returns the network with another pullback in one layer."""
    layer = next(x for x in network.layers if x.name == name)
    return with_layer(network, name, activation=replace(layer.activation, pullback=pullback))


def with_connection(network, name, source, **changes):
    """Returns the network with other maps in one of a layer's connections."""
    layer = next(x for x in network.layers if x.name == name)
    rows = tuple(replace(by, **changes) if read == source else by for read, by in layer.reads)
    return with_layer(network, name, connections=rows)


def connection(network, name, source):
    """Returns the connection by which a layer reads a source."""
    return dict(next(x for x in network.layers if x.name == name).reads)[source]


def sign(*args):
    def start(*a):
        s, learned = backprop.start(*a)
        return -s, learned

    return assembled(*args, start=start)


def missing_one_over_q(*args):
    def start(*a):
        s, learned = backprop.start(*a)
        return s * s.shape[0], learned

    return assembled(*args, start=start)


def fused_pair_off(*args):
    def start(network, loss, params, trace, targets, weights):
        # a - t holds for softmax's *outputs*; here it is computed from the net inputs
        return loss.scale(trace.net_inputs[network.output.name] - targets, weights), {}

    return assembled(*args, start=start)


def elementwise_at_softmax(*args):
    def start(network, loss, params, trace, targets, weights):
        a = trace.activations[network.output.name]
        return a * (1 - a) * loss.gradient(a, targets, weights), {}  # Kordecki's and Lecture 2's slip

    return assembled(*args, start=start)


def transpose(*args):
    def sweep(network, params, trace, started):
        weights = params["third"]["weights"] | {"first": params["third"]["weights"]["first"].T}
        return backprop.sweep(network, params | {"third": params["third"] | {"weights": weights}}, trace, started)

    return assembled(*args, sweep=sweep)


def lost_fan_out_term(*args):
    def sweep(network, params, trace, started):
        weights = params["third"]["weights"]
        cut = params["third"] | {"weights": weights | {"first": jnp.zeros_like(weights["first"])}}
        return backprop.sweep(network, params | {"third": cut}, trace, started)

    return assembled(*args, sweep=sweep)


def dropped_derivative(*args):
    def sweep(network, params, trace, started):
        return backprop.sweep(
            with_pullback(network, "second", lambda g, n, a, kept, theta: (g, {})), params, trace, started
        )

    return assembled(*args, sweep=sweep)


def derivative_of_net_input(*args):
    def sweep(network, params, trace, started):
        def wrong(g, n, a, kept, theta):
            return (g * n * (1 - n), {})  # a (1 - a), computed from n

        return backprop.sweep(with_pullback(network, "second", wrong), params, trace, started)

    return assembled(*args, sweep=sweep)


def wrong_layers_activation(*args):
    def sweep(network, params, trace, started):
        swapped = trace.activations | {"second": trace.activations["third"]}
        return backprop.sweep(network, params, trace._replace(activations=swapped), started)

    return assembled(*args, sweep=sweep)


def updated_too_early(*args):
    def sweep(network, params, trace, started):
        moved = jax.tree.map(lambda w, g: w - 0.1 * g, params, assembled(*args).gradients)
        return backprop.sweep(network, params | {"output": moved["output"]}, trace, started)

    return assembled(*args, sweep=sweep)


def shared_bias_not_summed(*args):
    def contract(network, params, trace, swept):
        gradients = backprop.contract(network, params, trace, swept)
        first_neuron = jnp.sum(swept.sensitivities["second"][:, :1], axis=0)
        return gradients | {"second": gradients["second"] | {"bias": first_neuron}}

    return assembled(*args, contract=contract)


def last_example_only(*args):
    def contract(network, params, trace, swept):
        # `:=` for `+=` over the examples (blog 001, step 11)
        kept = {name: s.at[:-1].set(0) for name, s in swept.sensitivities.items()}
        return backprop.contract(network, params, trace, swept._replace(sensitivities=kept))

    return assembled(*args, contract=contract)


def contraction_with_own_layer(*args):
    def contract(network, params, trace, swept):
        shifted = trace.activations | {"first": trace.activations["third"]}
        return backprop.contract(network, params, trace._replace(activations=shifted), swept)

    return assembled(*args, contract=contract)


# Signals --------------------------------------------------------------------------------------------------------------


def kernel_not_turned(*args):
    def sweep(network, params, trace, started):
        right = connection(network, "deep", "narrow").back
        wrong = with_connection(network, "deep", "narrow", back=lambda s, w, like: right(s, w[:, ::-1, ::-1], like))
        return backprop.sweep(wrong, params, trace, started)

    return assembled(*args, sweep=sweep)


def stride_forgotten(*args):
    def back(s, w, like):
        # as if the windows were adjacent, from the corner on
        adjacent = jnp.zeros((*like.shape[:-1], s.shape[-1]), s.dtype).at[:, : s.shape[1], : s.shape[2]].set(s)
        return fnn.connections.conv((3, 3)).back(adjacent, w, like)

    def sweep(network, params, trace, started):
        return backprop.sweep(with_connection(network, "narrow", "first", back=back), params, trace, started)

    return assembled(*args, sweep=sweep)


def padding_counted_in_a_mean(*args):
    def back(s, w, like):
        # s / 6 to everything in a window, also at the edge, where a window has fewer than 6
        sixths = jnp.full((s.shape[-1], 3, 2, 1), 1 / 6, s.dtype)
        return fnn.connections.conv((3, 2), stride=2, groups=s.shape[-1]).back(s, sixths, like)

    def sweep(network, params, trace, started):
        return backprop.sweep(with_connection(network, "pooled", "block", back=back), params, trace, started)

    return assembled(*args, sweep=sweep)


def lost_residual(*args):
    def sweep(network, params, trace, started):
        def nothing(s, w, like):
            return jnp.zeros_like(like)

        return backprop.sweep(with_connection(network, "block", "narrow", back=nothing), params, trace, started)

    return assembled(*args, sweep=sweep)


def positions_not_summed(*args):
    def contract(network, params, trace, swept):
        right = connection(network, "deep", "narrow").outer

        def last(s, x):
            return right(s.at[:, :-1].set(0).at[:, :, :-1].set(0), x)  # `:=` for `+=`

        return backprop.contract(with_connection(network, "deep", "narrow", outer=last), params, trace, swept)

    return assembled(*args, contract=contract)


def bias_of_one_position(*args):
    def contract(network, params, trace, swept):
        gradients = backprop.contract(network, params, trace, swept)
        corner = jnp.sum(swept.sensitivities["deep"][:, 0, 0], axis=0)
        return gradients | {"deep": gradients["deep"] | {"bias": corner}}

    return assembled(*args, contract=contract)


def repeated_tokens_not_added(*args):
    def contract(network, params, trace, swept):
        def last(s, x):
            return jnp.zeros((3, s.shape[-1]), s.dtype).at[x].set(s).T  # `:=` for `+=`

        return backprop.contract(with_connection(network, "embedded", "text", outer=last), params, trace, swept)

    return assembled(*args, contract=contract)


# Activations of whole signals -----------------------------------------------------------------------------------------


def lost_mean_term(*args):
    def pullback(g, n, a, kept, theta):
        # (h - x <h x>) / sigma: without the path through the mean
        h = g * theta["gain"][None, None, None, :]
        along = jnp.mean(h * kept.x, axis=-1, keepdims=True)
        right = fnn.activations.layer_norm().pullback(g, n, a, kept, theta)[1]
        return (h - kept.x * along) * kept.inverse, right

    def sweep(network, params, trace, started):
        return backprop.sweep(with_pullback(network, "second", pullback), params, trace, started)

    return assembled(*args, sweep=sweep)


def gain_summed_over_channels(*args):
    def contract(network, params, trace, swept):
        gradients = backprop.contract(network, params, trace, swept)
        learned = gradients["second"]["learned"]
        summed = learned | {"gain": jnp.full_like(learned["gain"], jnp.sum(learned["gain"]))}
        return gradients | {"second": gradients["second"] | {"learned": summed}}

    return assembled(*args, contract=contract)


def pool_gives_all_that_tie(*args):
    def pullback(g, n, a, kept, theta):
        # all of g to each of the largest, where several tie
        def repeated(x):
            return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

        return jnp.where(n == repeated(a), repeated(g), 0), {}

    def sweep(network, params, trace, started):
        return backprop.sweep(with_pullback(network, "pooled", pullback), params, trace, started)

    return assembled(*args, sweep=sweep)


def lost_variance_path(*args):
    def pullback(g, n, a, kept, theta):
        # (h - <h>) / sigma: as if the variance were constant
        h = g * theta["gain"][None, None, None, :]
        right = fnn.activations.batch_norm().pullback(g, n, a, kept, theta)[1]
        return (h - jnp.mean(h, axis=(0, 1, 2), keepdims=True)) * kept.inverse, right

    def sweep(network, params, trace, started):
        return backprop.sweep(with_pullback(network, "first", pullback), params, trace, started)

    return assembled(*args, sweep=sweep)


# Sequences ------------------------------------------------------------------------------------------------------------


def swept_with(name, pullback, *args):
    """Replaces one layer's pullback by another, which is given the right one as its first argument."""

    def sweep(network, params, trace, started):
        own = next(layer for layer in network.layers if layer.name == name).activation.pullback

        def other(*given):
            return pullback(own, *given)

        return backprop.sweep(with_pullback(network, name, other), params, trace, started)

    return assembled(*args, sweep=sweep)


def mask_forgotten(*args):
    def pullback(own, g, n, a, kept, theta):
        # as if every position attended to every other
        _, whole = fnn.activations.attention(2).forward(n, {})
        return own(g, n, a, whole, theta)

    return swept_with("attention", pullback, *args)


def unscaled_scores(*args):
    def pullback(own, g, n, a, kept, theta):
        # without 1 / sqrt(d), d = 2, on the way to query and key
        s, learned = own(g, n, a, kept, theta)
        return s.at[..., :8].multiply(2**0.5), learned

    return swept_with("attention", pullback, *args)


def lost_row_term(*args):
    def pullback(own, g, n, a, kept, theta):
        # p (g . v) for p (g . v - sum of p (g . v)): softmax's derivative as if each score were alone
        s, learned = own(g, n, a, kept, theta)
        q, k, v, g = (x.reshape(*x.shape[:2], 2, 2) for x in (*jnp.split(n, 3, axis=-1), g))  # heads of d = 2
        y = kept.probabilities * jnp.einsum("qthd,quhd->qhtu", g, v) / 2**0.5
        wrong = jnp.einsum("qhtu,quhd->qthd", y, k), jnp.einsum("qhtu,qthd->quhd", y, q)
        return s.at[..., :8].set(jnp.concatenate([x.reshape(*x.shape[:2], 4) for x in wrong], axis=-1)), learned

    return swept_with("attention", pullback, *args)


def swapped_gate(*args):
    def pullback(own, g, n, a, kept, theta):
        s, learned = own(g, n, a, kept, theta)
        return jnp.flip(s.reshape(*a.shape, 2), axis=-1).reshape(s.shape), learned

    return swept_with("gate", pullback, *args)


def dropped_carry(*args):
    def pullback(own, g, n, a, kept, theta):
        # nothing goes back from step 3 to step 2
        return fnn.activations.gru(truncate=3).pullback(g, n, a, kept, theta)

    return swept_with("state", pullback, *args)


def forgotten_initial_state(*args):
    def pullback(own, g, n, a, kept, theta):
        s, learned = own(g, n, a, kept, theta)
        initial = learned["initial"]
        return s, learned | {"initial": initial._replace(left=jnp.zeros_like(initial.left))}

    return swept_with("state", pullback, *args)


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
    Fault(
        "kernel not turned",
        kernel_not_turned,
        "narrow: dF/dn",
        "the kernel the same way round on the way back",
        signals,
    ),
    Fault(
        "stride forgotten", stride_forgotten, "first: dF/dn", "windows go back as if they stood side by side", signals
    ),
    Fault(
        "padding in a mean", padding_counted_in_a_mean, "block: dF/dn", "1/6 at the edge, where fewer are met", signals
    ),
    Fault("lost residual", lost_residual, "narrow: dF/dn", "nothing goes back by the identity", signals),
    Fault(
        "positions not summed",
        positions_not_summed,
        "deep/weights/narrow",
        "the last position's term for the sum",
        signals,
    ),
    Fault("bias of one position", bias_of_one_position, "deep/bias", "the first position's term for the sum", signals),
    Fault(
        "repeats not added",
        repeated_tokens_not_added,
        "embedded/weights/text",
        "a token's last place for the sum",
        signals,
    ),
    Fault("lost mean term", lost_mean_term, "second: dF/dn", "layer norm's path through the mean", pictures),
    Fault(
        "gain over channels", gain_summed_over_channels, "second/learned/gain", "all channels' sum for each", pictures
    ),
    Fault("pool's ties", pool_gives_all_that_tie, "pooled: dF/dn", "all of g to each number that ties", pictures),
    Fault("lost variance path", lost_variance_path, "first: dF/dn", "batch norm's variance as if given", pictures),
    Fault(
        "mask forgotten", mask_forgotten, "attention: dF/dn", "what is masked forward is met on the way back", sentences
    ),
    Fault("scores unscaled", unscaled_scores, "attention: dF/dn", "1 / sqrt(d) left out on the way back", sentences),
    Fault("lost row term", lost_row_term, "attention: dF/dn", "p (g . v) for p (g . v - sum of p (g . v))", sentences),
    Fault("gate swapped", swapped_gate, "gate: dF/dn", "each share of a gate for the other", sentences),
    Fault(
        "carry dropped",
        dropped_carry,
        "state: dF/dn parts here first at position (2,)",
        "nothing goes back from step 3 to step 2",
        sentences,
    ),
    Fault(
        "initial state forgotten", forgotten_initial_state, "state/learned/initial", "d_0 is not handed on", sentences
    ),
)


def examine(fault: Fault, jit: bool = False) -> fnn.Agreement:
    """`compare` of one planted fault."""
    return fnn.compare(*fault.bench(), manual=fault.backpropagate, jit=jit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    print(f"{'fault':<26}{'compare':<9}{'third opinion':<31}{'Taylor test':<16}where")
    right = (
        Fault(f"none of {bench.__name__}", backprop.backpropagate, "", "the right one", bench) for bench in BENCHES
    )
    for fault in (*right, *FAULTS):
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
