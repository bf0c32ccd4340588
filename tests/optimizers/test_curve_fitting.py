"""curve_fit: NIST's certified parameters and standard deviations, SciPy's covariance, and what is said of bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nist_strd import problems

from functional_nn.optimizers import curve_fit, levenberg_marquardt
from functional_nn.optimizers.curve_fitting import student

pytestmark = pytest.mark.usefixtures("brisk")

NIST = {problem.name: problem for problem in problems()}
X = np.linspace(0.0, 4.0, 30)
DRAW = np.random.default_rng(0)
NOISE = DRAW.standard_normal(X.size)


def decay(x, height, rate, base):
    return height * jnp.exp(-rate * x) + base


Y = np.asarray(decay(X, 2.5, 1.3, 0.5)) + 0.05 * NOISE
P0 = (1.0, 1.0, 0.0)
SIGMA = 0.05 * (1 + X)
COVARIANCE = np.diag(SIGMA**2) + 1e-3


def theirs(*args, **settings):
    """SciPy's parameters and covariance, from its MINPACK, as far as it goes."""
    optimize = pytest.importorskip("scipy.optimize")

    def f(x, *b):
        return np.asarray(decay(x, *b))

    tight = {} if "loss" in settings or "bounds" in settings else {"jac": slopes}
    return optimize.curve_fit(f, *args, ftol=1e-15, xtol=1e-15, gtol=1e-15, **tight, **settings)


def slopes(x, *b):
    return np.stack(jax.jacfwd(decay, argnums=(1, 2, 3))(x, *map(float, b)), axis=1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each.name, marks=() if each.name in ("Misra1a", "ENSO") else pytest.mark.slow)
        for each in problems()
    ],
)
def test_nists_parameters_and_standard_deviations(name):
    """Six digits and more of both, from both starts; and SciPy's covariance from there on, to 1e-8."""
    own, optimize = NIST[name], pytest.importorskip("scipy.optimize")
    value = jax.jit(lambda b: own.model(b, own.x))
    slope = jax.jit(jax.jacfwd(value))

    def f(x, *b):
        return own.model(jnp.stack([jnp.asarray(each) for each in b]), x)

    for start in own.starts:
        fit = curve_fit(f, own.x, own.y, start)
        assert own.digits(fit.params) >= 8
        np.testing.assert_allclose(fit.standard_errors, own.deviations, rtol=1e-8)
        b, covariance = optimize.curve_fit(
            lambda x, *b: np.asarray(value(np.array(b))),
            own.x,
            own.y,
            np.asarray(fit.params),
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            jac=lambda x, *b: np.asarray(slope(np.array(b))),
        )
        np.testing.assert_allclose(fit.params, b, rtol=1e-8)
        size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        np.testing.assert_allclose(fit.covariance / size, covariance / size, atol=1e-8)


@pytest.mark.sampled(every=2)
@pytest.mark.oracle
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"absolute_sigma": True},
        {"sigma": SIGMA},
        {"sigma": SIGMA, "absolute_sigma": True},
        {"sigma": COVARIANCE, "absolute_sigma": True},
        {"sigma": COVARIANCE},
        {"sigma": 0.05, "absolute_sigma": True},
    ],
    ids=["plain", "absolute", "sigma", "absolute sigma", "absolute covariance", "covariance", "one sigma"],
)
def test_covariance_is_scipys(settings):
    params, covariance = curve_fit(decay, X, Y, P0, **settings)
    if np.ndim(settings.get("sigma", X)) == 0:  # SciPy's takes no single number together with a Jacobian
        settings = settings | {"sigma": np.full(X.shape, settings["sigma"])}
    wanted, of_them = theirs(X, Y, P0, **settings)
    np.testing.assert_allclose(params, wanted, rtol=1e-8)
    np.testing.assert_allclose(covariance, of_them, rtol=1e-7)


@pytest.mark.oracle
@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy"])
def test_robust_fits_are_scipys(loss):
    y = Y.copy()
    y[::5] += 2.0
    fit = curve_fit(decay, X, y, P0, loss=loss, loss_scale=0.1)
    wanted, covariance = theirs(X, y, P0, method="trf", loss=loss, f_scale=0.1, max_nfev=5000)
    np.testing.assert_allclose(fit.params, wanted, rtol=1e-4)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-3)
    off = [np.linalg.norm(np.subtract(found.params, (2.5, 1.3, 0.5))) for found in (fit, curve_fit(decay, X, y, P0))]
    assert off[0] < 0.6 * off[1]


def test_bounds_and_names():
    """A dict of starts names the parameters; what a bound holds stands at it."""
    fit = curve_fit(
        decay, X, Y, {"height": 1.0, "rate": 0.9, "base": 0.1}, bounds=({"height": 0, "rate": 0, "base": 0}, 1.0)
    )
    free = jax.tree.map(float, fit.params)
    assert free["rate"] == 1.0 and free["height"] == 1.0 and fit.solution.status in ("gradient", "change")
    fit = curve_fit(decay, X, Y, P0, bounds=([0, 0, 0], [9, 1.2, 9]))
    wanted, _ = theirs(X, Y, (1.0, 1.0, 0.1), bounds=([0, 0, 0], [9, 1.2, 9]))
    np.testing.assert_allclose(fit.params, wanted, rtol=1e-5)


def test_a_line_is_the_text_books():
    """Exact covariance, intervals and bands of a regression line: t with N - 2 degrees of freedom."""
    stats = pytest.importorskip("scipy.stats")
    fit = curve_fit(lambda x, slope, intercept: slope * x + intercept, X, Y)
    A = np.stack([X, np.ones_like(X)], axis=1)
    b, square = np.linalg.lstsq(A, Y)[:2]
    C = float(square[0]) / (X.size - 2) * np.linalg.inv(A.T @ A)
    np.testing.assert_allclose(fit.params, b, rtol=1e-10)
    np.testing.assert_allclose(fit.covariance, C, rtol=1e-9)
    roots = np.sqrt(np.diag(C))
    np.testing.assert_allclose(fit.correlation, C / np.outer(roots, roots), rtol=1e-9)
    t = stats.t.ppf(0.95, X.size - 2)
    np.testing.assert_allclose(fit.interval(0.9), [b - t * roots, b + t * roots], rtol=1e-8)
    at = np.array([-1.0, 2.0, 7.0])
    a = np.stack([at, np.ones_like(at)], axis=1)
    for prediction, more in ((False, 0.0), (True, float(fit.variance))):
        half = t * np.sqrt(np.einsum("ij,jk,ik->i", a, C, a) + more)
        np.testing.assert_allclose(fit.band(at, 0.9, prediction), [a @ b - half, a @ b + half], rtol=1e-8)


@pytest.mark.slow
def test_lists_halves_and_starts_between_bounds():
    """Lists of numbers are arrays, 16 bits are widened, and without p0 the start is within the bounds, as SciPy's."""

    def line(x, a, b):
        return a + b * x.astype(a.dtype)

    np.testing.assert_allclose(curve_fit(line, [0, 1, 2], [1, 3, 5]).params, [1.0, 2.0], rtol=1e-6)
    half = np.arange(3, dtype=np.float16)
    np.testing.assert_allclose(curve_fit(line, half, 1 + 2 * half).params, [1.0, 2.0], rtol=1e-3)

    def starts(bounds):
        return curve_fit(line, [0.0], [0.0], bounds=bounds, steps=1).params

    assert np.all(np.asarray(starts(([2.0, -np.inf], [3.0, -4.0]))) <= [3.0, -4.0])


@pytest.mark.oracle
def test_students_quantile():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 7, 300, 301, 1_000_000, np.inf):
        for level in (0.1, 0.95):
            wanted = stats.t.ppf((1 + level) / 2, freedom)
            np.testing.assert_allclose(student(level, freedom, jnp.float64), wanted, rtol=1e-7)
    np.testing.assert_allclose(student(0.95, 1_000_000, jnp.float32), stats.t.ppf(0.975, 1_000_000), rtol=1e-5)
    assert np.isnan(student(0.95, 0, jnp.float64))


def test_intervals_of_absolute_sigma_are_normal():
    """One datum of sigma 0.1: 3 +- 1.96 0.1."""
    fit = curve_fit(lambda x, a: a * x, [1.0], [3.0], sigma=0.1, absolute_sigma=True)
    np.testing.assert_allclose(np.ravel(fit.interval()), [3 - 0.1959963985, 3 + 0.1959963985], rtol=1e-9)
    relative = curve_fit(lambda x, a: a * x, [1.0], [3.0])
    assert np.isnan(relative.interval()).all()


def test_a_spent_budget_is_the_end():
    fit = curve_fit(decay, X, Y, P0, steps=2)
    assert fit.solution.status == "budget" and fit.solution.steps == 2


@pytest.mark.slow
def test_many_data_sets_in_one_program():
    """vmap over y, and over starts too: each lane is the fit alone; its errors and bands have a leading axis."""
    Ys = Y + 0.02 * DRAW.standard_normal((3, X.size))
    fits = jax.jit(jax.vmap(lambda y: curve_fit(decay, X, y, P0)))(Ys)
    bands = jax.vmap(lambda fit: fit.band(jnp.asarray(X)))(fits)
    for k in range(3):
        alone = curve_fit(decay, X, Ys[k], P0)
        np.testing.assert_allclose(fits.params[k], alone.params, rtol=1e-9)
        np.testing.assert_allclose(fits.standard_errors[k], alone.standard_errors, rtol=1e-7)
        np.testing.assert_allclose(fits.correlation[k], alone.correlation, rtol=1e-6)
        np.testing.assert_allclose([b[k] for b in bands], alone.band(X), rtol=1e-7)


def test_what_the_data_leave_open_is_said():
    """A parameter without influence, two that only act together, more parameters than data: infinite errors."""
    fit = curve_fit(lambda x, a, b, c: a * x + 0 * b + c, X, Y)
    assert list(fit.determined) == [True, False, True] and np.isinf(fit.standard_errors[1])
    assert np.isfinite(np.delete(fit.standard_errors, 1)).all() and np.isfinite(fit.params).all()
    assert np.isfinite(fit.correlation).all() and np.isfinite(fit.band(X)).all()
    fit = curve_fit(lambda x, a, b, c: (a + b) * x + c, X, Y)
    assert list(fit.determined) == [False, False, True]
    fit = curve_fit(decay, X[:2], Y[:2], P0)
    assert np.isinf(fit.standard_errors).all() and float(fit.solution.value) < 1e-10
    assert "converged" in repr(fit)


def test_single_precision():
    fit = curve_fit(decay, jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32), np.asarray(P0, np.float32))
    assert fit.covariance.dtype == jnp.float32
    params, covariance = curve_fit(decay, X, Y, P0)
    np.testing.assert_allclose(fit.params, params, rtol=1e-4)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: curve_fit(3, X, Y), TypeError, "f: expected a function f(x, b1, b2, ...), got int"),
        (
            lambda: curve_fit(decay, X, np.where(X > 3, np.nan, Y), P0),
            ValueError,
            "y: expected finite numbers, got nan",
        ),
        (lambda: curve_fit(decay, X, Y[:-1], P0), ValueError, "to have the shape of y, (29,), got (30,)"),
        (lambda: curve_fit(decay, X, Y, np.ones((3, 1))), ValueError, "p0: expected one number a parameter"),
        (lambda: curve_fit(decay, X, Y, (1.0, np.inf, 1.0)), ValueError, "p0: expected finite numbers, got inf"),
        (lambda: curve_fit(lambda x, *b: x, X, Y), ValueError, "the number of parameters of f is unknown"),
        (lambda: curve_fit(decay, X, Y, P0, sigma=np.ones(4)), ValueError, "a covariance (30, 30), got shape (4,)"),
        (lambda: curve_fit(decay, X, Y, P0, sigma=0.0), ValueError, "expected standard deviations > 0"),
        (lambda: curve_fit(decay, X, Y, P0, sigma=-COVARIANCE), ValueError, "expected a positive definite covariance"),
        (lambda: curve_fit(decay, X, Y, P0, bounds=(0.5, 9.0)), ValueError, "p0: 0 of parameter 2 is outside its"),
        (lambda: curve_fit(decay, X, Y, P0, method="bfgs"), ValueError, "expected levenberg_marquardt with a trust"),
        (lambda: curve_fit(decay, X, Y, P0, method=levenberg_marquardt(rule="factor")), ValueError, "trust region"),
        (lambda: curve_fit(lambda x, a: jnp.log(-a * x - 1), X, Y, (1.0,)), ValueError, "is not finite at the start"),
        (lambda: curve_fit(decay, X, Y, P0, loss="l1"), ValueError, "loss must be 'linear' or 'huber'"),
        (lambda: curve_fit(decay, [], []), ValueError, "y: expected at least one number, got shape (0,)"),
        (lambda: curve_fit(decay, X, Y, []), ValueError, "p0: expected at least one number"),
        (lambda: curve_fit(decay, X, Y, [1.0, [1.0, 2.0]]), ValueError, "p0: expected numbers, got rows of different"),
        (lambda: curve_fit(decay, X, Y, "one"), TypeError, "p0: expected an array of numbers, got dtype <U3"),
        (
            lambda: curve_fit(decay, X, Y, {"height": {"of": 1.0}}),
            TypeError,
            "p0: height: expected an array of numbers",
        ),
        (lambda: curve_fit(decay, X, Y, (1.0, 1.0)), TypeError, "f does not take 2 starts: missing a required"),
        (lambda: curve_fit(decay, X, Y, {"high": 1.0}), TypeError, "f does not take the starts of high: missing"),
        (lambda: curve_fit(decay, X, np.ma.masked_greater(Y, 2), P0), ValueError, "y: masked at index"),
        (lambda: curve_fit(decay, {"t": X.astype(str)}, Y, P0), TypeError, "x/t: expected an array of numbers"),
        (lambda: curve_fit(decay, X, Y, P0, np.triu(COVARIANCE)), ValueError, "sigma: expected a symmetric covariance"),
        (lambda: curve_fit(decay, X, Y, P0, bounds=0), TypeError, "bounds: expected a pair (lower, upper), got int"),
        (
            lambda: curve_fit(decay, X, Y, P0, bounds=([0, None, 0], 1)),
            TypeError,
            "bounds: expected an array of numbers",
        ),
        (lambda: curve_fit(lambda x, a: None, X, Y), TypeError, "expected a function that returns numbers, got None"),
        (lambda: curve_fit(lambda x, a: a * np.exp(x * a), X, Y), TypeError, "a JAX function, of jax.numpy"),
        (
            lambda: curve_fit(lambda x, a: jnp.round(a * x).astype(int), X, Y),
            TypeError,
            "numbers that vary with b, got int",
        ),
    ],
)
def test_what_is_refused(build, error, message):
    with pytest.raises(error) as refused:
        build()
    assert message in str(refused.value)
