"""`functional-nn sweep`: reads hyperparameters, trains a population, and writes its table and page."""

import contextlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import functional_nn as fnn
from functional_nn import checks, registry
from functional_nn.gradients.comparison import finite_or_none
from functional_nn.lab import commands, environment, equations, events, install, plots, report, runs
from functional_nn.lab.commands import Prepared
from functional_nn.lab.progress import progress
from functional_nn.lab.run_checkpoints import checkpointed
from functional_nn.training import Population, Progress, search

_INTEGERS = ("seed", "batch_size", "examples", "subset", "width", "depth")  # hyperparameters that are integers
_MOST = 1_000_000  # members
_INTERRUPTIBLE, _SAVED = 50, 10  # how often in a sweep Ctrl-C is heard, and all members are saved
_SPACED = {"log": (search.log_uniform, search.log_integers), "lin": (search.uniform, search.integers)}
_SPACINGS = "log:LOW:HIGH or lin:LOW:HIGH"


def write_parquet(table: dict[str, np.ndarray], path: Path) -> None:
    """Writes a population's table, typed and compressed. Raises ImportError without the extra `tables`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"Parquet needs pyarrow; {install('tables')}") from None
    columns = {name: column.tolist() if column.dtype.kind == "U" else column for name, column in table.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


# From words to hyperparameters ----------------------------------------------------------------------------------------


def hyperparameters(grid: Sequence[str], random: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """{name: (N,)} from --grid NAME=VALUES ... and --random COUNT NAME=DISTRIBUTION ...; with both, every
    combination.

    Raises ValueError, with what is accepted, for words that cannot be read.
    """
    if not grid and not random:
        raise ValueError("nothing to sweep: expected --grid NAME=VALUES ..., or --random COUNT NAME=DISTRIBUTION ...")
    listed = {name: grid_values(name, text) for name, text in _named("--grid", grid).items()} if grid else {}
    drawn: dict[str, Any] = {}
    count = 1
    if random:
        if not re.fullmatch(r"\d+", random[0]) or int(random[0]) < 1:
            raise ValueError(f"--random: expected a count first, as in --random 64 seed=0..99, got {random[0]!r}")
        count = int(random[0])
        drawn = {name: distribution(name, text) for name, text in _named("--random", random[1:]).items()}
    both = [name for name in listed if name in drawn]
    if both:
        raise ValueError(f"{both[0]} is given to both --grid and --random")
    members = count * int(np.prod([float(len(values)) for values in listed.values()]))
    if members > _MOST:
        raise ValueError(f"--grid and --random: expected at most {_MOST} members, got {members}")
    columns = search.random_search(count, search_seed=seed, **drawn) if random else {}
    if not listed:
        return columns
    every = search.grid(**listed)
    size = search.members(every)
    columns = {name: np.repeat(column, size) for name, column in columns.items()}
    return columns | {name: np.tile(column, count) for name, column in every.items()}


def grid_values(name: str, text: str) -> list:
    """The values of "8,32,128", "0..15", "log:1e-4:1e-1:12" or "lin:0:1:5".

    >>> grid_values("batch_size", "8,32,128"), grid_values("seed", "0..3"), grid_values("width", "log:8:64:4")
    ([8, 32, 128], [0, 1, 2, 3], [8, 16, 32, 64])

    Sizes of the hidden layers stay words: hidden=64,32-64,64-32 are three networks.
    Spaced values of integer hyperparameters (seed, batch_size, examples, subset, width, depth) are rounded.
    """
    if name == "hidden":
        values = _layers(name, text)
    elif _is_spaced(text):
        spacing, numbers = _spaced(name, text, 3, ":COUNT, as in log:1e-4:1e-1:12")
        low, high, count = numbers
        if not isinstance(count, int) or not 2 <= count <= _MOST:
            raise ValueError(f"{name}={text}: COUNT must be an integer from 2 to {_MOST}, got {count}")
        try:
            values = search.log_spaced(low, high, count) if spacing == "log" else _lin_spaced(low, high, count)
        except ValueError as error:
            raise ValueError(f"{name}={text}: {error}") from None
        return list(dict.fromkeys(round(value) for value in values)) if name in _INTEGERS else values
    else:
        values = []
        for part in _listed(name, text):
            ends = _integer_range(name, part)
            values.extend(range(ends[0], ends[1] + 1) if ends else [_literal(part)])
    twice = [value for i, value in enumerate(values) if value in values[:i]] if len(values) <= 1000 else []
    if twice:
        raise ValueError(f"{name}={text}: {twice[0]} is given twice")
    return values


def distribution(name: str, text: str) -> Any:
    """The distribution of "log:1e-4:1e-1", "lin:0:1", "0..99" or the choice "tanh,relu"; a single value is for all
    members.

    >>> distribution("learning_rate", "log:1e-4:1e-1")
    LogUniform(low=0.0001, high=0.1)
    >>> distribution("width", "log:8:128"), distribution("activation", "tanh,relu")
    (LogIntegers(low=8, high=128), Choice(values=('tanh', 'relu')))
    """
    try:
        if name == "hidden":
            values = _layers(name, text)
            return search.choice(values) if len(values) > 1 else values[0]
        if _is_spaced(text):
            spacing, (low, high) = _spaced(name, text, 2, ", as in log:1e-4:1e-1")
            return _SPACED[spacing][name in _INTEGERS](low, high)
        ends = _integer_range(name, text)
        if ends:
            return search.integers(*ends)
        values = [_literal(part) for part in _listed(name, text)]
        return search.choice(values) if len(values) > 1 else values[0]
    except ValueError as error:
        raise error if str(error).startswith(f"{name}=") else ValueError(f"{name}={text}: {error}") from None


def _named(option: str, words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier() and text):
            raise ValueError(f"{option}: expected NAME=VALUES, as in learning_rate=0.01,0.1, got {word!r}")
        if name in found:
            raise ValueError(f"{option}: {name} is given twice; list its values with commas")
        found[name] = text
    if not found:
        raise ValueError(f"{option}: expected NAME=VALUES, as in learning_rate=0.01,0.1, got none")
    return found


def _spaced(name: str, text: str, count: int, then: str) -> tuple[str, list]:
    spacing, *parts = text.split(":")
    if spacing not in _SPACED:
        raise ValueError(f"{name}={text}: {registry.unknown('spacing', spacing, _SPACED)}")
    numbers = [_literal(part) for part in parts]
    if len(numbers) != count or any(isinstance(number, str) for number in numbers):
        raise ValueError(f"{name}={text}: expected {_SPACINGS.replace(' or ', then.split(',')[0] + ' or ')}{then}")
    return spacing, numbers


def _layers(name: str, text: str) -> list[str]:
    """Sizes of layers, one word per network, "64-32"; "none" for no hidden layer."""
    parts = _listed(name, text)
    for part in parts:
        if part != "none" and not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", part):
            raise ValueError(f"{name}={part}: expected sizes of layers, as in 64 or 64-32, or none")
    return parts


def _lin_spaced(low: float, high: float, count: int) -> list[float]:
    search.uniform(low, high)  # raises ValueError for an empty range
    return np.linspace(low, high, count).tolist()


def _integer_range(name: str, text: str) -> tuple[int, int] | None:
    """(a, b) from "a..b"; None if the text is not a range."""
    if ".." not in text:
        return None
    match = re.fullmatch(r"([+-]?\d+)\.\.([+-]?\d+)", text)
    if not match:
        raise ValueError(f"{name}={text}: a..b is for integers; for other numbers write {_SPACINGS}")
    low, high = map(int, match.groups())
    if not low <= high:
        raise ValueError(f"{name}={text}: expected a..b with a <= b")
    if high - low >= _MOST:
        raise ValueError(f"{name}={text}: expected at most {_MOST} values, got {high - low + 1}")
    return low, high


def _is_spaced(text: str) -> bool:
    return ":" in re.sub(r"\{.*?\}", "", text)  # colons of rules by layer do not count


def _listed(name: str, text: str) -> list[str]:
    parts = [part.strip() for part in registry.split(text)]  # commas in parentheses do not separate
    if not all(parts):
        raise ValueError(f"{name}={text}: expected values between the commas")
    return parts


def _literal(text: str) -> int | float | str:
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            return convert(text)
    return text


# Devices and processes ------------------------------------------------------------------------------------------------


def lay_out(devices: int | None, coordinator: str | None, processes: int | None, process: int | None) -> Mesh:
    """The devices of this process, by default every core of a CPU, connected to the other processes if there are
    any.

    JAX reads these settings when it starts, so nothing may have been computed before. Raises ValueError.
    """
    together = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in together.items() if value is None]
    if missing and len(missing) < 3:
        raise ValueError(f"several processes: expected --coordinator, --processes and --process, got no --{missing[0]}")
    if devices is not None:
        checks.integer("", "devices", devices, 1)
    with contextlib.suppress(RuntimeError):  # JAX is already running, as in a notebook: its devices are fixed
        jax.config.update("jax_num_cpu_devices", devices or environment.cores())
    if not missing:
        checks.integer("", "processes", processes, 1)
        if not 0 <= process < processes:
            raise ValueError(f"process must be 0 to {processes - 1}, got {process}")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(coordinator, processes, process)
        except RuntimeError as error:
            raise ValueError(f"coordinator {coordinator}: {str(error).splitlines()[0]}") from None
    local = jax.local_devices()
    if devices is not None and devices > len(local):
        raise ValueError(f"devices must be 1 to {len(local)}, the number of devices, got {devices}")
    return Mesh(np.array(local[:devices]), ("members",))


# The sweep ------------------------------------------------------------------------------------------------------------


def sweep(source: str, settings: dict[str, Any], out: Path, replace: bool, resume: bool, mesh: Mesh) -> bool:
    """Trains the population and writes its folder. Returns False if all members diverged.

    Raises ValueError for whatever does not fit, and then writes nothing.
    """
    runs.check_free(out, replace)
    columns = hyperparameters(settings["grid"], settings["random"], settings["seed"])
    if settings["parquet"] and not importlib.util.find_spec("pyarrow"):
        raise ImportError(f"--parquet needs pyarrow; {install('tables')}")
    task = commands.prepare(source, settings)
    optimizer, varied = _optimizer(settings["optimizer"], columns)
    regularizer = _regularizer(settings["regularizer"], columns)
    rule = "exact" if "rule" in columns else _bare("rule", settings["rule"], fnn.rules, columns)
    halving = _halving(settings["halving"], settings["keep"])
    epochs, budget = settings["epochs"], settings["budget"]
    chunk = max(1, epochs // _INTERRUPTIBLE)
    every = max(1, epochs // (_SAVED * chunk))
    stop = commands.criteria(settings, restore=False)  # members keep the network of the last epoch, which is shown
    size = settings["batch_size"]
    plan = None if size is None or "batch_size" in columns else commands.batch_plan(size)
    first = jax.process_index() == 0  # only this process prints and writes
    log_dir = settings["log_dir"] if first else None
    with checkpointed(out, replace, resume, "sweep", every) as (kept, resumed), _events(log_dir) as record:
        with (
            progress(f"{search.members(columns)} networks", epochs)
            if first
            else contextlib.nullcontext(lambda *_: None) as advance
        ):

            def on_chunk(now: Progress) -> None:
                advance(now.epoch, _progress_text(now))
                record(now)

            try:
                population = fnn.training.fit_population(
                    _networks(task, settings),
                    task.loss,
                    optimizer,
                    varied,
                    task.training,
                    key=jax.random.key(settings["seed"]),
                    epochs=epochs,
                    validation=task.validation,
                    weights=task.weights,
                    class_weights=task.class_weights,
                    plan=plan,
                    regularizer=regularizer,
                    stop=stop,
                    rule=rule,
                    correct=commands.right_answers(task.held_out.task),
                    shuffle=settings["shuffle"],
                    pad=settings["pad"],
                    halving=halving,
                    chunk=chunk,
                    block=settings["block"],
                    budget=None if budget is None else budget * 2**20,
                    mesh=mesh,
                    checkpoint=kept,
                    resume=resumed,
                    on_chunk=on_chunk,
                    seconds=settings["seconds"],
                )
            except TypeError as error:  # such as a regularizer without its strength
                raise ValueError(str(error)) from None
        record(population)
        if first:
            measured = _write(population, columns, task, settings, out, replace, resumed)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the sweep's folder is written")
    if first:
        _print_result(population, columns, task, measured, out)
    else:
        print(f"process {jax.process_index()} is done; process 0 writes the results")
    return _best(population) is not None


def _networks(task: Prepared, settings: dict[str, Any]) -> Callable[..., fnn.Network]:
    """A member's network by the hyperparameters that may differ; the rest follows the settings."""

    def network(
        width=None,
        depth=None,
        hidden=None,
        activation=settings["activation"],
        initializer=None,
        dropout=settings["dropout"],
    ):
        if hidden is not None:
            if not (width is None and depth is None):
                raise ValueError(
                    f"hidden already gives all layer sizes; expected no {'depth' if width is None else 'width'}"
                )
            hidden = () if hidden == "none" else tuple(map(int, str(hidden).split("-")))
        else:
            hidden = settings["hidden"]
        if depth is not None:
            checks.integer("", "depth", depth, 0)
            if width is None and len(set(hidden)) != 1:
                sizes = " ".join(map(str, hidden)) or "none"
                raise ValueError(f"depth needs one width for all layers: give width, or one --hidden size, got {sizes}")
            hidden = (hidden[0] if width is None else width,) * depth
        elif width is not None:
            hidden = (width,) * len(hidden)
        layers = {"hidden": hidden, "activation": activation, "initializer": initializer, "dropout": dropout}
        return commands.build_network(task, layers | {"output": None})

    return network


def _optimizer(name: str, columns: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """The optimizer, or several that are compared, and the remaining hyperparameters."""
    if "optimizer" not in columns:
        return _bare("optimizer", name, fnn.optimizers.first_order, columns), columns
    raced = [str(optimizer) for optimizer in dict.fromkeys(columns["optimizer"].tolist())]
    if len(raced) == 1:
        left = {name: column for name, column in columns.items() if name != "optimizer"}
        return raced[0], left or {"initial_scale": np.ones(len(columns["optimizer"]))}  # a scale of 1 changes nothing
    return {optimizer: optimizer for optimizer in raced}, columns


def _regularizer(name: str | None, columns: dict[str, np.ndarray]) -> str | None:
    return name and _bare("regularizer", name, fnn.optimizers.regularizers, columns)


def _bare(kind: str, given: str, module: Any, columns: dict[str, np.ndarray]) -> str:
    """The name as it was given. Raises ValueError if it has constants and one of its constants is swept."""
    if "(" not in given:
        return given
    module.get(given)  # refuses what it does not know
    bare = given.partition("(")[0].strip()
    clash = [name for name in columns if name in inspect.signature(module.factory(bare)).parameters]
    if clash:
        raise ValueError(
            f"{kind} {given!r} is given with constants, but {clash[0]} is swept; give {kind} {bare!r}, and its other "
            "constants with --grid"
        )
    return given


def _halving(rungs: str | None, keep: float) -> search.Halving | None:
    if rungs is None:
        return None
    parts = rungs.split(",")
    if not all(re.fullmatch(r"\s*\d+\s*", part) for part in parts):
        raise ValueError(f"halving: expected rising epochs, as in 3,9,27, got {rungs!r}")
    return search.successive_halving([int(part) for part in parts], keep)


def _progress_text(now: Progress) -> str:
    best = f"best {now.best[1]:.4g}, " if now.best else ""
    left = f"{int(now.seconds_left) // 60}:{int(now.seconds_left) % 60:02d} left"
    return f"{now.running} running, {now.ended} ended, {best}{now.updates_per_second / 1000:.3g}k updates/s, {left}"


@contextlib.contextmanager
def _events(folder: Path | None) -> Iterator[Callable[[Progress | Population], None]]:
    """For TensorBoard: the sweep's progress while it runs, and at the end the quantiles of the held-out loss by
    epoch.
    """
    with events.scalars(folder) as write:

        def record(now: Progress | Population) -> None:
            if isinstance(now, Progress):
                numbers = {"running": now.running, "ended": now.ended, "updates_per_second": now.updates_per_second}
                numbers |= {"best": now.best[1]} if now.best else {}
                write([(now.epoch, {f"sweep/{name}": value for name, value in numbers.items()})])
            elif folder is not None:
                write(_quantiles(_carried(now)))

        yield record


def _quantiles(losses: np.ndarray) -> Iterator[tuple[int, dict[str, float]]]:
    """(epoch, {name: value}) of losses (E, N)."""
    for epoch, row in enumerate(losses, start=1):
        row = row[np.isfinite(row)]
        shares = (10, 25, 50, 75, 90) if row.size else ()
        yield epoch, {f"validation_loss/{share} %": np.quantile(row, share / 100) for share in shares}


# What is written ------------------------------------------------------------------------------------------------------


def _write(population: Population, columns, task: Prepared, settings, out: Path, replace: bool, resume: bool) -> dict:
    """Writes all files of the sweep. Returns the measures of its best member."""
    table, counts, best = population.table(), _counts(population), _best(population)
    measured, params = {}, {}
    if best is not None:
        params = population.params(best)
        measured = commands.measures(task.config, population.network(best), task.loss, params, *task.validation)
    sweep_settings = {name: value for name, value in settings.items() if name not in task.config}
    sweep_settings |= {"log_dir": settings["log_dir"] and str(settings["log_dir"])}
    config = (
        task.config
        | sweep_settings
        | {
            "hyperparameters": {name: _summary(column) for name, column in columns.items()},
            "members": len(population),
            "results": {"seconds": round(population.seconds, 2), "status": counts, "best": best, "held out": measured},
        }
    )
    with runs.writing(out, replace) as folder:
        population.to_csv(folder / "results.csv")
        population.save_history(folder / "history.npz")
        if importlib.util.find_spec("pyarrow"):
            write_parquet(table, folder / "results.parquet")
        if best is None:
            (folder / runs.CONFIG).write_text(json.dumps(finite_or_none(config), indent=2) + "\n")
        else:  # the best member is saved as a run, for evaluate and predict
            network = runs.describe_network(population.network(best))
            runs.save(folder, config | {"network": network}, params)
        page = _page(population, table, columns, best, measured, counts, task, config, resume, folder)
        (folder / "report.html").write_text(page, encoding="utf-8")

    return measured


def _print_result(population: Population, columns, task: Prepared, measured: dict[str, float], out: Path) -> None:
    best = _best(population)
    commands.print_pictures(task)
    rate = f"{population.seconds:.1f} s, {len(population) / population.seconds:.3g} per second"
    print(f"{task.held_out.name}: {len(population)} {_plural(population)} in {rate}")
    print(", ".join(f"{count} {status}" for status, count in _counts(population).items()))
    if best is None:
        print("best: none; no member has a finite held-out loss")
    else:
        print(f"best: member {best} ({_setting(columns, best)}): held-out {commands.measured_text(measured)}")
    print(f"page: {out / 'report.html'}")


def _best(population: Population) -> int | None:
    """The member with the lowest held-out loss; None if no loss is finite."""
    try:
        return population.best()
    except ValueError:
        return None


def _counts(population: Population) -> dict[str, int]:
    names, counts = np.unique(population.status, return_counts=True)
    return dict(sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]))


def _plural(population: Population, word: str = "network") -> str:
    return word if len(population) == 1 else f"{word}s"


def _summary(column: np.ndarray) -> list | str:
    distinct = np.unique(column).tolist()
    return distinct if len(distinct) <= 24 else f"{len(distinct)} values from {distinct[0]} to {distinct[-1]}"


def _setting(columns: dict[str, np.ndarray], member: int) -> str:
    return ", ".join(f"{name} {plots.value_text(column[member].item(), name)}" for name, column in columns.items())


def _carried(population: Population) -> np.ndarray:
    """Held-out losses (E, N): members that have stopped keep their last one; those that diverged are nan from then
    on.
    """
    losses = np.array(population.history.validation_loss, np.float64)
    epochs, diverged = population.epochs, population.status == "diverged"
    for epoch in range(1, len(losses)):
        losses[epoch] = np.where((epoch >= epochs) & ~diverged, losses[epoch - 1], losses[epoch])
    return losses


def _page(population, table, columns, best, measured, counts, task, config, resume, folder: Path) -> str:
    varied = {name: column for name, column in columns.items() if len(np.unique(column)) > 1}
    losses, diverged = table["validation_loss"].astype(np.float64), population.status == "diverged"
    panels = {"parallel_coordinates": _parallel_panel(varied or columns, losses, diverged)}
    carried = _carried(population)
    if "learning_rate" in varied and (np.isfinite(losses) & ~diverged).any():
        panels["learning_rates"] = _rates_panel(varied, losses, diverged, (population.status == "halved").any())
    if np.isfinite(carried).any():
        panels["quantile_bands"] = _bands_panel(carried, varied, losses, diverged)
    for name, panel in panels.items():
        panel.figure.savefig(folder / f"{name}.png", dpi=130, bbox_inches="tight")
    parts = [*panels.values(), _best_table(population, table, varied or columns, losses, task)]
    parts.append(
        report.Table(
            "How they ended",
            ("status", "members", "share"),
            [
                (status, str(count), report.Quantity(f"{100 * count / len(population):.1f} %", count))
                for status, count in counts.items()
            ],
            "All members are in results.csv, their histories in history.npz"
            + (", the network of the best one in parameters.npz." if best is not None else "."),
        )
    )
    rules = _rules(config["optimizer"], columns)
    if rules:
        parts.append(report.Equations("The update", rules, equations.OF_UPDATES))
    networks = {population.network(member) for member in range(len(population))}
    alike = "one network" if len(networks) == 1 else f"{len(networks)} different networks"
    rate = len(population) / population.seconds
    after = " since it was resumed" if resume else ", compilation included"
    facts = [
        (f"{len(population):,}", f"{_plural(population)}, trained for at most {config['epochs']} epochs"),
        (f"{population.seconds:.1f} s", f"on {config['environment']['device']}{after}"),
        *([] if resume else [(f"{rate:.3g}", "networks per second")]),
    ]
    if best is None:
        facts.append(("none", "best member: no held-out loss is finite"))
    for name, value in measured.items():
        if name in ("accuracy", "R^2", "loss"):
            text = f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4g}"
            facts.append((text, f"held-out {name} of the best, member {best}"))
    return report.render(
        f"functional_nn: a sweep on {task.held_out.name}",
        f"{len(population):,} {_plural(population, 'member')}, {alike}, over {', '.join(varied or columns)}; "
        f"{task.loss.name}, {len(task.training[1])} training and {len(task.validation[1])} held-out examples, "
        f"{config['dtype']}.",
        facts,
        parts,
        config,
    )


def _rules(given: str, columns) -> list[tuple[str, Any]]:
    """The update rule of each optimizer that took part, if it is known."""
    names = dict.fromkeys(columns["optimizer"].tolist()) if "optimizer" in columns else [given]
    constants = {name: fnn.optimizers.get(name).constants if "(" in name else {} for name in names}
    rules = ((name, equations.optimizer(name, constants[name])) for name in names)
    return [(name, rule) for name, rule in rules if rule]


def _parallel_panel(columns, losses, diverged) -> report.Panel:
    lost = diverged | ~np.isfinite(losses)
    found = losses[~lost]
    between = f"from {found.min():.3g} to {found.max():.3g}" if found.size else "nowhere finite"
    return report.Panel(
        "All members",
        plots.parallel_coordinates(columns, losses, diverged),
        f"One line for each of {len(losses)} members over {', '.join(columns)}, to its held-out loss, {between}.",
        "One line per member, from its hyperparameters to its held-out loss after its last epoch. Purple losses are "
        "low, and the ten best members are drawn thicker. Members with the same value are spread a little around it."
        + (f" Grey: {lost.sum()} that diverged." if lost.any() else ""),
    )


def _rates_panel(varied, losses, diverged, halved: bool) -> report.Panel:
    others = {name: column for name, column in varied.items() if name not in ("learning_rate", "seed", "subset")}
    few = [name for name in others if len(np.unique(others[name])) <= 8]
    few.sort(key=lambda name: name != "batch_size")  # the first one distinguishes curves, the second panels
    curves, panels = ((name, name and others[name]) for name in [*few[:2], None, None][:2])
    found = plots.rate_quartiles(varied["learning_rate"], losses, diverged, panels, curves)
    pooled = ", ".join(name for name in varied if name not in ("learning_rate", curves[0], panels[0]))
    return report.Panel(
        "Held-out loss against learning rate",
        plots.rate_curves(found),
        f"The median held-out loss against the learning rate. {_lowest(found)}",
        f"Medians and quartiles{f' over {pooled}' if pooled else ''}; circles are the lowest medians. "
        "Members that diverged count as worse than all others; a cross is a median beyond the picture."
        + (" Members that halving stopped count with the loss they had then." if halved else ""),
    )


def _lowest(found: plots.Rates) -> str:
    """Each curve's best learning rate, in words."""
    minima = []
    for values, quartiles in found.quartiles.items():
        medians = np.where(np.isfinite(quartiles[:, 1]), quartiles[:, 1], np.inf)
        if np.isfinite(medians).any():
            where = [
                f"{name} {plots.value_text(value, name)}"
                for name, value in zip(found.names, values, strict=True)
                if name
            ]
            minima.append(f"{found.rates[medians.argmin()]:.3g}" + (f" for {', '.join(where)}" if where else ""))
    return f"Lowest at {'; '.join(minima)}." if minima else "Nowhere finite."


def _bands_panel(carried: np.ndarray, varied, losses, diverged) -> report.Panel:
    """All members; and, if settings were trained from several seeds, the setting with the lowest median."""
    shown, also = [("all members" if len(losses) > 1 else "the only member", carried)], ""
    settings = [name for name in varied if name not in ("seed", "subset")]
    if settings and "seed" in varied:
        rows = [tuple(column) for column in zip(*(varied[name].tolist() for name in settings), strict=True)]
        groups: dict[tuple, list[int]] = {}
        for member, row in enumerate(rows):
            groups.setdefault(row, []).append(member)
        score = np.where(diverged | ~np.isfinite(losses), np.inf, losses)
        members = min(groups.values(), key=lambda ids: np.median(score[ids]))
        if len(members) >= 3 and np.isfinite(score[members]).any():
            setting = _setting({name: varied[name] for name in settings}, members[0])
            shown.append((f"the best setting, {len(members)} seeds", carried[:, members]))
            also = f" Best setting, by the median over its seeds: {setting}."
    lost = int(diverged.sum())
    return report.Panel(
        "Held-out loss over the epochs",
        plots.quantile_bands(shown),
        "Quantiles of the held-out loss over the epochs: " + ", ".join(title for title, _ in shown) + "." + also,
        "The median, and bands with half and four fifths of the members. Stopped members keep their last value"
        + (f"; {lost} that diverged are left out from then on." if lost else ".")
        + also,
    )


def _best_table(population: Population, table, columns, losses, task: Prepared) -> report.Table:
    out = np.isin(population.status, ("diverged", "halved")) | ~np.isfinite(losses)
    order = [m for m in np.argsort(np.where(out, np.inf, losses), kind="stable")[:10] if not out[m]]
    classes = task.held_out.task == "classification"
    header = ("member", *columns, "loss", *(["accuracy"] if classes else []), "lowest loss", "in epoch")
    accuracy, lowest = table["validation_accuracy"], table["best_validation_loss"]
    rows = [
        (
            str(m),
            *(_cell(column[m].item(), name) for name, column in columns.items()),
            report.Quantity(f"{losses[m] + 0:.4g}", losses[m]),
            *([report.Quantity(f"{100 * accuracy[m]:.2f} %", accuracy[m])] if classes else []),
            report.Quantity(f"{lowest[m] + 0:.4g}", lowest[m]),
            str(table["best_epoch"][m]),
        )
        for m in order
    ]
    return report.Table(
        f"The {len(rows)} best" if len(rows) > 1 else "The best" if rows else "No member has a finite held-out loss",
        header,
        rows,
        "Measured on the held-out part after the last epoch; lowest loss: the minimum over the epochs. Because the "
        "held-out part chose the best of many, it looks better there than on new data.",
    )


def _cell(value: str | float, name: str) -> str | report.Quantity:
    text = plots.value_text(value, name)
    return text if isinstance(value, str) else report.Quantity(text, np.inf if text == "all" else value)
