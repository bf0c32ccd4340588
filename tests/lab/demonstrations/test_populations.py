"""The page on populations: a sweep's folder, what a brush selects, and what is then shown, against NumPy."""

import csv
import re

import appearance
import jax
import numpy as np
import pytest
from bokeh.document import Document

import functional_nn as fnn
from functional_nn.lab import experiments
from functional_nn.lab.demonstrations import populations, sweep_members
from functional_nn.lab.demonstrations.page import Live
from functional_nn.lab.demonstrations.sweep_members import HELD_OUT, TRAINING, members_of

RATES, SIZES, SEEDS, E = [0.001, 0.01, 0.1, 1.0, 10.0], [8, 32], 3, 12
N = len(RATES) * len(SIZES) * SEEDS


def made(**changes):
    """A table and a history as `fit_population` gives them: the rate 10 diverges, one member stops early."""
    settings = fnn.training.grid(learning_rate=RATES, batch_size=SIZES, seed=range(SEEDS)) | changes
    rng = np.random.default_rng(1)
    count = len(next(iter(settings.values())))
    losses = rng.uniform(0.5, 1.5, (1, count)) * np.exp(-np.outer(np.arange(E), rng.uniform(0.01, 0.5, count)))
    status, epochs = np.full(count, "completed", "U32"), np.full(count, E)
    if "learning_rate" in settings:
        out = settings["learning_rate"] == 10.0
        status[out], epochs[out] = "diverged", 4
    status[1], epochs[1] = "early_stopping", 7
    losses[np.arange(E)[:, None] >= epochs[None, :]] = np.nan
    last = epochs - 1, np.arange(count)
    table = {
        "member": np.arange(count),
        **settings,
        "status": status,
        "epochs": epochs,
        "updates": epochs * 5,
        "training_loss": 2 * losses[last],
        "training_accuracy": np.full(count, np.nan),
        "gradient_norm": np.ones(count),
        "validation_loss": losses[last],
        "validation_accuracy": rng.uniform(size=count),
    }
    return list(settings), table, {"training_loss": 2 * losses, "validation_loss": losses}


def write(folder, names, table, history):
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    np.savez_compressed(folder / "history.npz", **history)
    return folder


# Computed -------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_back(tmp_path):
    names, table, history = made(activation=np.array(["tanh", "relu"] * (N // 2)), width=np.full(N, 4))
    read, wanted = sweep_members.read(write(tmp_path, names, table, history)), members_of("x", names, table, history)
    assert list(read.columns) == ["learning_rate", "batch_size", "seed", "activation"] and read.source == str(tmp_path)
    for name, column in read.columns.items():
        assert column.dtype.kind == table[name].dtype.kind and (column == table[name]).all()
    for name in ("loss", "accuracy", "lost"):
        np.testing.assert_array_equal(getattr(read, name), getattr(wanted, name))
    assert list(read.curves) == [HELD_OUT, TRAINING]
    np.testing.assert_array_equal(read.curves[TRAINING], wanted.curves[TRAINING])
    assert read.lost.sum() == 6


def test_a_population_as_it_is_trained_and_written(tmp_path):
    """By the library: what is read from its files is what the population holds."""
    task = experiments.load("wine")
    settings = fnn.training.grid(learning_rate=[0.01, 1e6], seed=range(2))
    population = fnn.training.fit_population(
        fnn.multilayer((13, 3), ("softmax",)),
        "mean_square_error",
        "gd",
        settings,
        (task.inputs, task.targets),
        key=jax.random.key(0),
        epochs=3,
        plan=fnn.training.batch(),
        validation=task.test,
        chunk=3,
    )
    population.to_csv(tmp_path / "results.csv")
    population.save_history(tmp_path / "history.npz")
    read = sweep_members.read(tmp_path)
    np.testing.assert_allclose(read.loss, population.table()["validation_loss"], rtol=1e-6)
    np.testing.assert_allclose(read.curves[HELD_OUT][:, :2], population.history.validation_loss[:, :2], rtol=1e-6)
    assert list(read.columns) == ["learning_rate", "seed"] and read.accuracy is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "results.csv").unlink(), "is not a sweep's folder: it has no results.csv"),
        (lambda f: (f / "history.npz").unlink(), "is not a sweep's folder: it has no history.npz"),
        (lambda f: (f / "history.npz").write_bytes(b"PK\x03\x04 cut off"), "not this sweep's history"),
        (
            lambda f: np.savez(f / "history.npz", training_loss=np.ones((2, 3)), validation_loss=np.ones((2, 3))),
            r"training_loss expected shape \(epochs, 30\), got \(2, 3\)",
        ),
        (
            lambda f: np.savez(f / "history.npz", training_loss=np.ones((2, N)), validation_loss=np.ones((2, N))),
            "expected 12 epochs, as in results.csv, got 2",
        ),
        (lambda f: (f / "results.csv").write_text(""), "the column 'member' is missing"),
        (lambda f: (f / "results.csv").write_bytes(b"\xff\xfe\x00"), "not a sweep's table"),
        (lambda f: (f / "results.csv").write_text("a,b\n1,2\n"), "the column 'member' is missing"),
        (lambda f: cut(f, lambda lines: lines[:1]), "it has no members"),
        (lambda f: cut(f, lambda lines: [*lines[:2], "1,2"]), "line 3: expected 12 values, got 2"),
        (
            lambda f: cut(f, lambda lines: [line.replace("completed,12", "completed,x") for line in lines]),
            "epochs: expected integers",
        ),
    ],
)
def test_folders_that_are_not_sweeps(tmp_path, damage, said):
    write(tmp_path, *made())
    damage(tmp_path)
    with pytest.raises(ValueError, match=said):
        sweep_members.use(tmp_path)


def cut(folder, change):
    path = folder / "results.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'.*nowhere' is not a sweep's folder: it does not exist"):
        sweep_members.use(tmp_path / "nowhere")


def test_curves_continue_after_a_stop_and_end_at_divergence():
    names, table, history = made()
    curves = members_of("x", names, table, history).curves[HELD_OUT]
    for m in range(N):
        own, epochs = history["validation_loss"][:, m], table["epochs"][m]
        np.testing.assert_array_equal(curves[:epochs, m], own[:epochs])
        after = np.nan if table["status"][m] == "diverged" else own[epochs - 1]
        np.testing.assert_array_equal(curves[epochs:, m], np.full(E - epochs, after))


def test_the_median_counts_diverged_members_as_worst():
    shown = members_of("x", *made())
    mask = np.isin(np.arange(N), [0, 1, 2, 25, 26])
    chosen = populations.choose(shown, mask, HELD_OUT)
    curves = shown.curves[HELD_OUT][:, mask]
    assert np.isnan(curves[5:, 3:]).all()
    np.testing.assert_array_equal(chosen.median[:4], np.median(curves, axis=1)[:4])
    np.testing.assert_array_equal(chosen.median[4:], np.max(curves[4:, :3], axis=1))  # 2 of 5 are above all others
    mostly_lost = populations.choose(shown, np.isin(np.arange(N), [0, 25, 26]), HELD_OUT)
    assert np.isfinite(mostly_lost.median[:4]).all() and np.isnan(mostly_lost.median[4:]).all()


def test_the_best_are_the_lowest_of_the_selected():
    shown = members_of("x", *made())
    mask = shown.columns["batch_size"] == 8
    best = populations.choose(shown, mask, HELD_OUT).best
    ranked = sorted((loss, m) for m, loss in enumerate(shown.loss) if mask[m] and not shown.lost[m])
    assert best.tolist() == [m for _, m in ranked[:10]]
    assert populations.choose(shown, np.isin(np.arange(N), [0, 25, 26]), HELD_OUT).best.tolist() == [0]  # not the lost
    nothing = populations.choose(shown, np.zeros(N, bool), HELD_OUT)
    assert nothing.best.size == nothing.lines.size == 0 and np.isnan(nothing.median).all()


def test_the_number_of_curves_is_limited():
    loss = np.random.default_rng(0).permutation(1000) * 1.0
    ids = populations.sample(np.arange(1000), loss, 100)
    assert len(ids) == len(set(ids.tolist())) == 100
    assert loss[ids[0]] == 0 and loss[ids[-1]] == 999 and np.diff(loss[ids]).max() <= 11
    for count in (1, 2, 59, 60, 61, 1000):
        epochs = populations.shown_epochs(count)
        assert epochs[0] == 0 and epochs[-1] == count - 1 and len(epochs) == min(count, 60)


@pytest.mark.parametrize(
    ("name", "values", "options", "power"),
    [
        ("learning_rate", np.geomspace(1e-3, 1, 9), [], True),
        ("momentum", np.linspace(0, 0.9, 9), [], False),
        ("batch_size", np.array([16, 0, 4, 16]), ["4", "16", "all"], False),
        ("width", np.arange(2, 40), [], False),
        ("activation", np.array(["tanh", "relu", "tanh"]), ["relu", "tanh"], False),
        ("decay", np.array([0.5, 0.9]), ["0.5", "0.9"], False),
    ],
)
def test_scales(name, values, options, power):
    of = populations.scale(name, values)
    assert (
        of.options == options and of.power == power and of.places.shape == values.shape and np.isfinite(of.places).all()
    )
    if of.power:
        np.testing.assert_allclose(10**of.places, values)
    elif not of.options:
        np.testing.assert_array_equal(of.places, values)
    x, y = populations.spread(of, of)
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) == len(values)  # no point hides another
    assert np.abs(x - of.places).max() <= (0.3 if of.options else 0)


@pytest.mark.slow
def test_the_small_population_is_trained_once():
    sweep_members.use(None)
    shown = sweep_members.members()
    assert sweep_members.members() is shown and list(shown.columns) == ["learning_rate", "batch_size", "seed"]
    assert len(shown) == 108 and 0 < shown.lost.sum() < 20
    assert shown.loss[~shown.lost].min() < 0.01 and shown.columns["learning_rate"][shown.lost].min() > 1


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder that the server shows, and what is in it."""
    sweep_members.use(write(tmp_path, *made()))
    yield sweep_members.members()
    sweep_members.use(None)


def selected(page):
    return [m for m, alpha in enumerate(page.data("points")["alpha"]) if alpha == 1]


def drag(page, figure, start, end):
    """A real drag between data coordinates of a figure."""
    places = [page.at(figure, *point) for point in (start, (np.add(start, end) / 2).tolist(), end)]
    moves = [("mouseMoved", 0), ("mousePressed", 0), ("mouseMoved", 1), ("mouseMoved", 2), ("mouseReleased", 2)]
    for kind, at in moves:
        place = {"x": places[at][0], "y": places[at][1], "button": "left", "buttons": 1, "clickCount": 1}
        page.browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place})


def wait_for_selection(page, wanted):
    page.until(lambda: selected(page) == wanted.tolist())
    page.until(lambda: page.status().startswith(f"{len(wanted)} of {N} selected"))


def check(page, shown, mask):
    """The page's numbers about a selection equal NumPy's."""
    wait_for_selection(page, np.flatnonzero(mask))
    curves = np.where(np.isnan(shown.curves[HELD_OUT][:, mask]), np.inf, shown.curves[HELD_OUT][:, mask])
    median = np.array(page.data("median")["y"], float)
    np.testing.assert_allclose(np.where(np.isnan(median), np.inf, median), np.median(curves, axis=1), rtol=1e-6)
    drawn = np.array(page.data("lines")["ys"], float)
    lowest = np.sort(shown.curves[HELD_OUT][0, mask])
    np.testing.assert_allclose(np.sort(drawn[:, 0]), lowest, rtol=1e-6)
    best = np.flatnonzero(mask)[np.where(shown.lost, np.inf, shown.loss)[mask].argmin()]
    assert f"{(shown.lost & mask).sum()} of them diverged; the best is member {best}:" in page.status()


def test_keys_select_the_members(visit, sweep):
    page = visit("populations")
    page.until(lambda: page.status().startswith(f"{N} of {N} selected"))
    check(page, sweep, np.ones(N, bool))
    page.focus("choose-across", ".noUi-handle-upper")
    page.press("ArrowLeft", 2)
    rates, sizes = sweep.columns["learning_rate"], sweep.columns["batch_size"]
    check(page, sweep, rates < 10)
    page.focus("choose-upwards", "input")
    page.press(" ")
    check(page, sweep, (rates < 10) & (sizes == 32))
    page.set("choose-upwards", "active", [])
    page.until(lambda: page.status_kind() == "warns" and page.status().startswith(f"None of {N} members is selected"))
    assert page.data("lines")["ys"] == [] and selected(page) == []


def test_a_box_selects_and_the_controls_follow(visit, sweep):
    page = visit("populations")
    page.until(lambda: page.status().startswith(f"{N} of {N} selected"))
    drag(page, "members", (-2.5, 0.1), (-0.5, 0.28))  # a part of the points of batch size 8
    mask = np.isin(sweep.columns["learning_rate"], [0.01, 0.1]) & (sweep.columns["batch_size"] == 8)
    check(page, sweep, mask)
    low, high = page.get("choose-across", "value")
    assert (low, high) == pytest.approx((-2.5, -0.5), abs=0.03) and page.get("choose-upwards", "active") == [0]
    page.changed(lambda: drag(page, "members", (-2.7, 0.0), (-2.3, 1.0)), page.status)
    assert page.status_kind() == "refuses" and "no member in that box" in page.status()
    assert selected(page) == np.flatnonzero(mask).tolist()


def test_other_hyperparameters_on_the_axes(visit, sweep):
    """Two axes are never the same; after a change of axes everything is selected."""
    page = visit("populations")
    page.until(lambda: page.status().startswith(f"{N} of {N} selected"))
    page.set("choose-upwards", "active", [1])
    wait_for_selection(page, np.flatnonzero(sweep.columns["batch_size"] == 32))
    page.changed(lambda: page.set("across", "value", "batch_size"), lambda: page.data("points")["x"])
    wait_for_selection(page, np.arange(N))
    assert (page.get("across", "value"), page.get("upwards", "value")) == ("batch_size", "learning_rate")
    places = np.searchsorted(SIZES, sweep.columns["batch_size"])
    np.testing.assert_array_equal(np.rint(page.data("points")["x"]), places)
    np.testing.assert_allclose(page.data("points")["y"], np.log10(sweep.columns["learning_rate"]), atol=1e-6)
    page.set("metric", "value", TRAINING)
    wanted = np.median(np.nan_to_num(sweep.curves[TRAINING], nan=np.inf), axis=1)
    page.until(lambda: np.allclose(page.data("median")["y"], wanted, rtol=1e-6))


@pytest.mark.parametrize("more", [0, pytest.param(9, marks=pytest.mark.slow)])
def test_the_page_on_every_screen_light_and_dark(visit, tmp_path, more):
    """Of a sweep that varies much, too."""
    others = {f"some_hyperparameter_{i}": np.arange(N) * 10.0**i / 7 for i in range(more)}
    sweep_members.use(write(tmp_path, *made(**others)))
    try:
        appearance.check(visit("populations"))
    finally:
        sweep_members.use(None)


def test_the_text_of_a_point_is_fully_visible(visit, sweep):
    """At both ends of a phone's screen, in the dark."""
    page = visit("populations", 400)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", appearance.scheme("dark"))
    page.until(lambda: page.status().startswith(f"{N} of {N} selected"))
    points = page.data("points")
    for m in (np.argmin(points["x"]), np.argmax(points["x"])):
        x, y = page.at("members", points["x"][m], points["y"][m])
        for near in (1, 0):
            place = {"type": "mouseMoved", "x": x - near, "y": y}
            page.browser.execute_cdp_cmd("Input.dispatchMouseEvent", place)
        tip = page.until(
            lambda m=m: page.script(
                """
            const tip = document.querySelector(".bk-Tooltip"), box = tip?.getBoundingClientRect();
            const said = tip?.shadowRoot.querySelector(".bk-tooltip-content").innerText ?? "";
            const ground = tip && getComputedStyle(tip).backgroundColor;
            return said.startsWith(arguments[0]) && [box.left, box.right, ground, said]""",
                f"member {m}\n",
            )
        )
        assert 0 <= tip[0] < tip[1] <= 400 and tip[2] == "rgb(27, 33, 43)" and "learning_rate" in tip[3]


def test_the_ten_best_are_visible_at_once(visit, sweep):
    """On a screen of 1280 x 720, without scrolling."""
    page = visit("populations")
    page.until(lambda: page.status().startswith(f"{N} of {N} selected"))
    rows = page.script_with_view(
        "return [...view('best').shadow_el.querySelectorAll('tbody tr')]"
        ".map(row => row.getBoundingClientRect()).map(box => [box.right, box.bottom])"
    )
    assert len(rows) == 10 and np.max(rows, axis=0).tolist() < [1280, 720]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_tables_of_the_best(monkeypatch, count):
    monkeypatch.setattr(Live, "ask", lambda self, question: None)
    page = populations._Page(Document())
    page.arrive(members_of("x", *made()))
    text = str(page.tables(populations.choose(page.shown, np.arange(N) < count, HELD_OUT).best))
    ids = re.findall(r'data-of="member">(\d+)<', text)
    wanted = populations.choose(page.shown, np.arange(N) < count, HELD_OUT).best
    assert ids == [str(m) for m in wanted] and text.count("<table>") == (1 if count == 1 else 2)
