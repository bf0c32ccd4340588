"""Sequences drawn from a network, one token after the other, each from the network's outputs for those before.

Letters: Q sequences, T positions of the network, T_0 of the prompt, V tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from functional_nn import checks, precision
from functional_nn.networks.network import (
    Network,
    Params,
    check_params,
    check_statistics,
    dtype_of,
    forward,
    inference_mode,
)


def generate(
    network: Network,
    params: Params,
    prompt: Array | np.ndarray,
    key: Array,
    count: int = 100,
    temperature: float = 1.0,
) -> Array:
    """Returns tokens that follow a prompt, each drawn from the network's outputs for those before.

    Each token is drawn with probabilities softmax(n / temperature), where n are the output's net inputs at the last
    position. Of more than T tokens the last T are read, so that a recurrence starts from its initial state for each.

    Args:
        network: reads T tokens, and has at each position one output for each token: a softmax, or linear outputs, which
            are taken as net inputs of a softmax. Outputs must not depend on later positions.
        params: its parameters.
        prompt: (T_0,) or (Q, T_0) integers, 1 <= T_0 <= T.
        key: a JAX random key.
        count: how many tokens are drawn.
        temperature: >= 0; 0 takes the most probable token.

    Returns:
        (count,) or (Q, count), int32.

    Raises:
        ValueError: the network is another, or looks ahead; the prompt is empty, longer than T or has tokens out of
            range; count < 1; or temperature < 0.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.presets.get("gru(width=4)")(8, 5, tokens=5, each_position=True)
        >>> params = network.init(jax.random.key(0))
        >>> fnn.generate(network, params, jax.numpy.array([0, 1, 2]), jax.random.key(1), count=6).shape
        (6,)
    """
    name, positions = _read(network)
    tokens = network.tokens[name]
    checks.prng_key("key", key)
    count = checks.integer("generate", "count", count, 1)
    temperature = checks.constant("generate", "temperature", temperature, *checks.NON_NEGATIVE)
    checks.numeric("prompt", prompt)
    if not checks.is_concrete(prompt):
        raise ValueError("prompt: expected tokens, got a traced array; call generate outside jit, which it uses itself")
    if prompt.dtype.kind not in "iu":
        raise ValueError(f"prompt: expected tokens, integers 0 to {tokens - 1}, got dtype {prompt.dtype}")
    prompt = np.asarray(prompt)
    rows = prompt[None] if prompt.ndim == 1 else prompt
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"prompt: expected at least one token, (T_0,) or (Q, T_0), got shape {prompt.shape}")
    if rows.shape[1] > positions:
        raise ValueError(
            f"prompt: expected at most {positions} tokens, which are the network's positions, got {rows.shape[1]}; "
            f"pass the last {positions}"
        )
    index = checks.first(rows, lambda block: (block < 0) | (block >= tokens))
    if index is not None:
        raise ValueError(
            f"prompt: expected tokens 0 to {tokens - 1}, got {rows[index]} at index {index[-prompt.ndim :]}"
        )
    check_params(network, params)
    check_statistics(network, params)
    window = np.zeros((len(rows), positions), np.int32)
    window[:, : rows.shape[1]] = rows
    network = inference_mode(network)
    with jax.ensure_compile_time_eval():  # also where a program around it is traced
        _check_causal(network, params, name, window[:1], tokens)
    temperature = jnp.asarray(temperature, precision.at_least_float32(dtype_of(params)))
    drawn = _drawing(network, name, count)(params, jnp.asarray(window), rows.shape[1], key, temperature)
    return drawn[0] if prompt.ndim == 1 else drawn


def _read(network: Network) -> tuple[str, int]:
    """The input of tokens, and how many positions it has."""
    signals = [name for name, _ in network.inputs if name not in network.lengths]
    name, output = signals[0], network.output
    if len(signals) > 1 or name not in network.tokens or len(network.shapes[name]) != 1:
        raise ValueError(f"generate needs a network that reads one sequence of tokens, got inputs {network.inputs}")
    expected = (*network.shapes[name], network.tokens[name])
    if network.shapes[output.name] != expected or output.activation.name not in ("softmax", "linear"):
        raise ValueError(
            f"generate needs outputs {expected} of softmax or linear, one for each token at each position, got "
            f"{network.shapes[output.name]} of {output.activation.name}"
        )
    return name, network.shapes[name][0]


def _check_causal(network: Network, params: Params, name: str, window, tokens: int) -> None:
    """Raises ValueError if an output depends on a later token, which is tried by changing the second half."""
    half = window.shape[1] // 2
    if half == 0 or not all(map(checks.is_concrete, jax.tree.leaves(params))):
        return
    other = window.copy()
    other[:, half:] = (other[:, half:] + 1) % tokens
    both = np.concatenate([window, other])
    n = forward(network, params, _inputs(network, name, jnp.asarray(both), both.shape[1]), {})
    n = np.asarray(n.net_inputs[network.output.name]).astype(np.float64)[:, :half]
    if not np.allclose(*n, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ValueError(
            "generate needs a causal network, but outputs of this one depend on later tokens, as they do with "
            "attention without causal=True"
        )


def _inputs(network: Network, name: str, window: Array, filled: Array | int) -> dict[str, Array]:
    # positions after the last token do not count
    lengths = jnp.full(len(window), filled, jnp.int32)
    return {name: window} | dict.fromkeys(network.lengths, lengths)


@functools.lru_cache(maxsize=32)
def _drawing(network: Network, name: str, count: int):
    positions = network.shapes[name][0]

    def step(carry, key):
        params, window, filled, temperature = carry
        n = forward(network, params, _inputs(network, name, window, filled), {}).net_inputs[network.output.name]
        n = precision.wide(lax.dynamic_index_in_dim(n, filled - 1, 1, keepdims=False))  # (Q, V)
        drawn = jax.random.categorical(key, n / jnp.where(temperature > 0, temperature, 1))
        token = jnp.where(temperature > 0, drawn, jnp.argmax(n, axis=-1)).astype(jnp.int32)
        window = jnp.where(filled == positions, jnp.roll(window, -1, axis=1), window)
        window = lax.dynamic_update_index_in_dim(window, token, jnp.minimum(filled, positions - 1), 1)
        return (params, window, jnp.minimum(filled + 1, positions), temperature), token

    @jax.jit
    def draw(params, window, filled, key, temperature):
        _, tokens = lax.scan(step, (params, window, filled, temperature), jax.random.split(key, count))
        return tokens.T

    return draw
