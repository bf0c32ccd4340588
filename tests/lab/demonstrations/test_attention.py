"""The page on attention and time: every number against independent equations, and a visitor's actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn.lab.demonstrations import attention, one_text
from functional_nn.lab.demonstrations.one_text import CHARACTERS, PRESETS, Question, T

each_network = pytest.mark.parametrize("name", PRESETS)
TEXT = "the value of it"


def params(name):
    """Not trained, so that nothing is small."""
    rng = np.random.default_rng(2)
    drawn = one_text.network(name).init(jax.random.key(3))
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.standard_normal(x.shape), drawn)


def asked(name, count=9, follows=True, text=TEXT):
    return one_text.compute(Question(name, text, count, follows), params(name))


# Computed -------------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=3)
@each_network
def test_one_prediction_and_its_way_back(name):
    found = asked(name)
    assert found.character == TEXT[9] and len(found.probabilities) == len(TEXT)
    np.testing.assert_allclose(found.value, -np.log(found.probabilities[8, CHARACTERS.index(TEXT[9])]), rtol=1e-12)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-12)
    assert max(*found.differences.values(), found.gradient_difference) < 1e-12
    assert list(found.sensitivities) == [layer.name for layer in one_text.network(name).layers]
    for s in found.sensitivities.values():
        assert not s[9:].any() and s[8].any()
    most = asked(name, follows=False)
    assert most.value < found.value and most.character == CHARACTERS[found.probabilities[8].argmax()]
    last = asked(name, count=len(TEXT))  # after which nothing follows
    assert last.character == CHARACTERS[last.probabilities[-1].argmax()]
    alone = asked(name, text=TEXT[:9], follows=False)  # what comes later changes nothing
    np.testing.assert_allclose(alone.probabilities, most.probabilities[:9], rtol=1e-12)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other[:9], atol=1e-14),
        alone.sensitivities,
        most.sensitivities,
    )


def test_sensitivities_of_the_embedding_are_the_derivatives_by_its_biases():
    """Of which every position has its own: central differences."""
    network, own, read = one_text.network("transformer"), params("transformer"), np.zeros((1, T), np.int32)
    read[0, : len(TEXT)] = one_text.tokens(TEXT)

    @jax.jit
    def value(bias):
        moved = jax.tree.map(jnp.asarray, own | {"embedding": own["embedding"] | {"bias": bias}})
        return -jnp.log(network.apply(moved, read)[0, 8, CHARACTERS.index(TEXT[9])])

    s, bias = asked("transformer").sensitivities["embedding"], own["embedding"]["bias"]
    for t in (0, 4, 8, 9):
        along = np.zeros_like(bias)
        along[t] = np.random.default_rng(t).normal(size=bias.shape[1])
        slope = (value(bias + 1e-5 * along) - value(bias - 1e-5 * along)) / 2e-5
        np.testing.assert_allclose(np.sum(s[t] * along[t]), slope, rtol=1e-6, atol=1e-9)


def test_sensitivities_through_time_equal_an_independent_gru():
    own, read = params("gru"), one_text.tokens(TEXT)
    U, initial = (own["state1"]["learned"][name] for name in ("recurrent", "initial"))
    n = jnp.asarray(own["state1"]["weights"]["sequence"].T[read] + own["state1"]["bias"])

    def step(h, n_t):
        (n_r, n_u, n_c), (z_r, z_u, z_c) = jnp.split(n_t, 3), jnp.split(U @ h, 3)
        r, u = jax.nn.sigmoid(n_r + z_r), jax.nn.sigmoid(n_u + z_u)
        c = jnp.tanh(n_c + r * z_c)
        h = (1 - u) * c + u * h
        return h, (h, r, u, c)

    def value(n):
        inside = jax.lax.scan(step, initial, n)[1]
        out = own["output"]["weights"]["state1"] @ inside[0][8] + own["output"]["bias"]
        return jax.nn.logsumexp(out) - out[CHARACTERS.index(TEXT[9])], inside

    (expected, inside), s = jax.jit(jax.value_and_grad(value, has_aux=True))(n)
    found = asked("gru")
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sensitivities["state1"], s, atol=1e-12)
    for shown, other in zip(found.inside.values(), inside, strict=True):
        np.testing.assert_allclose(shown, other, atol=1e-12)
    moved = np.diff(inside[0], axis=0, prepend=initial[None])
    np.testing.assert_allclose(found.changes, np.linalg.norm(moved, axis=1), rtol=1e-12)


def test_views_are_attention_states_and_gates():
    found = asked("transformer")
    assert tuple(found.inside) == one_text.views("transformer") and not found.changes.size
    for p in found.inside.values():
        assert p.shape == (len(TEXT), len(TEXT)) and not np.triu(p, 1).any()
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    found = asked("lstm").inside
    assert tuple(found) == one_text.views("lstm")
    m, i, p, c, o = (found[view] for view in one_text.views("lstm")[1:])
    np.testing.assert_allclose(m[1:], p[1:] * m[:-1] + i[1:] * c[1:], atol=1e-12)
    np.testing.assert_allclose(found["state h"], o * np.tanh(m), atol=1e-12)


def test_changes_compile_nothing():
    asked("gru")
    compiled = one_text._program("gru")._cache_size()
    asked("gru", 1, False, "x" * T)
    assert one_text._program("gru")._cache_size() == compiled


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected 1 to 32 characters, got nothing"),
        ("Größe [é]", "expected letters a to z, digits, spaces and .*, got 'öß\\[é\\]'"),
        ("x" * 33, "expected 1 to 32 characters, got 33"),
    ],
)
def test_invalid_texts_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        one_text.read(text)


def test_the_training_text_has_only_the_characters():
    learned = one_text.reference()
    assert len(learned) > 200_000 and set(learned) <= set(CHARACTERS) and "  " not in learned
    assert one_text.read(learned[:T].upper()) == learned[:T]


def test_the_next_character_is_always_among_the_bars():
    question, found = Question("gru", TEXT, 9, True), asked("gru")
    order = found.probabilities[8].argsort()
    for follows in CHARACTERS[order[0]], CHARACTERS[order[-1]]:
        shown, p, at = attention.most_probable(question._replace(text=TEXT[:9] + follows), found)
        assert shown[at] == follows and p[at] == found.probabilities[8, CHARACTERS.index(follows)]
        assert len(shown) == attention._BARS + (follows == CHARACTERS[order[0]])
    assert attention.most_probable(question._replace(text=TEXT[:9]), found)[2] is None


# In a browser ---------------------------------------------------------------------------------------------------------


def test_a_text_is_typed_and_a_prediction_followed(visit):
    page = visit("attention")
    page.until(lambda: page.status().startswith("After 19 characters the transformer predicts"), 120)
    page.type("text", "Sum of")
    page.until(lambda: page.status().startswith("After 6 characters"))
    assert page.get("count", "end") == page.get("count", "value") == 6
    found = one_text.answer(Question("transformer", "sum of", 6, True))[1]
    assert page.data("strip")["text"] == [
        *"sum␣of",
        *attention.visible_text("".join(CHARACTERS[at] for at in found.probabilities.argmax(axis=1))),
    ]
    np.testing.assert_allclose(page.data("next")["p"], np.sort(found.probabilities[-1])[::-1][:10], rtol=1e-5)
    assert page.data("true")["x"] == []

    page.click("strip-cells", 2.5, 0.5)
    page.until(lambda: page.status().startswith("After 3 characters"))
    assert len(page.data("true")["x"]) == 1
    page.focus("count", ".noUi-handle")
    page.press("ArrowRight")
    page.until(lambda: page.status().startswith("After 4 characters"))
    page.click("inside-cells", 0.5, 4.5)  # a row of the map
    page.until(lambda: page.status().startswith("After 5 characters"))
    s = one_text.answer(Question("transformer", "sum of", 5, True))[1].sensitivities["embedding"]
    page.until(lambda: np.allclose(page.data("sensitivity")["y"][:5], np.linalg.norm(s, axis=1)[:5], rtol=1e-4))

    for text, why in (("naïve", "ï"), ("", "nothing")):
        page.type("text", text)
        page.until(lambda why=why: page.status_kind() == "refuses" and why in page.status())
    page.type("text", "x")
    page.until(lambda: page.status().startswith("After 1 character the"))
    page.set("count", "value", 2)  # which a slider has to have
    page.until(lambda: page.get("count", "value") == 1)
    page.focus("add", "button")
    page.press(" ")
    page.until(lambda: page.status().startswith("After 2 characters"))

    page.set("network", "value", "gru")
    page.until(lambda: page.status().startswith("After 2 characters the gru"), 120)
    assert page.get("view", "options") == list(one_text.views("gru"))
    page.set("view", "value", "update gate u")
    page.until(lambda: page.data("inside")["words"][0].startswith("update gate u of neuron 1, after x"))
    assert len(page.data("change")["y"]) == 2
