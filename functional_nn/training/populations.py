"""Populations: thousands of networks in one compiled program, over all devices of a mesh.

Letters: N members, E epochs, Q examples. Members that share a compiled shape form a group (`members`). A group is
trained in blocks of members side by side (`group_training`), as large as suits the memory (`member_memory`), a chunk
of epochs a call. Between the calls runs the loop on the host (`population_loop`).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from functional_nn import checks, platforms
from functional_nn.gradients import rules
from functional_nn.networks.losses import Loss
from functional_nn.networks.network import Network
from functional_nn.networks.stored import Windows
from functional_nn.optimizers.optimizer import Optimizer
from functional_nn.optimizers.regularizers import Regularizer
from functional_nn.training import keys, search
from functional_nn.training.augmentation import Augment
from functional_nn.training.checkpoints import Checkpoints
from functional_nn.training.gradient import Gradient
from functional_nn.training.group_training import GroupTraining
from functional_nn.training.member_memory import block_sizes
from functional_nn.training.members import Specification, grouped
from functional_nn.training.minibatches import BatchPlan
from functional_nn.training.population_loop import PopulationTraining, Progress
from functional_nn.training.records import Correct
from functional_nn.training.results import Population
from functional_nn.training.search import Halving
from functional_nn.training.termination import Criterion
from functional_nn.training.tracking import Track


def fit_population(
    network: Network | Callable[..., Network],
    loss: Loss | str,
    optimizer: Optimizer | str | Callable[..., Optimizer] | Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    data: tuple[Any, Any] | Windows,
    *,
    key: Array,
    epochs: int,
    validation: tuple[Any, ...] | Windows | None = None,
    weights: Array | None = None,
    class_weights: Any = None,
    plan: BatchPlan | None = None,
    regularizer: Regularizer | str | Callable[..., Regularizer] | None = None,
    stop: Criterion | str | Sequence[Criterion | str] = (),
    gradient: Gradient | Literal["manual", "automatic", "perceptron"] = "manual",
    rule: rules.Given | Callable[..., Any] = "exact",
    correct: Correct | None = None,
    track: Track = (),
    augment: Augment = (),
    shuffle: Literal["shared", "independent"] = "shared",
    static: Sequence[str] = (),
    pad: bool = False,
    halving: Halving | None = None,
    chunk: int = 10,
    block: int | None = None,
    budget: int | None = None,
    mesh: Mesh | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool = False,
    on_chunk: Callable[[Progress], bool | None] | None = None,
    seconds: float | None = None,
) -> Population:
    """Trains N networks at once, one for each row of hyperparameters, and returns them with their histories.

    Each member is trained as `fit` trains it alone, to rounding. `Population.solo(member)` runs that training, and
    `Population.drift(member)` compares the two.

    `hyperparameters` may name:

    - the arguments of `optimizer`, where it is a bare name ("adam"), a function (`lambda learning_rate: ...`), or a
      mapping {name: either} for a race. In a race, "optimizer" is a hyperparameter too, and the numbers go to every
      method that takes them;
    - the arguments of `regularizer`, where it is a bare name ("l2" takes `strength`) or a function;
    - "rule", words as `fit` takes them ("exact", "feedback_alignment", "noisy(0.1)"), and the arguments of the rule,
      where a word is a bare name or `rule` is a function (`lambda sigma: rules.noisy(sigma)`). A member's seed is also
      its rule's, so that members with other seeds have other random matrices;
    - the arguments of `network`, where it is a function (`lambda width, depth: fnn.multilayer(...)`);
    - "seed": an integer that is folded into the member's key;
    - "batch_size": the size of its batches, 0 for all examples at once;
    - "initial_scale": a factor of its initial weights;
    - "examples": how many of the training examples it sees;
    - "subset": an integer that says which random ones these are;
    - "label_noise": the share of its targets that are changed to another class. Numeric targets get Gaussian noise of
      that many standard deviations.

    Numbers of the optimizer, the regularizer and the rule are traced, so that all their values share one compiled
    program. Strings, and hyperparameters named in `static`, are compile-time constants. Members with different batch
    sizes, numbers of examples or networks are compiled as separate programs, except that `pad=True` gives networks that
    differ only in the widths of their hidden layers one program.

    Args:
        network: One network for all members, or a function of hyperparameters that returns one.
        loss: A loss or its name, as in `fit`.
        optimizer: A first-order optimizer for all members, a bare name or function as above, or a mapping of them.
        hyperparameters: {name: N values}, as `grid` and `random_search` return them.
        data: (inputs, targets): `(Q, *P, R)` or `{name: (Q, *P, R)}`, and `(Q, *P, S)` or integer labels `(Q, *P)`. Or
            `fnn.windows(...)`, as in `fit`.
        key: A key of `jax.random.key`. A member with a "seed" gets this key with its seed folded in; the others use
            the key itself.
        epochs: How many epochs to train, E.
        validation: (inputs, targets), (inputs, targets, weights) or `fnn.windows(...)`, evaluated after every epoch.
            None by default.
        weights: The weights of the examples, (Q,), as in `fit`. All equal by default.
        class_weights: The weights of the classes, as in `fit`. All equal by default.
        plan: The batches, as in `fit`. By default `minibatch(32)`, smaller if there are fewer examples.
        regularizer: A penalty for all members, a bare name, or a function of hyperparameters. None by default.
        stop: The criteria that end a member's training, as in `fit`, none by default. Members stop one by one.
        gradient: How the gradient is computed, as in `fit`. "manual" by default.
        rule: The backward rule, as in `fit`, or a function of hyperparameters. "exact" by default.
        correct: Which outputs are right, as in `fit`. By default the loss's own rule.
        track: Quantities to record after every epoch, as in `fit`. None by default.
        augment: Random changes of the training inputs, as in `fit`. None by default.
        shuffle: "shared" (default) draws the same batches, dropped neurons and augmented inputs for all members, from
            `key`: the controlled comparison. "independent" draws them from each member's own key.
        static: Names of hyperparameters to compile in although they are numbers. None by default.
        pad: True pads narrow networks with zeros to the width of the widest, so that one program trains all widths.
            False by default.
        halving: `successive_halving(...)`, which ends the worse members early. None by default.
        chunk: The epochs trained in one call of the compiled program, 10 by default.
        block: The members trained at a time on each device. By default as many as suit its memory.
        budget: The bytes of memory to use. By default half of the accelerator's, or of the machine's.
        mesh: The devices to train on, by default all of this process. With several processes
            (`jax.distributed.initialize`) each trains its share of the members, and all return the whole result.
        checkpoint: `checkpoints.keep(folder)`, to save after chunks. Ctrl-C then saves and raises KeyboardInterrupt.
            None (default) saves nothing.
        resume: True continues from the newest checkpoint in that folder. False by default.
        on_chunk: Called with a `Progress` after every chunk. The population stops if it returns True.
        seconds: Stops the population after the first chunk that ends later than this, compilation included.

    Returns:
        A `Population`: the hyperparameters, status, histories and parameters of all members, and one table of them.

    Raises:
        ValueError: Before anything is compiled, for hyperparameters of unequal lengths, unknown names, values that are
            refused (the message says which member's), or a block that does not fit the budget.
        TypeError: Before anything is compiled, for arguments of the wrong type.
        CheckpointError: If the checkpoint was made with other settings.
        KeyboardInterrupt: After Ctrl-C, once the checkpoint is saved.

    Example:
        >>> import jax, functional_nn as fnn
        >>> network = fnn.multilayer((2, 1), ("sigmoid",))
        >>> inputs, targets = jax.numpy.eye(2), jax.numpy.array([[0.0], [1.0]])
        >>> population = fnn.training.fit_population(
        ...     network,
        ...     "binary_cross_entropy",
        ...     "gd",
        ...     fnn.training.grid(learning_rate=[0.0, 0.5], seed=[1, 2]),
        ...     (inputs, targets),
        ...     key=jax.random.key(0),
        ...     epochs=3,
        ... )
        >>> population.status.tolist()
        ['completed', 'completed', 'completed', 'completed']
        >>> population.history.training_loss.shape
        (3, 4)
        >>> population.hyperparameters["learning_rate"][population.best()].item()
        0.5
    """
    began = time.perf_counter()
    checks.prng_key("key", key)
    checks.integer("", "epochs", epochs, 1)
    checks.integer("", "chunk", chunk, 1)
    checks.one_of("fit_population", "shuffle", shuffle, ("shared", "independent"))
    for name, value, kind in (
        ("halving", halving, Halving),
        ("checkpoint", checkpoint, Checkpoints),
        ("mesh", mesh, Mesh),
    ):
        if not (value is None or isinstance(value, kind)):
            raise TypeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
    if seconds is not None:
        seconds = checks.constant("fit_population", "seconds", seconds, *checks.POSITIVE)
    if not (on_chunk is None or callable(on_chunk)):
        raise TypeError(f"on_chunk: expected a function of Progress, got {type(on_chunk).__name__}")
    arrays = jax.tree.leaves((hyperparameters, data, weights, class_weights, validation, key))
    if not all(map(checks.is_concrete, arrays)):
        raise ValueError("fit_population is not pure and cannot be traced by jit, vmap or grad; use training.pure_fit")
    if resume and checkpoint is None:
        raise ValueError("resume: expected checkpoint=checkpoints.keep(folder) to resume from")
    columns, mesh = search.normalized(hyperparameters), _local_mesh(mesh)
    groups = grouped(
        Specification(
            network=network,
            optimizer=optimizer,
            columns=columns,
            data=_inputs_and_targets(data),
            key=key,
            epochs=epochs,
            settings={
                "loss": loss,
                "stop": stop,
                "gradient": gradient,
                "correct": correct,
                "track": track,
                "augment": augment,
            },
            validation=validation,
            weights=weights,
            class_weights=class_weights,
            plan=plan,
            regularizer=regularizer,
            rule=rule,
            static=static,
            pad=pad,
        )
    )
    if halving is not None:
        _check_halving(halving, epochs, validation)
    smallest = min(len(group.members) for group in groups)
    if smallest < jax.process_count():
        raise ValueError(
            f"{jax.process_count()} processes: expected at least as many members of each program, got {smallest}"
        )
    with platforms.aimed_at(mesh):
        sizes = block_sizes(groups, block, budget, mesh, epochs)
        training = PopulationTraining(
            groups=[
                GroupTraining(group, size, min(chunk, epochs), mesh, shuffle == "shared", keys.plan(key))
                for group, size in zip(groups, sizes, strict=True)
            ],
            columns=columns,
            epochs=epochs,
            chunk=chunk,
            halving=halving,
            checkpoint=checkpoint,
            on_chunk=on_chunk,
            shuffle=shuffle,
            key=key,
        )
        training.run(resume, math.inf if seconds is None else began + seconds)
    return training.result(time.perf_counter() - began)


def _inputs_and_targets(data: Any) -> tuple[Any, Any]:
    """The training data as a pair; windows of a stream contain their targets."""
    if isinstance(data, Windows):
        return data, None
    if not (isinstance(data, tuple | list) and len(data) == 2):
        given = f"{type(data).__name__} of {len(data)}" if hasattr(data, "__len__") else type(data).__name__
        raise TypeError(f"data: expected a pair (inputs, targets), got {given}")
    return tuple(data)


def _local_mesh(mesh: Mesh | None) -> Mesh:
    """The mesh, by default of all devices of this process."""
    if mesh is None:
        return Mesh(np.array(jax.local_devices()), ("members",))
    foreign = [device for device in mesh.devices.flat if device.process_index != jax.process_index()]
    if foreign:
        raise ValueError(
            "mesh: each process trains its share of a population on its own devices; expected a mesh of "
            f"jax.local_devices(), got {foreign[0]} of process {foreign[0].process_index}"
        )
    return Mesh(mesh.devices, mesh.axis_names)  # whatever the types of its axes are


def _check_halving(halving: Halving, epochs: int, validation: Any) -> None:
    if halving.rungs[-1] >= epochs:
        raise ValueError(f"halving: the last rung must come before the last epoch, {epochs}, got {halving.rungs[-1]}")
    if validation is None and halving.monitor != "training_loss":
        raise ValueError(f"halving: {halving.monitor} needs validation=(inputs, targets)")
