"""The page on convolution: every number against jax.grad of independent equations, and a visitor's actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_nn.lab.demonstrations import convolution, one_digit
from functional_nn.lab.demonstrations.one_digit import Question

NETWORK = one_digit.network()
PICTURES = {
    "drawn": np.random.default_rng(1).uniform(0, 1, (8, 8)),
    "empty": np.zeros((8, 8)),
    "one corner": np.eye(8)[:, :1] * np.eye(8)[:1],
}
each_picture = pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)


def params():
    """Not trained, so that nothing is small; with biases."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.standard_normal(x.shape), NETWORK.init(jax.random.key(3)))


def asked(picture, **changes):
    return one_digit.answer(Question(picture, 3, params(), 0.1)._replace(**changes))[1]


def window(x, i, j):
    """What element (i, j) of a 3 x 3 kernel meets at every position of x (H, W, C)."""
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    return padded[i : i + x.shape[0], j : j + x.shape[1]]


def value(params, picture, offsets):
    """F of class 3, in slices and sums; offsets are added to the net inputs."""

    def convolved(x, name, source):
        own = params[name]
        terms = (window(x, i, j) @ own["weights"][source][:, i, j].T for i in range(3) for j in range(3))
        return sum(terms) + own["bias"][None, None, :] + offsets[name]

    a1 = jnp.maximum(convolved(picture[:, :, None], "1", "p"), 0)
    n2 = a1 + offsets["2"]
    # two by two, as in a window either all tie or none: jnp.max compares with what a fused program rounds otherwise
    rows = jnp.maximum(n2[::2], n2[1::2])
    a2 = jnp.maximum(rows[:, ::2], rows[:, 1::2])
    a3 = jnp.maximum(convolved(a2, "3", "2"), 0)
    n4 = params["4"]["weights"]["3"] @ a3.ravel() + params["4"]["bias"] + offsets["4"]
    return jnp.log(jnp.sum(jnp.exp(n4))) - n4[3]


DERIVATIVES = jax.jit(jax.value_and_grad(value, (0, 1, 2)))


# Computed -------------------------------------------------------------------------------------------------------------


@each_picture
def test_every_derivative_against_jax_grad_of_the_equations(picture):
    found, own = asked(picture), params()
    offsets = {name: jnp.zeros(shape) for name, shape in NETWORK.net_shapes.items()}
    expected, (gradients, by_pixels, sensitivities) = DERIVATIVES(own, picture, offsets)

    def close(one, other):
        return np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)

    close(found.value, expected)
    for by_hand in (found.gradients, found.automatic):
        jax.tree.map(close, by_hand, gradients)
    jax.tree.map(close, found.sensitivities, sensitivities)
    close(found.input_gradient[:, :, 0], by_pixels)
    assert len(found.differences) == 1 + 4 + 3 and max(found.differences.values()) < 1e-12
    jax.tree.map(lambda new, old, g: close(new, old - 0.1 * g), found.updated, own, gradients)
    close(found.updated_value, DERIVATIVES(found.updated, picture, offsets)[0])


@each_picture
def test_the_kernels_gradient_is_the_sum_over_positions(picture):
    found = asked(picture)
    s, padded, total = found.sensitivities["1"], np.pad(picture, 1), np.zeros((6, 3, 3))
    for position in range(64):
        i, j = divmod(position, 8)
        met = padded[i : i + 3, j : j + 3]
        share = s[i, j][:, None, None] * met
        total = total + share
        np.testing.assert_array_equal(found.windows[position], met)
        np.testing.assert_allclose(found.shares[position], share, rtol=1e-15)
        np.testing.assert_allclose(found.sums[position], total, atol=1e-13)
    np.testing.assert_allclose(total, found.gradients["1"]["weights"]["p"][..., 0], atol=1e-13)
    shown = convolution.kernels(found, 4, 63)
    np.testing.assert_allclose(shown["sum"], shown["by-hand"], atol=1e-13)
    np.testing.assert_array_equal(shown["window"], padded[7:, 7:])


def test_the_digits_are_held_out_and_most_are_known():
    found = one_digit.trained()
    assert found is one_digit.trained() and 0.95 < found.right < 1  # something is left to send back
    assert all(len(pictures) >= one_digit.HELD_OUT for pictures in found.pictures)
    question, answer = one_digit.answer(Question((8, 0), 8, None, 0.01))
    np.testing.assert_array_equal(answer.picture, found.pictures[8][0])
    assert answer.outputs.argmax() == 8 and answer.updated_value < answer.value


def test_changes_compile_nothing():
    asked(PICTURES["drawn"])
    compiled = one_digit._program()._cache_size()
    asked(PICTURES["empty"], target=9, rate=3.0, params=jax.tree.map(lambda x: 2 * x, params()))
    assert one_digit._program()._cache_size() == compiled


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_an_invalid_rate_is_refused(rate):
    with pytest.raises(ValueError, match="learning_rate"):
        one_digit.check(rate)


def test_strokes_leave_no_gaps_and_stay_inside():
    paper = np.zeros((8, 8))
    drawn = one_digit.painted(paper, (0.5, 0.5), (7.5, 7.5), 0.75)
    np.testing.assert_array_equal(drawn, 0.75 * np.eye(8))
    assert paper.max() == 0  # a new picture
    down = one_digit.painted(paper, (2.5, -3.0), (2.5, 90.0), 1.0)
    np.testing.assert_array_equal(down, np.eye(8)[:, 2][None, :] * np.ones((8, 1)))
    np.testing.assert_array_equal(one_digit.painted(down, (2.5, 0.1), (2.9, 7.9), 0.0), paper)
    np.testing.assert_array_equal(one_digit.painted(drawn, (8.0, 8.0), (9.0, 12.0), 1.0), drawn)
    one = one_digit.painted(paper, (3.2, 5.9), (3.2, 5.9), 1.0)
    assert one.sum() == one[5, 3] == 1


@pytest.mark.parametrize("maps", [convolution.forward_maps(), convolution.back_maps()])
def test_a_click_means_the_pixel_below_it(maps):
    places = maps.pixels()
    expected = [
        (at, channel, i, j)
        for at, (height, width, channels) in enumerate(maps.shapes)
        for channel in range(channels)
        for i, j in np.ndindex(height, width)
    ]
    assert [maps.pixel(x, y) for x, y in zip(places["x"], places["y"], strict=True)] == expected
    assert maps.pixel(0.5, -0.1) is maps.pixel(1.05, -2.5) is maps.pixel(3.0, -0.8) is maps.pixel(-0.1, -0.8) is None


def test_maps_are_shown_number_by_number():
    """Each pixel is the number that its words name, and black is the largest of its layer."""
    found = asked(PICTURES["drawn"])
    maps = convolution.back_maps()
    signals = {
        "∂F/∂p": found.input_gradient,
        "s¹": found.sensitivities["1"],
        "s²": found.sensitivities["2"],
        "s³": found.sensitivities["3"],
    }
    values, shades = convolution.shades(list(signals.values()))
    for words, value_, shade in zip(maps.words("s"), values, shades, strict=True):
        name, *numbers = words.replace(",", "").split()
        channel, i, j = (int(number) - 1 for number in numbers[1::2])
        assert value_ == signals[name][i, j, channel] and shade == value_ / np.abs(signals[name]).max()


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (-0.0, "0"), (0.9375, "0.938"), (-0.0123456, "−0.0123"), (-0.000446, "−4.5e−4"), (2e-15, "2.0e−15")],
)
def test_numbers_in_pixels_are_short(number, text):
    assert convolution.short(number) == text


# In a browser ---------------------------------------------------------------------------------------------------------


def test_a_digit_is_drawn_and_its_kernels_gradient_followed(visit):
    page = visit("convolution")
    page.until(lambda: page.status().startswith("The network predicts 8"), 120)
    page.focus("number", ".noUi-handle")
    page.changed(lambda: page.press("ArrowRight"), lambda: page.data("picture")["ink"])
    np.testing.assert_allclose(page.data("picture")["ink"], one_digit.trained().pictures[8][1].ravel())
    page.focus("clear", "button")
    page.press(" ")
    page.until(lambda: max(page.data("picture")["ink"]) == 0)  # a valid picture, too
    assert page.get("digit", "value") == "drawn" and page.get("number", "disabled")
    page.drag("drawing", (3.5, 1.5), (3.5, 2.5), (3.5, 6.5))
    picture = np.zeros((8, 8))
    picture[1:7, 3] = 1
    page.until(lambda: np.array_equal(page.data("picture")["ink"], picture.ravel()))
    page.drag("drawing", (0.5, 7.5), (1.5, 7.5), (1.5, 6.5), rests=0.5)
    page.click("drawing", 6.5, 0.5)  # and what the mouse then passes stays as it is
    page.click("drawing", 4.5, 0.5)  # soon after
    picture[7, :2] = picture[6, 1] = picture[0, 6] = picture[0, 4] = 1
    page.set("target", "value", "1")
    page.until(lambda: np.array_equal(page.data("picture")["ink"], picture.ravel()))
    found = one_digit.answer(Question(picture, 1, None, 0.01))[1]
    page.until(lambda: np.allclose(page.data("outputs")["s"], found.sensitivities["4"], atol=1e-6))
    assert "the target is 1" in page.status() and page.status_kind() == ""

    x, y = convolution.back_maps().corner(1, 4)
    page.click("back-maps", x + 3.5 / 8, y - 6.5 / 8)  # channel 5, row 7, column 4
    page.until(lambda: (page.get("channel", "value"), page.get("position", "value")) == ("5", 51))
    shown = convolution.kernels(found, 4, 51)
    for name, values in shown.items():
        page.until(lambda n=name, v=values: np.allclose(page.data(f"kernel-{n}")["value"], v.ravel(), atol=1e-7))
    page.focus("position", ".noUi-handle")
    page.press("End")
    last = convolution.kernels(found, 4, 63)["by-hand"].ravel()
    page.until(lambda: np.allclose(page.data("kernel-sum")["value"], last, atol=1e-7))
    page.script("scrollTo(0, 0)")  # from where the keyboard was
    x, y = convolution.back_maps().corner(0, 0)
    page.click("back-maps", x + 0.5, y - 0.5)  # the pixels, where no kernel is
    page.until(lambda: page.status_kind() == "refuses")

    page.focus("train", "button")
    page.press(" ")
    page.until(lambda: "after 1 step" in page.status())
    after = one_digit.answer(Question(picture, 1, found.updated, 0.01))[1]
    page.until(lambda: np.allclose(page.data("outputs")["a"], after.outputs, atol=1e-6))
    page.type("rate", "-1")
    page.until(lambda: page.status_kind() == "refuses" and "learning_rate must be" in page.status())
    page.focus("again", "button")
    page.press(" ")
    page.until(lambda: np.allclose(page.data("outputs")["a"], found.outputs, atol=1e-6))
