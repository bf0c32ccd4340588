"""Programs for accelerators, lowered on a machine without one: what they contain, and what they do not.

A program is lowered for CUDA, ROCm and TPU, and never compiled. Its StableHLO has no call to the host, no 64 bits where
they are off, no gather except of rows that were requested by number, and products of the requested precision.
"""

import functools
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import functional_nn as fnn
from functional_nn import platforms, reductions, training
from functional_nn.gradients import curvature, factors, quantities
from functional_nn.optimizers import curve_fit, minimize, problem_from, second_order
from functional_nn.optimizers.second_order import Problem
from functional_nn.training import group_training, loop, members
from functional_nn.training.data import prepare_data
from functional_nn.training.initial_parameters import parameter_shapes
from functional_nn.training.records import Batch
from functional_nn.training.settings import check_settings, with_plan

pytestmark = [pytest.mark.usefixtures("brisk"), pytest.mark.newest]

PLATFORMS = ("cuda", "rocm", "tpu")
# JAX's names for factorizations; the TPU compiler has the others built in
SOLVERS = re.compile(r"(cu|hip)(solver|blas)_\w+_ffi|Qr|Eigh|ProductOfElementaryHouseholderReflectors")
Q = 16
LOSS = fnn.losses.cross_entropy()


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


class Program(NamedTuple):
    """calls: functions outside StableHLO; gathers, scatters: from and into arrays of these shapes; products, precise:
    how many products and convolutions there are, and how many have full precision; text: the program.
    """

    calls: frozenset[str]
    gathers: Counter
    scatters: Counter
    products: int
    precise: int
    text: str


def lowered(function, *given, platform="cuda", precision=None) -> Program:
    """The program for a platform, after checking that it contains nothing forbidden."""
    if not hasattr(function, "lower"):
        function = jax.jit(functools.partial(function))  # a new function, not yet traced for another platform
    with platforms.aimed_at(platform), jax.default_matmul_precision(precision):
        text = jax.export.export(function, platforms=[platform])(*given).mlir_module()
    assert not re.search(r"callback|stablehlo\.(send|recv|infeed|outfeed)", text)
    assert not re.search(r"\btensor<(\d+x)*(f64|i64|complex<f64>)>", text)
    lines = text.splitlines()
    products = [line for line in lines if re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line)]
    return Program(
        frozenset(re.findall(r"custom_call @(\w+)", text)),
        Counter(_shape(line) for line in lines if '"stablehlo.gather"' in line),
        # whose types stand where its computation ends
        Counter(re.findall(r'"stablehlo\.scatter".*?\}\) : \(tensor<(\w+)>', text, re.DOTALL)),
        len(products),
        sum(line.count("HIGHEST") == 2 for line in products),
        text,
    )


def _shape(line: str) -> str:
    return re.search(r" : \(tensor<(\w+)>", line)[1]


def shaped(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def zeros(tree):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def numbers(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def key():
    return jax.eval_shape(lambda: jax.random.key(0))


def parameters(network):
    return jax.eval_shape(network.init, key())


# The gradient ---------------------------------------------------------------------------------------------------------


def dense():
    return fnn.multilayer((64, 32, 10), ("tanh", "softmax"), dropout=0.2), numbers(Q, 64), numbers(Q, 10)


def convolutional():
    return fnn.presets.get("lenet")((28, 28, 1), 10), numbers(Q, 28, 28, 1), numbers(Q, 10)


def residual():
    preset = fnn.presets.get("residual(depth=1, width=8, norm=batch_norm)")
    return preset((16, 16, 3), 10), numbers(Q, 16, 16, 3), numbers(Q, 10)


def of_tokens(preset):
    network = fnn.presets.get(preset)(12, 7, tokens=7, each_position=True)
    return network, numbers(Q, 12, dtype="int32"), numbers(Q, 12, 7)


def recurrent_to_the_last():
    layers = [
        fnn.Layer("state", 8, "recurrent(tanh)", sources=["series"]),
        fnn.Layer("last", 8, "linear", sources=[("state", "take(-1)")], bias="none"),
        fnn.Layer("output", 10, "softmax", sources=["last"]),
    ]
    return fnn.graph(inputs={"series": (12, 2)}, layers=layers), numbers(Q, 12, 2), numbers(Q, 10)


# name -> (network, inputs, targets), and the columns of weights that tokens read, and whose gradients are added up, by
# number
NETWORKS = {
    "dense": (dense, None),
    "convolutional": (convolutional, None),
    "residual": (residual, None),
    "transformer": (lambda: of_tokens("transformer(layers=1, heads=2, width=16)"), "7x16xf32"),
    "gru": (lambda: of_tokens("gru(width=8)"), "7x24xf32"),
    "lstm": (lambda: of_tokens("lstm(width=8)"), "7x32xf32"),
    "recurrent": (recurrent_to_the_last, None),
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_has_products_of_the_requested_precision_and_gathers_only_tokens(name, platform):
    made, rows = NETWORKS[name]
    network, inputs, targets = made()
    given = parameters(network), inputs, targets, None, *([key()] if network.drops else [])
    for precision in (None, "highest") if platform == "cuda" else (None,):
        program = lowered(fnn.value_and_grad(network, LOSS), *given, platform=platform, precision=precision)
        assert program.products > 0 and program.precise == (program.products if precision else 0)
        assert not program.calls
        assert program.gathers == program.scatters == (Counter([rows]) if rows else Counter())


@pytest.mark.parametrize("platform", ("cpu", *PLATFORMS))
def test_sums_are_by_halves_and_by_products_on_cpus_and_reductions_elsewhere(platform):
    """Each separately, and where they are used: a bias's gradient, squares of sensitivities, a normalization."""
    on_cpu = platform == "cpu"
    for function in (reductions.total, reductions.largest, reductions.over_examples):
        assert ("stablehlo.slice" in lowered(function, numbers(Q, 64), platform=platform).text) == on_cpu
    network = fnn.graph(
        inputs={"x": (8, 4)},
        layers=[
            fnn.Layer("normed", 8, "group_norm(2)", sources=["x"]),
            fnn.Layer("output", 3, "softmax", sources=[("normed", "full")]),
        ],
    )
    given = parameters(network), numbers(Q, 8, 4), numbers(Q, 3)

    def norms(*given):
        return quantities.per_example_layer_norms(network, LOSS, *given)["output"]

    for function, *own in (
        (reductions.over_examples, numbers(Q, 16)),  # few columns
        (reductions.over_columns, numbers(Q, 64)),
        (reductions.over_positions, numbers(Q, 8, 64)),
        (network.apply, *given[:2]),
        (fnn.value_and_grad(network, LOSS), *given),
        (norms, *given),
    ):
        assert (lowered(function, *own, platform=platform).precise > 0) == on_cpu


# Training -------------------------------------------------------------------------------------------------------------

X, LABELS = np.zeros((100, 64), np.float32), np.arange(100) % 10
T = np.eye(10, dtype=np.float32)[LABELS]
BATCHES = Counter(["100x64xf32", "100x10xf32"])  # the rows of a batch


def fit_programs(network, optimizer, plan, loss="cross_entropy", **settings):
    """`fit`'s two, as it compiles them, and shapes of what they take."""
    settings = check_settings(network, loss, optimizer, plan=plan, **settings)
    params = zeros(jax.eval_shape(lambda key: loop.initial_params(settings, key), key()))
    training_data, held_out = prepare_data(settings, params, X, T, (X[:20], T[:20]), None, None)
    begin, advance = loop.compiled(with_plan(settings, training_data, 3), 3)
    given = shaped((params, training_data))
    run = jax.eval_shape(begin, *given)
    return (begin, given), (advance, (run, given[1], shaped(held_out), key(), numbers(dtype="int32")))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_fit_gathers_the_rows_of_its_batches_and_nothing_else(platform):
    network = dense()[0]
    settings = {"stop": training.early_stopping(patience=2), "regularizer": "l2(1e-4)"}
    (begin, first), (advance, given) = fit_programs(network, "adam", training.minibatch(Q), **settings)
    assert not lowered(begin, *first, platform=platform).gathers
    for precision in (None, "highest") if platform == "cuda" else (None,):
        program = lowered(advance, *given, platform=platform, precision=precision)
        assert program.gathers == BATCHES and not program.calls
        assert program.products > 0 and program.precise == (program.products if precision else 0)
        assert not program.scatters


def test_fit_of_all_examples_at_once_gathers_none():
    for optimizer in ("gd(0.1)", "lbfgs"):
        _, (advance, given) = fit_programs(
            fnn.multilayer((64, 32, 10), ("tanh", "softmax")), optimizer, training.batch()
        )
        assert lowered(advance, *given).gathers == Counter()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_fit_by_levenberg_marquardt_is_of_full_precision(platform):
    """The method, its termination test and its reports, but not the validation loss, as in all fits."""
    network = fnn.multilayer((64, 3, 10), ("tanh", "linear"))
    for optimizer, plan in (
        ("levenberg_marquardt", training.batch()),
        ("levenberg_marquardt(minibatches=True)", training.minibatch(Q)),
    ):
        _, (advance, given) = fit_programs(network, optimizer, plan, loss="mean_square_error")
        program = lowered(advance, *given, platform=platform)
        assert program.products - program.precise == 2  # of the two layers, of the validation data


def test_fit_of_a_stream_gathers_whole_windows():
    """Windows of bytes, which stay bytes: the inputs and their targets."""
    network = of_tokens("gru(width=8)")[0]
    settings = check_settings(network, "cross_entropy", "adam", plan=training.minibatch(4))
    params = zeros(parameters(network))
    data, _ = prepare_data(settings, params, fnn.windows(np.zeros(121, np.uint8), 12), None, None, None, None)
    begin, advance = loop.compiled(with_plan(settings, data, 3), 3)
    given = shaped((params, data))
    program = lowered(advance, jax.eval_shape(begin, *given), given[1], None, key(), numbers(dtype="int32"))
    assert program.gathers["121xui8"] == 2 and program.gathers["7x24xf32"] == 1
    assert set(program.gathers) <= {"121xui8", "7x24xf32", "10xui32", "3xi32", "3xf32"}


def population_program(network, platform, lanes=5):
    """A population's, as it compiles it, and shapes of what it takes."""
    image = network.shapes[network.inputs[0][0]]
    x = np.zeros((100, *image), np.float32)
    columns = {"learning_rate": np.full(lanes, 0.1), "seed": np.arange(lanes)}
    settings = {"loss": LOSS, "stop": (), "gradient": "manual", "correct": None, "track": (), "augment": ()}
    specification = members.Specification(
        network=network,
        optimizer="adam",
        columns=columns,
        data=(x, T),
        key=jax.random.key(0),
        epochs=2,
        settings=settings,
        plan=training.minibatch(Q),
    )
    (group,) = members.grouped(specification)
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("members",))
    with platforms.aimed_at(platform):
        made = group_training.GroupTraining(group, lanes, 2, mesh, True, jax.random.key(0))
    values = shaped(group.values)
    params = jax.tree.map(lambda x: numbers(lanes, *x.shape, dtype=x.dtype), parameter_shapes(network))
    run = jax.eval_shape(made.begin, values, params)
    data = shaped(Batch(*group.data.whole[:3]))
    number = numbers(dtype="int32")
    return made.advance, (run, values, data, None, key(), number, number)


@pytest.mark.parametrize("platform", ("cpu", *PLATFORMS))
def test_a_population_gathers_each_batch_once_for_all_lanes(platform):
    """One gather of inputs and one of targets, whatever the number of lanes; products of all lanes at once."""
    advance, given = population_program(fnn.multilayer((64, 32, 10), ("tanh", "softmax")), platform)
    program = lowered(advance, *given, platform=platform)
    # and one number a lane, the loss of the update that was not made, of 7
    assert program.gathers == BATCHES + Counter(["5x7xf32"]) and not program.scatters
    assert ("optimization_barrier" in program.text) == (platform == "cpu")  # by which columns are kept standing
    if platform == "cuda":
        assert lowered(advance, *given, platform=platform, precision="highest").precise == program.products


@pytest.mark.parametrize("platform", ("cpu", *PLATFORMS))
def test_convolutions_of_lanes_are_products_and_those_of_one_network_convolutions(platform):
    network = fnn.graph(
        inputs={"image": (8, 8, 1)},
        layers=[
            fnn.Layer("conv", 4, "relu", sources=[("image", "conv((3, 3))")]),
            fnn.Layer("output", 10, "softmax", sources=[("conv", "full")]),
        ],
    )
    advance, given = population_program(network, platform)
    assert "stablehlo.convolution" not in lowered(advance, *given, platform=platform).text
    alone = lowered(fnn.value_and_grad(network, LOSS), parameters(network), numbers(Q, 8, 8, 1), numbers(Q, 10))
    assert "stablehlo.convolution" in alone.text


# Quantities -----------------------------------------------------------------------------------------------------------

ALL = tuple(name for name in quantities.names() if name != "input_gradients")


@pytest.mark.parametrize(
    "name, platform", [*(("dense", p) for p in PLATFORMS), ("convolutional", "tpu"), ("gru", "cuda")]
)
def test_all_quantities_together(name, platform):
    network, inputs, targets = NETWORKS[name][0]()
    names = ALL if name == "dense" else ("per_example_norms", "clipped_gradient", "variance", "noise_scale", "kfac")

    def function(params, inputs, targets, key):
        keys = {"key": key} if {"kfac", "sampled_gauss_newton_diagonal"} & set(names) else {}
        return quantities.compute(network, LOSS, params, inputs, targets, names, max_norm=1.0, **keys)

    program = lowered(function, parameters(network), inputs, targets, key(), platform=platform)
    assert not program.calls and 0 < program.precise < program.products


@pytest.mark.parametrize("name", ["inner_products", "tangent_kernel", "tangent_kernel_trace", "gauss_newton", "kflr"])
def test_matrices_over_examples_are_of_full_precision_where_gradients_are_not(name):
    network, inputs, targets = convolutional()
    given = parameters(network), inputs, targets

    def compute(*names):
        return lowered(lambda *given: quantities.compute(network, LOSS, *given, names, budget=2**40), *given)

    assert compute("jacobian", "input_gradients").precise == 0 < compute(name).precise


PART = np.ones(Q, np.float32)
SUMS = {
    "square_norms": factors.square_norms,
    "second_moment": lambda f: factors.second_moment(f, jnp.asarray(PART)),
    "inner_products": lambda f: factors.inner_products(f, f),
    "kernel_products": lambda f: factors.kernel_products(f, f),
    "traced_products": lambda f: factors.traced_products(f, f),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("positions", [(), (2,), (50,)], ids=["once", "Gram", "formed"])
def test_sums_of_factors_are_of_full_precision(name, positions):
    directions = () if name == "inner_products" else (3,)
    left, right = numbers(Q, *directions, *positions, 20), numbers(Q, *positions, 30)
    program = lowered(lambda *f: SUMS[name](factors.Factors(*f)), left, right)
    assert program.precise == program.products and (program.products or name == "square_norms")


def test_blocks_of_examples_are_the_platforms():
    """Of 4096 pictures, as many are swept at once as take so many bytes."""
    network, size = convolutional()[0], 4096
    given = parameters(network), numbers(size, 28, 28, 1), numbers(size, 10)
    seen = {}
    for platform in ("cpu", "tpu"):
        text = lowered(
            lambda *given: quantities.per_example_norms(network, LOSS, *given), *given, platform=platform
        ).text
        (seen[platform],) = {int(n) for n in re.findall(r"tensor<(\d+)x28x28x1xf32>", text)} - {size}
    ratio = platforms.ACCELERATOR.swept / platforms.CPU.swept
    assert 0.8 * ratio * seen["cpu"] <= seen["tpu"] <= 1.2 * ratio * seen["cpu"]


# Second order ---------------------------------------------------------------------------------------------------------

SINE = fnn.multilayer((1, 15, 1), ("tanh", "linear"))
LINE = np.linspace(-1, 1, 40, dtype=np.float32)
FACTORED = ("kfac", "levenberg_marquardt", "bayesian_regularization", "newton")


def decaying(b, x, y):
    return b[0] * jnp.exp(-b[1] * x) + b[2] - y


def of_network():
    return training.problem(SINE, "mean_square_error", LINE[:, None], np.sin(3 * LINE)[:, None]), parameters(SINE)


def of_residuals():
    return problem_from(residuals=decaying, data=(LINE, LINE)), numbers(3)


def ended(problem, method, lanes=False):
    """minimize(data, start) -> Solution, from one start or from many."""
    functions, name = problem.functions, problem.name

    def run(data, start):
        return minimize(Problem(functions, data, name), method, start, steps=5)

    return jax.vmap(run, (None, 0)) if lanes else run


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize(
    "name, platform",
    [(name, platform) for name in second_order.names() for platform in (PLATFORMS if name in FACTORED else ("cuda",))],
)
def test_second_order_methods_are_of_full_precision(name, platform):
    """Whatever the default: the systems that are solved, and the termination test."""
    for make in (of_network, of_residuals)[: 1 if name == "kfac" else 2]:
        problem, start = make()
        program = lowered(ended(problem, second_order.get(name)), problem.data, start, platform=platform)
        assert program.precise == program.products > 0
        assert all(SOLVERS.fullmatch(call) for call in program.calls)
        if platform != "tpu":  # whose compiler makes Cholesky's factors itself
            assert bool(program.calls) == (name in FACTORED)


def test_a_method_in_a_custom_loop_has_full_precision():
    """Its start, a step, and the same point seen by another batch."""
    problem, start = of_residuals()
    method = second_order.get("levenberg_marquardt(minibatches=True)")

    def of(data):
        return Problem(problem.functions, data, problem.name)

    def init(data, params):
        return method.init(params, of(data))

    state = jax.eval_shape(init, problem.data, start)
    for function, given in (
        (init, start),
        (lambda data, state: method.update(state, of(data)), state),
        (lambda data, state: method.renew(state, of(data)), state),
    ):
        program = lowered(function, problem.data, given)
        assert program.precise == program.products > 0


@pytest.mark.parametrize("platform", ("cpu", "cuda"))
@pytest.mark.parametrize("name", ("levenberg_marquardt", "newton"))
def test_lanes_are_factored_one_by_one_on_cpus_and_together_elsewhere(name, platform):
    """On CPU a batch in one call may hang: two devices that make such a call at once wait for each other."""
    problem, _ = of_residuals()
    run = ended(problem, second_order.get(name), lanes=True)
    program = lowered(run, problem.data, numbers(6, 3), platform=platform)
    assert program.precise == program.products and program.calls
    assert (max(ranks(program)) == 2) == (platform == "cpu")


def ranks(program):
    """Of what is given to each call of a solver: 2 of a matrix, 3 of a batch."""
    calls = re.findall(r"custom_call @(\w+)\(.*?\} : \(tensor<([\dx]+)xf32>", program.text)
    return [operand.count("x") + 1 for call, operand in calls if SOLVERS.fullmatch(call) or "lapack" in call]


@pytest.mark.parametrize("platform", ("cpu", "cuda"))
def test_lanes_of_full_matrix_adagrad_likewise(platform):
    """Two devices of one process hung for ever, each with a population's eigenvalues."""
    optimizer = fnn.optimizers.full_matrix_adagrad(0.1)
    params = {"x": numbers(6, 3)}
    state = jax.eval_shape(jax.vmap(optimizer.init), params)
    program = lowered(jax.vmap(optimizer.update), state, params, platform=platform)
    assert set(ranks(program)) == {2 if platform == "cpu" else 3} and program.precise == program.products == 2


CURVATURE = {
    "hessian": lambda *given: curvature.hessian(SINE, "mean_square_error", *given),
    "blocks": lambda params, x, t: curvature.hessian(SINE, "mean_square_error", params, x, t, block=7),
    "gauss_newton": lambda *given: curvature.gauss_newton_vector_product(SINE, "mean_square_error", *given, given[0]),
    "eigenvalues": lambda *given: curvature.extreme_eigenvalues(
        SINE, "mean_square_error", *given, key=jax.random.key(0), steps=5
    ),
    "trace": lambda *given: curvature.trace(SINE, "mean_square_error", *given, key=jax.random.key(0), samples=3),
    "model": lambda *given: curvature.quadratic_model(SINE, "mean_square_error", *given).value(jnp.zeros(46)),
    "solve": lambda *given: curvature.kronecker_solve(
        SINE, quantities.kflr(SINE, "mean_square_error", *given), 0.1, given[0]
    ),
    "derivative": lambda *given: jax.grad(
        lambda params: curvature.stable_rate(SINE, "mean_square_error", params, *given[1:], key=jax.random.key(0))
    )(given[0]),
}


@pytest.mark.parametrize("name", CURVATURE)
def test_curvature_is_of_full_precision(name):
    program = lowered(CURVATURE[name], parameters(SINE), numbers(40, 1), numbers(40, 1))
    # but of the forward pass that kflr's factors are made of, which is not of `curvature`
    assert program.products - program.precise == (2 if name == "solve" else 0)


@pytest.mark.parametrize(
    "sigma, platform", [(None, "cuda"), (None, "rocm"), (None, "tpu"), (np.eye(40, dtype=np.float32), "cuda")]
)
def test_a_curves_parameters_and_their_covariance_are_of_full_precision(sigma, platform):
    def fitted(x, y):
        fit = curve_fit(lambda x, a, b, c: decaying((a, b, c), x, 0), x, y, (1.0, 1.0, 0.0), sigma=sigma)
        return fit.params, fit.covariance, fit.band(x)

    program = lowered(fitted, LINE, LINE, platform=platform)
    assert program.precise == program.products > 0


# Comparison -----------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    "what", ["compare", "monitor", "compare_callables", "compare_activation", "compare_connection"]
)
def test_comparisons_trace_everything_at_full_precision(what):
    """Whatever the default outside: everything that is traced or computed records its precision."""
    seen = set()

    def noted(x):
        seen.add(jax.config.jax_default_matmul_precision)
        return x

    derivatives = {
        "derivative": lambda n, a: noted(1 / (1 + n**2)),
        "second_derivative": lambda n, a: noted(-2 * n / (1 + n**2) ** 2),
    }
    arctan = fnn.activations.elementwise("noted", lambda n: noted(jnp.arctan(n)), **derivatives)
    weighing = fnn.Connection(
        "noted",
        lambda x, channels: ((channels,), (channels, *x)),
        lambda x, w: noted(x @ w.T),
        lambda s, w, like: noted(s @ w),
        lambda s, x: noted(s.T @ x),
        lambda s, x: (noted(s), x),
    )
    network = fnn.multilayer((3, 4, 2), (arctan, "softmax"))
    x, t = np.ones((5, 3), np.float32), np.eye(2, dtype=np.float32)[np.arange(5) % 2]
    with jax.default_matmul_precision("bfloat16"):
        if what == "compare":
            fnn.compare(network, LOSS, network.init(jax.random.key(0)), x, t)
        elif what == "monitor":
            fnn.comparison.monitor(network, LOSS, x, t)(network.init(jax.random.key(0)))
        elif what == "compare_callables":
            fnn.compare_callables(lambda x: noted(jnp.cos(x)), jax.grad(lambda x: jnp.sum(noted(jnp.sin(x)))), x)
        elif what == "compare_activation":
            fnn.comparison.compare_activation(arctan)
        else:
            fnn.comparison.compare_connection(weighing, 3, channels=2)
    assert seen == {"highest"}
