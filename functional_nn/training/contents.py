"""Digests of settings, which tell apart two settings with the same name, and say if something could not be read.

A row of a registry is digested as the function that made it and its arguments. Functions of installed packages are
digested by their names, the user's functions by their code and the globals that they read. The user's functions, and
those defined inside others, also by their defaults and the variables that they close over. Arrays are digested by
their bytes.
"""

import dataclasses
import functools
import hashlib
import inspect
import os
import site
import sysconfig
import types
from collections.abc import Mapping, Set
from typing import Any

import jax
import numpy as np

from functional_nn.rows import made_by

_INSTALLED = tuple(
    os.path.join(path, "")
    for path in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)
# What has moved or was renamed is digested under its first name, so that older checkpoints still match.
_FORMER_MODULES = {("functional_nn.training.gradient", "automatic"): "functional_nn.training.program"}
_FORMER_FILES = ("functional_nn.gradients.quantities", "functional_nn.gradients.rules")  # folders that were one file
_FORMER_NAMES = {"StateFunction": "OfState"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range)


def digest(value: Any) -> tuple[str, bool]:
    """Returns a digest of everything that `value` is made of, and whether all of it could be read."""
    reading = _Reading()
    try:
        reading.add(value)
    except Exception:  # foreign objects may raise anything when they are read
        reading.whole = False
    return reading.hash.hexdigest()[:16], reading.whole


class _Reading:
    def __init__(self):
        self.hash, self.whole, self.seen = hashlib.sha256(), True, {}

    def say(self, *words: Any) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            self.hash.update(f"{len(data)}:".encode() + data)

    def add(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.say(type(value).__name__, repr(value))
            return
        if id(value) in self.seen:  # a function may close over itself
            self.say("again", self.seen[id(value)][0])
            return
        self.seen[id(value)] = len(self.seen), value  # kept, so that no other object gets the same id
        made = made_by(value)
        if made is not None:
            factory, args, keywords = made
            self.say("made by")
            self.add(factory)
            self.add(_arguments(factory, args, keywords))
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            self.array(value)
        elif isinstance(value, type | types.ModuleType | types.BuiltinFunctionType | np.ufunc | np.dtype):
            self.say("named", getattr(value, "__module__", ""), getattr(value, "__qualname__", repr(value)))
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, types.MethodType):
            self.each("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self.each("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.CodeType):
            self.code(value)
        elif isinstance(value, Mapping):
            self.say("mapping", len(value))
            for key in sorted(value, key=repr):
                self.each("item", (key, value[key]))
        elif isinstance(value, Set):
            self.each("set", sorted(value, key=repr))
        elif isinstance(value, tuple | list):
            self.each(type(value).__qualname__, value)
        elif callable(getattr(value, "__wrapped__", None)):  # as of jax.jit
            self.each(type(value).__qualname__, (value.__wrapped__,))
        elif dataclasses.is_dataclass(value):
            name = type(value).__qualname__
            self.each(_FORMER_NAMES.get(name, name), [getattr(value, f.name) for f in dataclasses.fields(value)])
        elif not _is_installed(type(value)):
            self.say(type(value).__module__, type(value).__qualname__)
            self.add(vars(value))
            self.add({name: x for name, x in vars(type(value)).items() if isinstance(x, types.FunctionType)})
        elif callable(value) and hasattr(value, "__name__"):
            self.say("named", value.__module__, value.__name__)
        else:
            self.say("unread", type(value).__module__, type(value).__qualname__)
            self.whole = False

    def each(self, kind: str, values: Any) -> None:
        self.say(kind, len(values))
        for value in values:
            self.add(value)

    def array(self, value: Any) -> None:
        if hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        if isinstance(value, jax.core.Tracer):
            self.say("traced")
            self.whole = False
            return
        array = np.ascontiguousarray(value)
        self.say("array", array.dtype, array.shape, array.tobytes())

    def function(self, function: types.FunctionType) -> None:
        function = getattr(function, "remembers", function)  # what `rows.cached` adds is always the same
        module, name = function.__module__, function.__qualname__
        self.say("function", _FORMER_MODULES.get((module, name)) or _former_file(module), name)
        if (
            _is_installed(function) and "<" not in function.__qualname__
        ):  # neither a lambda nor defined inside another function
            return
        cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
        self.each("defaults", (function.__defaults__, function.__kwdefaults__, cells))
        if not _is_installed(function):
            self.code(function.__code__)
            names = sorted({name for code in _codes(function.__code__) for name in code.co_names})
            for name in names:
                if name in function.__globals__:
                    self.each("global", (name, function.__globals__[name]))

    def code(self, code: types.CodeType) -> None:
        self.say("code", code.co_code, code.co_names, code.co_varnames)
        self.each("constants", code.co_consts)


def _arguments(factory: Any, args: tuple, keywords: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a factory by name, without those that equal their defaults."""
    signature = inspect.signature(factory)
    bound = signature.bind(*args, **keywords).arguments
    default = {name: parameter.default for name, parameter in signature.parameters.items()}

    def plain(name, x):
        return isinstance(x, _PLAIN) and type(x) is type(default[name]) and x == default[name]

    return {name: x for name, x in bound.items() if not plain(name, x)}


def _former_file(module: str) -> str:
    """Returns the module that a file was part of before it became one of several in a folder."""
    return next((folder for folder in _FORMER_FILES if module.startswith(f"{folder}.")), module)


def _codes(code: types.CodeType):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (empty while the function is still being defined)
    except ValueError:
        return True
    return False


def _is_installed(value: types.FunctionType | type) -> bool:
    """Returns True for what an installed package, Python or this package defines: its name identifies it."""
    module = value.__module__ or ""
    if module.partition(".")[0] == "functional_nn":
        return True
    try:
        return (inspect.getsourcefile(value) or "").startswith(_INSTALLED)
    except TypeError:  # built in, or of an interactive session
        return module != "__main__"
