"""What enters a summing junction: connections, each bilinear in what it reads and in its weights.

Letters: Q examples, S neurons of a layer, R of the source it reads; x what is read, w the weights, z = x * w what
enters, s = dF/dz. That z is linear in x and linear in w is all that the recursion, the R-operator and every derived
quantity need of it (Hagan Eq. 3.42-3.48, weight and net-input functions; CSE 475 18.64, criteria A and B): s reaches x
through the adjoint of dx -> dx * w, and w through that of dw -> x * dw,

    <s, forward(dx, w)> = <back(s, w), dx>        <s, forward(x, dw)> = <outer(s, x), dw>

`dense` is the layer of the texts, z = x w^T with x (Q, R), w (S, R), z and s (Q, S). It says what is meant and leaves
the order of memory to the compiler. Its `twin` keeps x and s as (S, Q) in memory, behind the same shapes: on CPU every
product of a whole population of small networks is then one that XLA's fast kernels take as it stands, which makes a
step of the population take 0.6 of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax

from functional_nn.registry import Described, remember


def _total(s: Array) -> Array:
    # As a product with ones: on CPU, XLA's own column sum of a large batch costs up to a tenth of the whole gradient.
    # Full precision is asked for because accelerators round the factors of a product otherwise.
    return lax.dot(jnp.ones(s.shape[0], s.dtype), s, precision=lax.Precision.HIGHEST)


@dataclass(frozen=True, eq=False)
class Connection(Described):
    """forward(x, w) -> z (Q, S); back(s, w) -> dF/dx (Q, R) and outer(s, x) -> dF/dw, its adjoints in x and in w.

    unfold(s, x) -> each example's share of dF/dw as two factors, see `gradients.factors`.
    total(s) -> sum_q s_q (S,): what a bias, which reads a 1 of every example, gets of s laid out as here.
    twin: the same connection in the order of memory that suits populations on CPU; None where it has none.
    """

    name: str
    forward: Callable[[Array, Array], Array]
    back: Callable[[Array, Array], Array]
    outer: Callable[[Array, Array], Array]
    unfold: Callable[[Array, Array], tuple[Array, Array]]
    total: Callable[[Array], Array] = _total
    twin: "Connection | None" = None

    def __repr__(self) -> str:
        return f"<connection {self.name}>"


def _forward(x: Array, w: Array) -> Array:
    return lax.dot_general(x, w, (((1,), (1,)), ((), ())))  # without writing the transpose down


def _outer(s: Array, x: Array) -> Array:
    return lax.dot_general(s, x, (((0,), (0,)), ((), ())))


def _unfold(s: Array, x: Array) -> tuple[Array, Array]:
    return s, x  # the outer product of the two


# The other order of memory --------------------------------------------------------------------------------------------


def _standing(x: Array) -> Array:
    """The transpose, written down: without the barrier XLA would fold it into the product beside it."""
    return lax.optimization_barrier(x.T)


def _forward_in_columns(x: Array, w: Array) -> Array:
    return _standing_product(w, _standing(x))


def _back_in_columns(s: Array, w: Array) -> Array:
    return _standing_product(_standing(w), _standing(s))


def _standing_product(x: Array, y: Array) -> Array:
    # The transpose of a product would be taken for a product of transposes, hence this barrier.
    return lax.optimization_barrier(lax.dot(x, y)).T


def _outer_in_columns(s: Array, x: Array) -> Array:
    return lax.dot_general(_standing(s), _standing(x), (((1,), (1,)), ((), ())))


def _total_in_columns(s: Array) -> Array:
    s = _standing(s)
    while s.shape[1] % 2 == 0 and s.shape[1] > 4:  # halves, which vectorize; XLA adds a row one number at a time
        s = s[:, : s.shape[1] // 2] + s[:, s.shape[1] // 2 :]
    return jnp.sum(s, axis=1)


_in_columns = Connection(
    "dense in columns", _forward_in_columns, _back_in_columns, _outer_in_columns, _unfold, _total_in_columns
)
dense = Connection("dense", _forward, lax.dot, _outer, _unfold, twin=_in_columns)


def _named(name: str) -> Connection:
    return {row.name: row for row in (dense, _in_columns)}[name]


for _row in (dense, _in_columns):
    remember(_row, _named, (_row.name,))
