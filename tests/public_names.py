"""What is public: each module's `__all__`, from `functional_nn` down; and what each name of it must have.

`python tests/public_names.py functional_nn.training` lists what the names of one module lack.
"""

import inspect
import sys
import types
import typing
from collections.abc import Iterator

import functional_nn
from functional_nn import lab

ROOTS = (functional_nn, lab)


def modules() -> list[types.ModuleType]:
    """The public modules: those that are in the `__all__` of another."""
    found, waiting = [], list(ROOTS)
    while waiting:
        module = waiting.pop()
        found.append(module)
        held = (getattr(module, name) for name in getattr(module, "__all__", ()))
        waiting += [x for x in held if isinstance(x, types.ModuleType) and x not in found and x not in waiting]
    return sorted(found, key=lambda module: module.__name__)


def names() -> dict[str, object]:
    """{"functional_nn.training.fit": its object}: functions and classes, each by its shortest public name."""
    found: dict[int, tuple[str, object]] = {}
    for module in modules():
        for name in getattr(module, "__all__", ()):
            held, path = getattr(module, name), f"{module.__name__}.{name}"
            if isinstance(held, type) or callable(held):
                known = found.get(id(held))
                if known is None or len(path) < len(known[0]):
                    found[id(held)] = path, held
    return dict(sorted(found.values(), key=lambda entry: entry[0]))


def lacks(path: str, held: object) -> Iterator[str]:
    """What a public name has not: a docstring, an example, types; of a class, also its methods' docstrings."""
    text = inspect.getdoc(held)
    own = not isinstance(held, type) or held.__doc__
    if not text or not own:
        yield f"{path}: no docstring"
    elif ">>>" not in text and not (isinstance(held, type) and issubclass(held, Exception)):
        yield f"{path}: no example"
    if not isinstance(held, type):
        yield from _untyped(path, held)
        return
    for name, member in vars(held).items():
        if name.startswith("_") or name in getattr(held, "_fields", ()):
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function):
            if not function.__doc__:
                yield f"{path}.{name}: no docstring"
            yield from _untyped(f"{path}.{name}", function)
    for name in getattr(held, "_fields", ()):
        if name not in typing.get_type_hints(held):
            yield f"{path}.{name}: no type"


def _untyped(path: str, function) -> Iterator[str]:
    try:
        signature = inspect.signature(function)
    except ValueError:
        return
    for parameter in signature.parameters.values():
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls"):
            yield f"{path}: no type of {parameter.name}"
    if signature.return_annotation is signature.empty:
        yield f"{path}: no type of what it returns"


def without_list() -> Iterator[str]:
    """Public modules that do not say what is public in them."""
    return (f"{module.__name__}: no __all__" for module in modules() if not hasattr(module, "__all__"))


if __name__ == "__main__":
    prefix = sys.argv[1] if len(sys.argv) > 1 else "functional_nn"
    lines = [*without_list(), *(line for path, held in names().items() for line in lacks(path, held))]
    print("\n".join(line for line in lines if line.startswith(prefix)))
