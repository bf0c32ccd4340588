"""Data that stay as they are stored: windows of a stream, and labels that are coded where they are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn.networks.stored import Labels, Windows, is_stored, taken, whole

STREAM = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], np.uint8)


@pytest.mark.parametrize("context", [1, 2, 5, 11])
def test_windows_are_what_a_loop_cuts_out(context):
    windows = fnn.windows(STREAM, context)
    count = (len(STREAM) - 1) // context
    for offset in (0, 1):
        cut = [STREAM[q * context + offset :][:context].tolist() for q in range(count)]
        found = whole(Windows(jnp.asarray(STREAM), context, offset))
        assert found.tolist() == cut and found.dtype == np.int32
    assert windows.shape == (len(windows), context) == (count, context)
    assert windows[np.array([count - 1, 0])].tolist() == [windows[:].tolist()[count - 1], windows[:].tolist()[0]]


def test_labels_are_coded_as_targets_are():
    numbers = jnp.asarray([[0, 2], [1, 1], [2, 0]], jnp.uint8)
    loss = fnn.losses.get("hinge")
    labels = Labels(numbers, loss, 3, np.dtype(np.float16))
    assert labels.shape == (3, 2, 3) and len(labels) == 3
    expected = 2 * np.eye(3)[np.asarray(numbers)] - 1
    assert (np.asarray(whole(labels)) == expected).all() and whole(labels).dtype == np.float16
    assert (np.asarray(taken({"t": labels, "none": None}, jnp.array([2]))["t"]) == expected[[2]]).all()


def test_stored_data_go_through_transformations_as_trees():
    windows = Windows(jnp.asarray(STREAM), 3)
    tree = {"text": windows, "numbers": jnp.arange(3)}
    assert is_stored(tree) and not is_stored(tree["numbers"])
    read = jax.jit(lambda tree, at: taken(tree, at))(tree, jnp.array([1]))
    assert read["text"].tolist() == [[1, 5, 9]] and read["numbers"].tolist() == [1]
    two = Windows(jnp.stack([jnp.asarray(STREAM), jnp.asarray(STREAM[::-1])]), 3)
    assert jax.vmap(lambda w: w[:])(two)[1, 0].tolist() == STREAM[::-1][:3].tolist()


@pytest.mark.parametrize(
    ("tokens", "context", "error", "says"),
    [
        (STREAM, 12, ValueError, "tokens: expected 13 or more, one window of 12 and the token after it"),
        (STREAM, 0, ValueError, "windows: context must be an integer >= 1, got 0"),
        (STREAM.reshape(3, 4), 2, ValueError, r"tokens: expected a stream, shape \(N,\), got \(3, 4\)"),
        (STREAM / 2, 2, TypeError, "tokens: expected integers, got dtype float64"),
        ("to be or not", 2, TypeError, "tokens: expected an array of numbers, got str"),
    ],
)
def test_other_things_than_streams_are_refused(tokens, context, error, says):
    with pytest.raises(error, match=says):
        fnn.windows(tokens, context)
