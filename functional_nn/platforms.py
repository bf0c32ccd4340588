"""What suits a platform: every choice that depends on the machine, for speed or memory, in one table.

Results are the same, to rounding, whatever the choices are. The CPU's choices are measured on two cores (x86, XLA of
jaxlib 0.10.1), each where it is used. Those for accelerators are not measured: they leave the choice to the compiler,
and where a number is needed, it is derived here from published figures. `scripts/benchmark_accelerator.py` measures
their effect.

A program is made for the platform for which it is traced: that of a mesh, where one is given, else JAX's default device
(`jax_default_device`, or the first of all). `aimed_at` chooses another, for example to export a program from a machine
without an accelerator. Only the factorizations of `linalg`, where the wrong choice may hang, are chosen when a program
is lowered.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import Mesh

MiB = 2**20


class Suited(NamedTuple):
    """The choices for a platform.

    Attributes:
        columns: dense layers of a population keep x and s as (S, Q) in memory, so that every product of all members is
            one that XLA's fast kernels take directly (`networks.connections`).
        sums_as_products: sums over examples, rows and positions are products with ones, and sums and maxima of whole
            arrays combine halves, since XLA's own reductions are slow (`reductions`).
        gram_strips: into how many strips of rows a symmetric product is cut, of which only the part above the diagonal
            is computed; fewer where they would be narrow, one where it has few terms for its size
            (`gradients.factors`).
        transposed: where a gradient's product s^T x takes at most this many multiplications, s^T is written to memory
            for it (`networks.connections`).
        one_memory: devices of one process are parts of one machine, share its memory, and read the host's arrays.
        starts: how many starts a device runs at the same time in `restarts`.
        lanes: bytes that an update of a population's block may touch; None: as many members as memory has room for.
        evaluated: bytes of net inputs and outputs that are evaluated at once.
        swept: bytes that a block of examples takes in `quantities`, for networks that read signals; 8 examples where
            these fit in `most_swept`.
        most_swept: see `swept`.
        formed: bytes of examples' derivatives that are formed at once (`gradients.factors`).
    """

    columns: bool
    sums_as_products: bool
    gram_strips: int
    transposed: int
    one_memory: bool
    starts: int
    lanes: int | None
    evaluated: int
    swept: int
    most_swept: int
    formed: int


CPU = Suited(
    columns=True,  # a step takes 0.6 of the time
    sums_as_products=True,  # XLA's own take four to six times as long
    gram_strips=4,  # 0.65 to 0.8 of the time of one product, of 256 to 1024 columns; eight gain a hundredth more
    transposed=2**18,  # 0.3 of the time at 2^11, 0.8 at 2^18, 1.2 at 2^22: XLA's fast kernels contract rows by columns
    one_memory=True,
    starts=1,  # a batch of small factorizations gains nothing over a loop, and each start ends independently
    lanes=3 * MiB,  # fits in a core's caches; twice and half as much cost a tenth
    evaluated=64 * MiB,
    swept=32 * MiB,  # newly allocated memory is slow
    most_swept=256 * MiB,
    formed=64 * MiB,
)

# Starting a kernel takes 2 to 3 us (CUDA; jax issue 2491), and it processes 1 to 3 bytes a picosecond (A100 to H200,
# TPU v4 to v5p): for 256 MiB the starts are a few percent, and memories of 16 GiB and more have room for them.
ACCELERATOR = Suited(
    columns=False,  # batched products take any order, and the compiler chooses it
    sums_as_products=False,  # a reduction is fused with the kernel that computes its terms, a product is another kernel
    gram_strips=1,  # several small kernels would leave a large device idle
    transposed=0,  # the compiler chooses
    one_memory=False,
    starts=1024,  # a step is some hundred small kernels; members that fill the device share their starts
    lanes=None,  # for the same reason as many as fill the device
    evaluated=256 * MiB,
    swept=256 * MiB,
    most_swept=256 * MiB,
    formed=256 * MiB,
)

_aim: contextvars.ContextVar[str | None] = contextvars.ContextVar("aim", default=None)


@contextlib.contextmanager
def aimed_at(where: str | Mesh | None) -> Iterator[None]:
    """A context in which programs are traced for another platform. Also a decorator of the function that is traced.

    JAX keeps what it has traced, by function: a function that was traced before, for another platform, stays as it is.

    Args:
        where: JAX's name of the platform ("cpu", "cuda", "rocm", "tpu", ...), or a mesh; None changes nothing.

    Example:
        >>> import jax, functional_nn as fnn
        >>> from functional_nn import platforms
        >>> network = fnn.multilayer((3, 2), ("softmax",))
        >>> params, x = network.init(jax.random.key(0)), jax.ShapeDtypeStruct((4, 3), "float32")
        >>> with platforms.aimed_at("tpu"):
        ...     exported = jax.export.export(jax.jit(lambda x: network.apply(params, x)), platforms=["tpu"])(x)
        >>> exported.platforms
        ('tpu',)
    """
    token = _aim.set(name(where) if where is not None else _aim.get())
    try:
        yield
    finally:
        _aim.reset(token)


def here() -> Suited:
    """Returns the choices for the platform for which programs are traced."""
    return suited(name())


def name(where: str | Mesh | None = None) -> str:
    """Returns JAX's name of a mesh's platform, or of the one for which programs are traced."""
    if isinstance(where, Mesh):
        return where.devices.flat[0].platform
    return where or _aim.get() or _default()


def suited(platform: str) -> Suited:
    """Returns the choices for a platform, by JAX's name of it."""
    return CPU if platform == "cpu" else ACCELERATOR


def _default() -> str:
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
