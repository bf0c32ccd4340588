"""Figures show their data, whatever numbers it holds, and warn of nothing (warnings are errors here)."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn.lab import measures, plots
from functional_nn.training import History

COLUMNS = {
    "falling": np.array([1.0, 0.1, 0.01]),
    "rising": np.array([1.0, 1e10, 1e30]),
    "zeros": np.zeros(3),
    "zeros at the end": np.array([1.0, 0.0, 0.0]),
    "nan": np.full(3, np.nan),
    "nan at the end": np.array([1.0, 2.0, np.nan]),
    "inf": np.array([1.0, np.inf, np.nan]),
    "only inf": np.full(3, np.inf),
    "negative": np.array([-1.0, -2.0, -3.0]),
    "tiny": np.array([5e-324, 1e-310, 1e-300]),
    "one epoch": np.array([0.5]),
    "one epoch, nan": np.array([np.nan]),
    "one epoch, zero": np.array([0.0]),
}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def draw(figure):
    """Draws the figure; what it warns of shows here."""
    figure.savefig(io.BytesIO(), format="svg")
    return figure


def history(losses, accuracies=None):
    accuracies = np.full(len(losses), np.nan) if accuracies is None else accuracies
    return History(np.arange(1, len(losses) + 1), losses, accuracies, losses, losses / 2, accuracies)


def points(axis):
    """What can be seen: the finite points of each line that holds any, on the axis' own scale."""
    shown = []
    for line in axis.lines:
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        seen = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (axis.get_yscale() == "linear"))
        shown.append(list(zip(x[seen], y[seen], strict=True)))
    return shown


@pytest.mark.parametrize("name", COLUMNS)
def test_learning_curves_of_any_numbers(name):
    values = COLUMNS[name]
    figure = draw(plots.learning_curves(history(values)))
    assert [axis.get_title() for axis in figure.axes] == ["loss", "gradient norm"]
    shown = [point for line in points(figure.axes[0]) for point in line]
    for epoch, value in enumerate(values, start=1):
        if value > 0 and np.isfinite(value):
            assert (epoch, value) in shown
        if value == 0:
            assert any(x == epoch and y >= 0 for x, y in shown), "an exact zero is marked"


@pytest.mark.parametrize("name", ["zeros", "nan", "only inf"])
def test_learning_curves_of_two_kinds(name):
    """Such as no error at all in training, while some are left among the held-out examples."""
    columns = history(COLUMNS[name])._replace(validation_loss=COLUMNS["falling"])
    loss = points(draw(plots.learning_curves(columns)).axes[0])
    assert [(1, 1.0), (2, 0.1), (3, 0.01)] in loss


def test_learning_curves_show_every_loss_and_the_error_rate():
    losses, accuracies = np.array([1.0, 0.5, 0.25]), np.array([0.5, 0.75, 1.0])
    figure = draw(plots.learning_curves(history(losses, accuracies)))
    assert [axis.get_title() for axis in figure.axes] == ["loss", "error rate", "gradient norm"]
    loss, errors, norm = map(points, figure.axes)
    assert loss == [[(1, 1.0), (2, 0.5), (3, 0.25)], [(1, 0.5), (2, 0.25), (3, 0.125)]]
    assert errors[0] == [(1, 0.5), (2, 0.25)] and errors[1] == [(3, 0.125)], "no error at all is an open circle"
    assert norm == loss[:1]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["training", "held out"]


@pytest.mark.parametrize("epochs", [[0], [0, 1, 2, 3]])
@pytest.mark.parametrize("value", [0.0, 1e-8, 1.0, np.inf, np.nan])
def test_gradient_agreement_of_any_numbers(epochs, value):
    errors = {"layer1/bias": [value] * len(epochs), "layer1/weights/input": [1e-7] * len(epochs)}
    figure = draw(plots.gradient_agreement(epochs, errors, [1e-5] * len(epochs), 6e-8))
    axis = figure.axes[0]
    assert axis.get_yscale() == "log"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [*errors, "bound", "unit roundoff"]
    expected = max(value, 6e-8 / 8) if np.isfinite(value) else None
    assert points(axis)[0] == ([(epoch, expected) for epoch in epochs] if expected else [])
    assert points(axis)[1] == [(epoch, 1e-7) for epoch in epochs]


@pytest.mark.parametrize(("targets", "panels"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 3))])
def test_predictions_are_drawn_against_true_values(targets, panels):
    rng = np.random.default_rng(0)
    true, guessed = rng.normal(size=(2, 9, targets))
    guessed[0] = np.nan
    names = [f"$target {i}$" for i in range(targets)]
    figure = draw(plots.predictions(true, guessed, names))
    assert figure.axes[0].get_gridspec().get_geometry() == panels
    assert [axis.get_title() for axis in figure.axes] == names
    for column, axis in enumerate(figure.axes):
        points = np.stack([true[1:, column], guessed[1:, column]], axis=1)
        assert np.array_equal(axis.collections[0].get_offsets(), points)
        (line,) = axis.lines  # on which a prediction is right
        x, y = line.get_xy1()
        assert x == y == true[1, column] and line.get_slope() == 1


def test_predictions_without_a_finite_number():
    axis = draw(plots.predictions(np.zeros((3, 1)), np.full((3, 1), np.nan), ["a"])).axes[0]
    assert [text.get_text() for text in axis.texts] == ["nothing finite"]


def test_tracked_numbers_are_drawn_measure_by_measure():
    epochs = np.arange(1, 4)
    measures = {
        "scale": {"total": np.array([1.0, 10.0, 100.0]), "$layer1": np.array([1.0, np.nan, np.inf])},
        "signal": {"total": np.array([0.0, -1.0, 1.0])},
    }
    figure = draw(plots.tracked(epochs, measures))
    assert [axis.get_title() for axis in figure.axes] == list(measures)
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear"]
    for axis, curves in zip(figure.axes, measures.values(), strict=True):
        for line, values in zip(axis.lines, curves.values(), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), values)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["total", "$layer1"]
    assert figure.axes[0].lines[0].get_color() == figure.axes[1].lines[0].get_color(), "a name has one colour"
    assert all(axis.yaxis.get_tick_params().get("labelleft", True) for axis in figure.axes)  # each has its own scale


def test_tracked_numbers_of_one_epoch_are_visible():
    axis = draw(plots.tracked(np.array([1]), {"scale": {"total": np.array([1.0])}})).axes[0]
    assert axis.lines[0].get_marker() == "."


def test_a_bound_of_nan_is_drawn_without_warning():
    for bound in (0.0, np.inf, np.nan):
        draw(plots.gradient_agreement([0, 1], {"a": [1e-7, 0.0]}, [bound, 1e-5], 6e-8))


@pytest.mark.parametrize("name", COLUMNS)
def test_performance_circles_the_best_epoch_of_any_numbers(name):
    values = COLUMNS[name]
    columns = history(values)._replace(validation_loss=values)
    axis = draw(plots.performance(columns, test=values, unit="step")).axes[0]
    finite = np.isfinite(values)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == (["training", "validation", "test"] if finite.any() else ["training", "test"])
    if not finite.any():
        assert axis.get_title() == "no loss is finite"
        return
    best = 1 + int(np.argmin(np.where(finite, values, np.inf)))
    assert axis.get_title() == f"best validation loss {values[best - 1]:.4g}, step {best}"
    circled = [line for line in axis.lines if line.get_markersize() == 9]
    if values[best - 1] > 0 or axis.get_yscale() == "linear":
        assert [line.get_xydata().tolist() for line in circled] == [[[best, values[best - 1]]]]
    else:
        assert not circled


def test_performance_without_validation_is_the_trainings():
    axis = draw(plots.performance(history(COLUMNS["falling"])._replace(validation_loss=np.full(3, np.nan)))).axes[0]
    assert axis.get_title() == "best training loss 0.01, epoch 3" and axis.get_legend() is None


def test_the_state_of_training_counts_failures():
    losses = np.array([3.0, 2.0, 2.5, 2.0, np.nan, 1.0])
    columns = history(np.geomspace(1, 1e-3, 6))._replace(validation_loss=losses)
    figure = draw(plots.training_state(columns, {"mu": np.geomspace(1e-3, 1e3, 6), "$rate": np.ones(6)}))
    assert [axis.get_ylabel() for axis in figure.axes] == ["gradient norm", "mu", "$rate", "failures"]
    assert [axis.lines[0].get_ydata().tolist() for axis in figure.axes[1:]] == [
        np.geomspace(1e-3, 1e3, 6).tolist(),
        [1.0] * 6,
        [0, 0, 1, 2, 3, 0],
    ]
    without = draw(plots.training_state(columns._replace(validation_loss=np.full(6, np.nan))))
    assert [axis.get_ylabel() for axis in without.axes] == ["gradient norm"]


@pytest.mark.parametrize("name", COLUMNS)
def test_the_state_of_training_of_any_numbers(name):
    draw(plots.training_state(history(COLUMNS[name]), {"mu": COLUMNS[name]}))


def test_regression_has_a_panel_for_each_part_and_one_for_all():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(30, 2))
    a = 0.5 * t + 1 + 0.1 * rng.normal(size=(30, 2))
    a[0, 0] = np.nan
    figure = draw(plots.regression({"training": (t[:20], a[:20]), "$test": (t[20:], a[20:])}))
    known = np.isfinite(a)
    for axis, rows in zip(figure.axes, (slice(20), slice(20, 30), slice(30)), strict=True):
        x, y = t[rows][known[rows]], a[rows][known[rows]]
        assert axis.get_title().endswith(f": R = {np.corrcoef(x, y)[0, 1]:.4f}")
        slope, offset = np.polyfit(x, y, 1)
        assert axis.get_ylabel() == f"output ~ {slope:.3g} target + {offset:.3g}"
        assert len(axis.collections[0].get_offsets()) == x.size
    assert [axis.get_title().partition(":")[0] for axis in figure.axes] == ["training", "$test", "all"]


@pytest.mark.parametrize("name", COLUMNS)
def test_regression_and_errors_of_any_numbers(name):
    values = COLUMNS[name]
    parts = {"training": (values, values[::-1]), "test": (np.ones(3), np.array([1.0, 2.0, np.nan]))}
    draw(plots.regression(parts))
    draw(plots.error_histogram(parts))


def test_the_histogram_of_errors_stacks_the_parts():
    rng = np.random.default_rng(0)
    parts = {name: (rng.normal(size=(n, 2)), rng.normal(size=(n, 2))) for name, n in (("training", 30), ("test", 9))}
    axis = draw(plots.error_histogram(parts, bins=7)).axes[0]
    heights = [[patch.get_height() for patch in bars] for bars in axis.containers]
    assert [sum(h) for h in heights] == [60, 18] and len(heights[0]) == 7
    errors = np.concatenate([(t - a).ravel() for t, a in parts.values()])
    np.testing.assert_array_equal(np.sum(heights, axis=0), np.histogram(errors, 7)[0])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["training", "test", "no error"]


@pytest.mark.parametrize("size", [0.0, 1e-300, 3.0, 1e32])
def test_equal_errors_have_one_bar(size):
    t = np.full((5, 1), size) * (1 + np.arange(5)[:, None] * np.finfo(float).eps)
    axis = draw(plots.error_histogram({"training": (t, np.zeros((5, 1)))})).axes[0]
    assert [patch.get_height() for patch in axis.patches] == [5]


def test_a_confusion_matrix_with_percentages():
    counts = np.array([[6, 2, 0], [0, 10, 0], [0, 0, 0]])
    axis = draw(plots.confusion(counts, ("a", "b", "c"), percentages=True)).axes[0]
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axis.texts}
    assert [written[0, k] for k in range(4)] == ["6\n33.3 %", "2\n11.1 %", "0\n0 %", "75 %"]
    assert [written[3, k] for k in range(4)] == ["100 %", "83.3 %", "-", "88.9 %"]  # 16 of 18
    assert [written[k, 3] for k in range(3)] == ["75 %", "100 %", "-"]


@pytest.mark.oracle
def test_characteristics_are_scikit_learns():
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(0)
    labels, outputs = rng.integers(0, 3, 60), np.round(rng.normal(size=(60, 3)), 1)
    figure = draw(plots.roc(labels, outputs, ("a", "b", "$c")))
    for k, line in enumerate(figure.axes[0].lines[:3]):
        false, true, _ = roc_curve(labels == k, outputs[:, k], drop_intermediate=False)
        np.testing.assert_allclose(line.get_xydata(), np.stack([false, true], axis=1))
        area = roc_auc_score(labels == k, outputs[:, k])
        assert line.get_label() == f"{'ab$'[k]}{'c' if k == 2 else ''}: area {area:.4g}"


@pytest.mark.parametrize("labels", [np.zeros(4, int), np.ones(4, int)])
def test_a_characteristic_of_a_single_class_is_nan(labels):
    found = measures.characteristic(labels == 1, np.array([0.3, np.nan, 0.1, 0.2]))
    assert np.isnan(found.area) and np.isnan(found.true if labels[0] == 0 else found.false).all()
    draw(plots.roc(labels, np.zeros((4, 2)), ("a", "b")))


def test_confusion_writes_every_count_in_its_place():
    counts = np.array([[5, 0, 1], [0, 0, 0], [12, 3, 40]])
    axis = draw(plots.confusion(counts, ("a", "b", "c"))).axes[0]
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in axis.texts}
    assert written == {place: counts[place] for place in zip(*counts.nonzero(), strict=True)}
    bold = {(int(t.get_position()[1]), int(t.get_position()[0])) for t in axis.texts if t.get_fontweight() == "bold"}
    assert bold == {(0, 2), (2, 0), (2, 1)}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize("counts", [np.eye(2, dtype=int), np.zeros((2, 2), int), np.ones((1, 1), int)])
def test_confusion_without_mistakes(counts):
    draw(plots.confusion(counts, ("setosa", "b")[: len(counts)]))


HOSTILE = ["<script>alert(1)</script>", "--><b>", 'a"b', "a&b", "-1", "", "two\nlines"]
TEX = ["$5-$10", "$\\bad$", "a_b^c", "\\frac"]


@pytest.mark.parametrize("name", [*HOSTILE, *TEX])
def test_class_names_are_shown_as_plain_text(name):
    figure = draw(plots.confusion(np.eye(2, dtype=int), (name, "b")))
    label = figure.axes[0].get_yticklabels()[0]
    assert label.get_text() == name
    assert not name.count("$") > 1 or label.get_parse_math() is False


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (9, (1, 9)), (10, (1, 10)), (11, (2, 10)), (20, (2, 10))])
def test_images_stand_in_rows_of_ten(count, grid):
    pixels = np.random.default_rng(0).uniform(size=(count, 6))
    figure = draw(plots.images(pixels, (3, 2), [f"caption {q}" for q in range(count)]))
    assert len(figure.axes) == grid[0] * grid[1]
    for axis, row in zip(figure.axes, pixels, strict=False):
        assert np.array_equal(axis.images[0].get_array(), row.reshape(3, 2))
    assert [axis.get_title() for axis in figure.axes[:count]] == [f"caption {q}" for q in range(count)]
    assert not any(axis.images for axis in figure.axes[count:])


def test_equal_data_give_an_equal_file():
    files = []
    for _ in range(2):
        file, figure = io.BytesIO(), plots.learning_curves(history(COLUMNS["falling"]))
        with plt.rc_context(plots.STYLE):
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        files.append(file.getvalue())
    assert files[0] == files[1]


def test_plots_do_not_change_the_users_style():
    before = dict(plt.rcParams)
    plots.learning_curves(history(COLUMNS["falling"]))
    plots.confusion(np.eye(2, dtype=int), ("a", "b"))
    assert dict(plt.rcParams) == before


# Of pictures and networks ---------------------------------------------------------------------------------------------


def test_three_channels_are_colours_and_others_are_averaged():
    """Each picture of colours from its darkest to its brightest, whatever scale it is on."""
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 3))
    for channels in (3, 2):
        figure = plots.images(values[..., :channels].reshape(2, -1), (3, 4, channels), ("a", "a long word and more"))
        shown = [axis.images[0].get_array() for axis in figure.axes]
        for picture, own in zip(shown, values[..., :channels], strict=True):
            expected = (own - own.min()) / (own.max() - own.min()) if channels == 3 else own.mean(axis=2)
            assert np.allclose(picture, expected)
        assert [axis.get_title() for axis in figure.axes] == ["a", "a long word\nand more"]
        plt.close(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_are_on_one_scale_about_0(channels):
    weights = np.random.default_rng(0).normal(size=(12, 3, 3, channels))
    figure = plots.kernels(weights)
    shown = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(shown) == 12
    for image, kernel in zip(shown, weights, strict=True):
        low, high = image.get_clim() if channels == 1 else (-np.abs(weights).max(), np.abs(weights).max())
        values = image.get_array() if channels == 1 else image.get_array() * (high - low) + low
        assert low == -high and np.allclose(values, np.squeeze(kernel))
    plt.close(figure)


def test_overlapping_arrows_have_different_lanes():
    arrows = [(0, 6), (1, 3), (2, 5), (3, 5), (5, 7)]
    lanes = plots._arrow_lanes(arrows)
    assert lanes[1, 3] == lanes[3, 5] == lanes[5, 7] == 0 and lanes[2, 5] == 1 and lanes[0, 6] == 2


def test_a_network_is_drawn_whole():
    """Every input, layer, shape and connection is written once for each arrow, and no text leaves the picture."""
    network = fnn.presets.get("residual(1, 8)")((8, 8, 1), 3)
    figure = plots.network(network)
    written = [text.get_text() for text in figure.axes[0].texts]
    boxes = [name for name, _ in network.inputs] + [layer.name for layer in network.layers]
    assert [text.split("  ")[0] for text in written[: 2 * len(boxes) : 2]] == boxes
    assert written[1 : 2 * len(boxes) : 2] == [plots.size_text(network.shapes[name]) for name in boxes]
    reads = [by.name for layer in network.layers for _, by in layer.reads]
    assert sorted(written[2 * len(boxes) :]) == sorted(reads)
    figure.draw_without_rendering()
    outer = figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1, text
    plt.close(figure)
