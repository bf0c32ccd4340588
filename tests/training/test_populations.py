"""Populations: every member is what `fit` returns for it alone, whatever it is trained next to."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.training import checkpoints, group_training, search

KEY = jax.random.key(7)
NETWORK = fnn.multilayer((3, 4, 2), ("tanh", "softmax"))
EPOCHS = 8


def make_data(examples: int, seed: int):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(examples, 3))
    t = np.eye(2)[(x.sum(axis=1) + generator.normal(size=examples) > 0).astype(int)]
    return x, t


DATA, VALIDATION = make_data(22, 0), make_data(10, 1)


def chain(width, depth=1, activation="tanh"):
    return fnn.multilayer((3, *[width] * depth, 2), (activation,) * depth + ("softmax",))


def train(hyperparameters, optimizer="adam", network=NETWORK, **settings):
    defaults = {"key": KEY, "epochs": EPOCHS, "validation": VALIDATION, "plan": training.minibatch(5), "chunk": 3}
    return training.fit_population(network, "cross_entropy", optimizer, hyperparameters, DATA, **(defaults | settings))


def equal(a, b) -> bool:
    def same(x, y):
        return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True)

    return jax.tree.all(jax.tree.map(same, a, b))


def run_of(population, member):
    trained, position = population._locate(member)
    return jax.tree.map(lambda x: x[position], trained.runs)


SIX = search.grid(learning_rate=[0.003, 0.3], seed=range(3))
STOP = training.early_stopping(3)


@pytest.fixture(scope="module")
def population():
    return train(SIX, stop=STOP, block=2)


# A member is a run ----------------------------------------------------------------------------------------------------


@pytest.mark.newest
def test_a_member_is_what_it_would_be_alone(population):
    """The oracle is `fit`, which trains one network, with keys and settings as the docstring of fit_population says."""
    assert set(population.status) == {"completed", "early_stopping"}
    for member in (4,):
        init_key, _ = jax.random.split(jax.random.fold_in(KEY, SIX["seed"][member]))
        alone = fnn.fit(
            NETWORK,
            "cross_entropy",
            optimizers.adam(jnp.asarray(SIX["learning_rate"][member])),
            *DATA,
            key=KEY,
            epochs=EPOCHS,
            params=NETWORK.init(init_key),
            plan=training.minibatch(5),
            validation=VALIDATION,
            stop=STOP,
        )
        epochs = len(alone.history.epoch)
        assert (alone.status, epochs) == (population.status[member], population.epochs[member])
        history = jax.tree.map(lambda x, m=member: x[:, m], population.history)
        for name in ("training_loss", "validation_loss", "gradient_norm", "training_accuracy", "validation_accuracy"):
            column = getattr(history, name)
            np.testing.assert_allclose(column[:epochs], getattr(alone.history, name), rtol=1e-10)
            assert np.isnan(column[epochs:]).all()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), population.params(member), alone.params)
        assert equal(population.initial_params(member), NETWORK.init(init_key))


def test_drift_says_where_a_member_differs_from_its_run_alone_and_why(population):
    drift = population.drift(1)
    assert drift.relative < 1e-10 and drift.ulps.shape == (EPOCHS,) and drift.params_ulps < 1e6
    assert (drift.epoch is None) == (drift.ulps == 0).all()
    assert "fit` " in str(drift) and str(drift).startswith("member 1: ")
    np.testing.assert_allclose(
        population.solo(1).history.training_loss, population.history.training_loss[:, 1], rtol=1e-10
    )


def test_a_member_that_diverges_leaves_the_others_bitwise_unchanged():
    members = search.grid(learning_rate=[0.003, 0.3], seed=range(32))
    scales = np.ones(64)
    sound = train(members | {"initial_scale": scales}, stop=STOP, block=64)
    scales[4] = 1e308
    broken = train(members | {"initial_scale": scales}, stop=STOP, block=64)
    assert broken.status[4] == "diverged" and sound.status[4] != "diverged"
    others = np.arange(64) != 4

    def at(tree):
        return jax.tree.map(lambda x: x[:, others], tree)

    assert equal(at(sound.history), at(broken.history))
    assert equal(*(jax.tree.map(lambda x: x[others], found.groups[0].runs) for found in (sound, broken)))
    assert broken.table()["updates"][4] == 0 and not np.isfinite(broken.history.training_loss[0, 4])


def test_a_diverged_member_keeps_its_last_finite_state_and_the_number_of_the_failed_update():
    """gd on a linear network with a rate far too large: alone and in a population the same update is not made."""
    network = fnn.multilayer((3, 2), ("linear",))
    rates = {"learning_rate": [0.01, 1e12]}
    settings = {"key": KEY, "epochs": 4, "plan": training.minibatch(5), "chunk": 4}
    found = training.fit_population(network, "sum_square_error", "gd", rates, DATA, **settings)
    alone = found.solo(1)
    assert alone.status == found.status[1] == "diverged" and found.status[0] == "completed"
    run = run_of(found, 1)
    assert f"update {run.failed}," in alone.reason and found.table()["updates"][1] == run.failed - 1
    assert int(run.state.step) == int(alone.state.step) == run.failed - 1
    for x, expected in zip(jax.tree.leaves(found.params(1)), jax.tree.leaves(alone.params), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, expected, rtol=1e-9)


def test_the_order_of_members_changes_nothing(population):
    order = np.array([3, 0, 5, 1, 4, 2])
    other = train({name: column[order] for name, column in SIX.items()}, stop=STOP, block=2)
    assert (other.status == population.status[order]).all()
    np.testing.assert_allclose(other.history.training_loss, population.history.training_loss[:, order], rtol=1e-10)


def test_the_length_of_chunks_changes_no_bit(population):
    whole = train(SIX, stop=STOP, block=2, chunk=EPOCHS)
    assert equal(whole.history, population.history) and equal(whole.groups[0].runs, population.groups[0].runs)


def test_ended_members_stay_bitwise_as_they_are_and_are_dropped_from_the_blocks(population):
    """Two members a block, three blocks: as members stop, fewer blocks are trained."""
    stopped = np.flatnonzero(population.status == "early_stopping")
    assert stopped.size
    seen = []
    longer = train(SIX, stop=STOP, block=2, epochs=20, on_chunk=seen.append)
    for member in stopped:
        assert equal(run_of(longer, member), run_of(population, member))
    assert [p.running + p.ended for p in seen] == [6] * len(seen)
    assert seen[-1].running < 6 and all(p.updates_per_second > 0 for p in seen)


def test_fifty_learning_rates_are_traced_once():
    traced = []

    def correct(outputs, targets):
        traced.append(1)
        return fnn.losses.largest(outputs, targets)

    def many(seed):
        return search.random_search(
            50,
            search_seed=seed,
            learning_rate=search.log_uniform(1e-4, 1),
            b1=search.uniform(0, 0.9),
            seed=list(range(50)),
        )

    train(many(0), correct=correct, epochs=1, chunk=1)
    once = len(traced)
    train(many(1), correct=correct, epochs=1, chunk=1)
    assert len(traced) == once


# What may differ from member to member --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def varied():
    """A race in which members differ in batches, subsets, wrong labels, penalties and scales, all in one program."""
    race = {"adam": "adam", "gd": "gd", "momentum": optimizers.momentum, "adagrad": "adagrad"}
    hyperparameters = {
        "optimizer": ["adam", "gd", "momentum", "adagrad", "gd"],
        "learning_rate": [0.01, 0.1, 0.05, 0.02, 0.1],
        "decay": [0.1, 0.2, 0.8, 0.3, 0.4],
        "strength": [0.0, 0.1, 0.01, 0.02, 0.1],
        "initial_scale": [1.0, 2.0, 0.5, 1.5, 2.0],
        "label_noise": [0.0, 0.25, 0.5, 1.0, 0.25],
        "subset": [0, 1, 2, 0, 1],
        "examples": [12] * 5,
        "seed": [3, 4, 5, 6, 4],
    }
    return train(hyperparameters, race, regularizer="l2", shuffle="independent", epochs=4)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("member", [1, 2])
def test_a_member_of_a_race_is_what_it_would_be_alone(varied, member):
    """Against `fit` with the optimizer itself, not a choice of it, and the member's own key."""
    own = {name: column[member].item() for name, column in varied.hyperparameters.items()}
    key = jax.random.fold_in(KEY, own["seed"])
    params = NETWORK.init(jax.random.split(key)[0])
    params = jax.tree.map(
        lambda acts, w: w * own["initial_scale"] if acts else w, optimizers.regularizers.penalized(params), params
    )
    optimizer = {1: optimizers.gd(0.1), 2: optimizers.momentum(0.05, 0.8)}[member]
    x, t = varied.data(member)
    alone = fnn.fit(
        NETWORK,
        "cross_entropy",
        optimizer,
        x,
        t,
        key=key,
        epochs=4,
        plan=training.minibatch(5),
        params=params,
        validation=VALIDATION,
        regularizer=optimizers.regularizers.l2(own["strength"]),
    )
    np.testing.assert_allclose(varied.history.training_loss[:, member], alone.history.training_loss, rtol=1e-9)
    np.testing.assert_allclose(varied.history.validation_loss[:, member], alone.history.validation_loss, rtol=1e-9)


def test_a_member_has_its_own_examples_and_wrong_labels(varied):
    x, t = zip(*map(varied.data, range(5)), strict=True)
    assert np.shape(x) == (5, 12, 3) and np.shape(t) == (5, 12, 2)
    rows = [[int(np.flatnonzero((DATA[0] == row[None]).all(axis=1))[0]) for row in np.asarray(own)] for own in x]
    assert all(len(set(own)) == 12 for own in rows) and rows[0] == rows[3] != rows[1]
    wrong = [int((np.asarray(t[m]) != DATA[1][rows[m]]).any(axis=1).sum()) for m in range(5)]
    assert wrong == [0, 3, 6, 12, 3]
    assert equal((x[1], t[1]), (x[4], t[4]))  # the same seed, subset and noise


def test_a_hyperparameter_that_a_members_optimizer_does_not_take_changes_nothing(varied):
    """Members 1 and 4 differ in `decay`, which gd has not."""
    np.testing.assert_array_equal(varied.history.training_loss[:, 1], varied.history.training_loss[:, 4])


@pytest.mark.slow
def test_padded_networks_train_as_the_narrow_networks_do():
    """Sigmoid is not 0 at 0, so that units beyond the width would be felt; momentum and a penalty act on all."""
    columns = {"width": [2, 5, 2], "seed": [0, 1, 2], "strength": [0.01] * 3}

    def network(width):
        return chain(width, activation="sigmoid")

    settings = {"network": network, "regularizer": "l2", "epochs": 4, "chunk": 4}
    padded = train(columns, optimizers.momentum(0.3), pad=True, **settings)
    grouped = train(columns, optimizers.momentum(0.3), **settings)
    assert (len(padded.groups), len(grouped.groups)) == (1, 2)
    for name in ("training_loss", "validation_loss", "gradient_norm"):
        np.testing.assert_allclose(getattr(padded.history, name), getattr(grouped.history, name), rtol=1e-12)
    for member, width in enumerate(columns["width"]):
        assert padded.params(member)["layer1"]["weights"]["input"].shape == (width, 3)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), padded.params(member), grouped.params(member)
        )
        beyond = run_of(padded, member).state.params["layer2"]["weights"]["layer1"][:, width:]
        assert (beyond == 0).all() and beyond.shape == (2, 5 - width)


def test_members_of_other_depths_or_batch_sizes_are_groups_of_their_own():
    columns = {"depth": [1, 2, 1], "batch_size": [0, 11, 0], "seed": [0, 1, 2]}
    found = train(columns, "gd(0.1)", network=lambda depth: chain(2, depth), epochs=2, chunk=2)
    assert [trained.group.members.tolist() for trained in found.groups] == [[0, 2], [1]]
    assert found.table()["updates"].tolist() == [2, 4, 2]
    assert found.network(1).layers[1].name == "layer2" and len(found.network(2).layers) == 2


def test_halving_keeps_the_best_members_at_each_rung():
    columns = {"seed": np.arange(9)}
    halving = training.successive_halving((2, 5), keep=1 / 3)
    found = train(columns, halving=halving, epochs=6, chunk=4, block=3)
    free = train(columns, epochs=6, chunk=4, block=3)
    rank = np.argsort(free.history.validation_loss[1])
    assert (np.sort(np.flatnonzero(found.epochs > 2)) == np.sort(rank[:3])).all()
    second = rank[:3][np.argmin(free.history.validation_loss[4, rank[:3]])]
    assert found.epochs[second] == 6 and sorted(found.epochs) == [2] * 6 + [5] * 2 + [6]
    assert (found.status == np.where(found.epochs == 6, "completed", "halved")).all()
    np.testing.assert_array_equal(found.history.validation_loss[:2], free.history.validation_loss[:2])
    assert found.best() == second


# Results --------------------------------------------------------------------------------------------------------------


def test_the_table_has_one_row_for_each_member(population, tmp_path):
    table = population.table()
    assert list(table)[:4] == ["member", "learning_rate", "seed", "status"]
    assert {len(column) for column in table.values()} == {6}
    for m in range(6):
        assert table["validation_loss"][m] == population.history.validation_loss[population.epochs[m] - 1, m]
        best = np.nanmin(population.history.validation_loss[:, m])
        assert table["best_validation_loss"][m] == best
        assert population.history.validation_loss[table["best_epoch"][m] - 1, m] == best
    assert (table["updates"] == population.epochs * 5).all()
    assert population.best() == int(np.argmin(table["best_validation_loss"]))  # whose parameters are restored
    population.to_csv(tmp_path / "results.csv")
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [float(row["validation_loss"]) for row in rows] == table["validation_loss"].tolist()
    population.save_history(tmp_path / "history.npz")
    with np.load(tmp_path / "history.npz") as saved:
        np.testing.assert_array_equal(saved["training_loss"], population.history.training_loss)
    assert repr(population).startswith("<population of 6: ")


# Saved and resumed ----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Raised from on_chunk, as a crash between two chunks would."""


def interrupted_after(epoch):
    def on_chunk(progress):
        if progress.epoch >= epoch:
            raise Interrupted

    return on_chunk


def test_a_resumed_population_is_bitwise_the_uninterrupted_one(population, tmp_path):
    kept = checkpoints.keep(tmp_path)
    with pytest.raises(Interrupted):
        train(SIX, stop=STOP, block=2, checkpoint=kept, on_chunk=interrupted_after(6))
    assert kept.numbers() == (3, 6)
    with pytest.raises(ValueError, match="continue from them with resume=True"):
        train(SIX, stop=STOP, block=2, checkpoint=kept)
    other = SIX | {"learning_rate": SIX["learning_rate"] * 2}
    with pytest.raises(checkpoints.CheckpointError, match="hyperparameters/learning_rate"):
        train(other, stop=STOP, block=2, checkpoint=kept, resume=True)
    with pytest.raises(checkpoints.CheckpointError, match="made with optimizer = .*adam.*nadam"):
        train(SIX, "nadam", stop=STOP, block=2, checkpoint=kept, resume=True)
    with pytest.raises(checkpoints.CheckpointError, match="network/layers/layer1/size = 4, now 3"):
        train(SIX, stop=STOP, network=chain(3), checkpoint=kept, resume=True)
    with pytest.raises(ValueError, match="resume: the newest checkpoint is after epoch 6, beyond epochs=5"):
        train(SIX, stop=STOP, block=2, epochs=5, checkpoint=kept, resume=True)
    resumed = train(SIX, stop=STOP, block=2, checkpoint=kept, resume=True)
    assert equal(resumed.history, population.history) and equal(resumed.groups[0].runs, population.groups[0].runs)
    assert (resumed.status == population.status).all()
    number, found = kept.newest()
    forged = found.leaves | {"groups/0/ended": np.full(6, 9)}
    made = {}
    for path, leaf in forged.items():
        *folders, name = path.split("/")
        place = made
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    forgery = checkpoints.keep(tmp_path / "forged")
    forgery.save(number, made, found.config)
    with pytest.raises(checkpoints.CheckpointError, match="cannot have ended"):
        train(SIX, stop=STOP, block=2, checkpoint=forgery, resume=True)
    finished = train(SIX, stop=STOP, block=2, checkpoint=kept, resume=True)  # there is nothing left to do
    assert equal(finished.history, population.history)


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyperparameters", "settings", "message"),
    [
        ({"learning_rate": [0.1, 0.2], "seed": [1]}, {}, "for every name, but learning_rate has 2, seed has 1"),
        ({"learning_rate": []}, {}, "learning_rate"),
        ({"lerning_rate": [0.1]}, {}, "unknown name 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"learning_rate": [0.1, -1.0]}, {}, r"member 1 \(learning_rate=-1.0\): adam: learning_rate must be"),
        ({"batch_size": [23]}, {}, "batch size must be 1 to 22, the number of examples, got 23"),
        ({"batch_size": [2.5]}, {}, "batch_size must be integers from 0 to 4294967295, got 2.5"),
        ({"examples": [23]}, {}, "examples must be at most 22"),
        ({"label_noise": [-0.1]}, {}, "label_noise must be numbers >= 0, got -0.1"),
        ({"seed": [1]}, {"block": 0}, "block must be an integer >= 1"),
        (
            {"seed": range(4)},
            {"block": 4, "budget": 10_000},
            "block: 4 members a .* above the budget .*; block=[123] fits",
        ),
        ({"seed": range(4000)}, {"budget": 50_000}, r"4000 members take .* above the budget of .*; \d+ of them fit"),
        ({"seed": [1]}, {"budget": 10}, "not even one fits"),
        ({"optimizer": ["adam"]}, {}, "to vary 'optimizer', give optimizer={name: ..., name: ...}, a race"),
        ({"seed": [1]}, {"optimizer": {"adam": "adam", "gd": "gd"}}, "a race needs 'optimizer'"),
        ({"seed": [1]}, {"static": ("sed",)}, "static: unknown hyperparameter 'sed'; did you mean 'seed'?"),
        ({"seed": [2, 2**40]}, {}, "seed must be integers from 0 to 4294967295, got 1099511627776"),
        ({"label_noise": [0.5, 2.0]}, {}, "label_noise of classes must be a share, 0 to 1, got 2.0"),
        ({"seed": [1]}, {"regularizer": "l2"}, "the regularizer needs 'strength', which is not among them"),
        ({"seed": [1]}, {"network": chain}, "the network needs 'width'"),
        ({"width": [2]}, {}, "unknown name 'width'"),
        ({"seed": [1]}, {"halving": search.successive_halving((3,)), "validation": None}, "needs validation"),
        ({"seed": [1]}, {"halving": search.successive_halving((8,))}, "the last rung must come before the last epoch"),
        ({"seed": [1]}, {"resume": True}, "resume: expected checkpoint="),
        ({"seed": [1]}, {"shuffle": "both"}, "shuffle must be 'shared' or 'independent'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(hyperparameters, settings, message, monkeypatch):
    monkeypatch.setattr(group_training, "compiled_programs", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=message):
        train(hyperparameters, **settings)


def test_ambiguous_names_and_arguments_of_the_wrong_type_are_refused(monkeypatch):
    monkeypatch.setattr(group_training, "compiled_programs", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ValueError, match="'seed' is taken by the population and by the network"):
        train({"seed": [1]}, network=lambda seed: chain(seed))
    with pytest.raises(TypeError, match="on_chunk: expected a function of Progress, got int"):
        train({"seed": [1]}, on_chunk=3)
    with pytest.raises(TypeError, match="static: expected a list of names, got 'seed'"):
        train({"seed": [1]}, static="seed")
    with pytest.raises(ValueError, match="cannot be traced by jit"):
        jax.jit(lambda key: train({"seed": [1]}, key=key))(KEY)
    with pytest.raises(ValueError, match="unknown optimizer 'adm'; did you mean 'adam'?"):
        train({"optimizer": ["adm"]}, {"adam": "adam", "gd": "gd"})
    with pytest.raises(TypeError, match="expected elementwise methods such as adam, got OptaxState"):
        optax = pytest.importorskip("optax")
        own = optimizers.from_optax(optax.sgd(0.1))
        train({"optimizer": ["mine"]}, {"adam": "adam", "mine": own})
    with pytest.raises(ValueError, match="pad: a layer with dropout"):

        def dropping(width):
            return fnn.multilayer((3, width, 2), ("tanh", "softmax"), dropout=0.5)

        train({"width": [2, 3]}, network=dropping, pad=True)
    with pytest.raises(ValueError, match="pad: track would also read the padding units"):
        train({"width": [2, 3]}, network=chain, pad=True, track=("noise_scale",))
    with pytest.raises(TypeError, match="network: expected a function that returns a Network, got 3"):
        train({"width": [3]}, network=lambda width: width)
