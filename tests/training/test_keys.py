"""One run's key divides into streams that never meet, and that stay what checkpoints and results were made with."""

import itertools

import jax
import numpy as np

from functional_nn.training import keys

KEY = jax.random.key(0)
PLAN, LABELS = keys.plan(KEY), keys.labels(KEY)
UPDATES = {f"update {u} of epoch {e}": keys.updates(PLAN, e, 3)[u] for e in range(2) for u in range(3)}
STREAMS = {
    "parameters": keys.parameters(KEY),
    "plan": PLAN,
    **{f"epoch {e}": keys.epoch(PLAN, e) for e in range(3)},
    **UPDATES,
    **{f"noise of {name}": keys.gradient_noise(key) for name, key in UPDATES.items()},
    **{f"augmentation {n} of {name}": keys.augmentation(key, n) for name, key in UPDATES.items() for n in range(2)},
    **{f"subset {number}": keys.subset(KEY, number) for number in range(3)},
    "labels": LABELS,
    **dict(zip(("which are wrong", "by how much"), keys.other_classes(LABELS), strict=True)),
}

# from the expressions that stood where these were drawn, before they stood in one place
WERE = {
    "parameters": (1797259609, 2579123966),
    "plan": (928981903, 3453687069),
    "epoch 2": (3152301319, 792466127),
    "update 1 of epoch 1": (3087350297, 1124580774),
    "noise of update 1 of epoch 1": (602226249, 1345275469),
    "member 2": (4146024105, 2718843009),
    "subset 1": (3917246291, 800548765),
    "labels": (2313591868, 3981651893),
    "which are wrong": (3195155954, 3983200400),
    "by how much": (1232526318, 1199823163),
}
DRAWN = [262, 950, 656, 278]


def words(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_no_two_streams_meet():
    for (one, a), (other, b) in itertools.combinations(STREAMS.items(), 2):
        assert words(a) != words(b), f"{one} is {other}"
    for several in (keys.starts(KEY, 5), [keys.member(KEY, seed) for seed in range(5)]):
        assert len({words(key) for key in several}) == 5


def test_they_are_what_they_were():
    """Others would change every run that is kept."""
    now = STREAMS | {"member 2": keys.member(KEY, 2)}
    assert {name: words(now[name]) for name in WERE} == WERE
    drawn = keys.hyperparameter(3, "learning_rate").integers(0, 1000, 4).tolist()
    assert drawn == DRAWN and keys.hyperparameter(3, "decay").integers(0, 1000, 4).tolist() != drawn
