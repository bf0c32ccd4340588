"""Lays the sources of the site together: the pages of this folder, and those that are made from the package.

    python scripts/pages/generate.py runs/site-sources

Made from the package: the reference, one page per public module; the mathematics, one page per module that derives
something, from its docstring; and the equations of all activations, losses, optimizers and learning rules. The files in
`COPIED` are pages of the site, too. The folder must lie as deep below the repository's root as this one does, so that
the links of a page to files of the repository hold there.
"""

import argparse
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

PAGES = Path(__file__).parent
ROOT = PAGES.parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import public_names  # noqa: E402

import functional_nn as fnn  # noqa: E402
from functional_nn.lab import equations  # noqa: E402

# files of the repository, or sections of them, that are pages, too
COPIED = {
    "comparison.md": "README.md#How it compares",
    "gallery.md": "scripts/README.md",
    "numbers.md": "results/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
FLOORS = ("networks", "gradients", "optimizers", "training")
SHOWN = 120  # letters of a value, at most
TITLE = 60  # letters of a title, at most
HERE = "scripts/pages"  # as deep as the folder of the sources
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
# what a page of equations is called, its first words, the table and the functions whose first lines describe its rows
KINDS = {
    "activations": ("activations", equations.OF_LAYERS, equations.ACTIVATIONS, fnn.activations),
    "losses": ("losses", equations.OF_LAYERS, equations.LOSSES, fnn.losses),
    "optimizers": ("optimizers", equations.OF_UPDATES, equations.OPTIMIZERS, fnn.optimizers),
    "rules": ("learning rules", equations.OF_LAYERS, equations.RULES, fnn.rules),
}


def pages() -> dict[str, str]:
    """Each page's path and text."""
    found = {str(path.relative_to(PAGES)): path.read_text(encoding="utf-8") for path in PAGES.rglob("*.md")}
    found |= {page: rehomed(source, page) for page, source in COPIED.items()}
    found |= {"tutorial.md": tutorial(), **dict(reference())}
    found |= mathematics(found["mathematics/index.md"])
    return found


def rehomed(source: str, page: str) -> str:
    """A file of the repository as a page: its links lead where they led, and to pages where these are made of it."""
    path, _, section = source.partition("#")
    text = (ROOT / path).read_text(encoding="utf-8")
    if section:
        text = re.search(rf"^#(# {section}\n.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
    made_of = {source: name for name, source in COPIED.items()} | {"README.md": "index.md"}

    def moved(link: re.Match) -> str:
        target, mark, anchor = link[2].partition("#")
        if "://" in target or not target:
            return link[0]
        target = os.path.normpath(os.path.join(os.path.dirname(path), target))
        target = f"{target}/README.md" if f"{target}/README.md" in made_of else target  # a folder is its README
        target = f"{HERE}/{made_of[target]}" if target in made_of else target
        return f"{link[1]}{os.path.relpath(target, os.path.dirname(f'{HERE}/{page}'))}{mark}{anchor}{link[3]}"

    return LINK.sub(moved, text)


def tutorial() -> str:
    """The script of the tutorial as a page: sections' comments are its text, with the code between them."""
    source = re.sub(r" +# (noqa|isort).*", "", (ROOT / "scripts/tutorial.py").read_text(encoding="utf-8"))
    head, *sections = re.split(r"^# (\d\. .*?) -+\n#?\n?", source, flags=re.MULTILINE)
    _, about, setup = head.split('"""', 2)
    about = about.replace("\n    python", "\n```bash\npython").replace("tutorial\n\nEach", "tutorial\n```\n\nEach")
    lines = ["# Tutorial", "", about.strip(), "", "![The tutorial's numbers](../../results/tutorial.png)", ""]
    lines += _text_and_code(setup)
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        lines += [f"## {title}", "", *_text_and_code(body)]
    lines += ["## What it prints", "", "```text", (ROOT / "results/tutorial.txt").read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def _text_and_code(source: str) -> list[str]:
    """Comments that begin a line and stand before a blank one are paragraphs; everything else is code."""
    lines = []
    for piece in re.split(r"((?:^#.*\n)+)(?=\n)", source, flags=re.MULTILINE):
        if piece.startswith("#"):
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in piece.splitlines())
            lines += [_as_words(text), ""]
        elif piece.strip():
            lines += ["```python", piece.strip("\n"), "```", ""]
    return lines


def _as_words(text: str) -> str:
    """A comment as Markdown: what would be markup outside of code is escaped."""
    code = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([\\*_<|\[\]])", r"\\\1", piece) for piece in code)


# The reference --------------------------------------------------------------------------------------------------------


def public_paths() -> dict[str, types.ModuleType]:
    """The public modules by what a user types: functional_nn.activations, not functional_nn.networks.activations."""
    found, waiting = {}, [(root.__name__, root) for root in public_names.ROOTS]
    while waiting:
        path, module = waiting.pop(0)
        if module not in found.values():
            found[path] = module
            held = ((name, getattr(module, name)) for name in getattr(module, "__all__", ()))
            waiting += [(f"{path}.{name}", x) for name, x in held if isinstance(x, types.ModuleType)]
    return dict(sorted(found.items(), key=lambda entry: (entry[0].startswith("functional_nn.lab"), entry[0])))


def homes() -> dict[int, str]:
    """Where each function or class is described, by its id: under its shortest path."""
    found: dict[int, str] = {}
    for path, module in sorted(public_paths().items(), key=lambda entry: entry[0].count(".")):
        for name in getattr(module, "__all__", ()):
            found.setdefault(id(getattr(module, name)), f"{path}.{name}")
    return found


def reference() -> Iterator[tuple[str, str]]:
    modules, described = public_paths(), homes()
    rows = "".join(f"   * - :doc:`{path}`\n     - {_summary(module)}\n" for path, module in modules.items())
    toctree = "".join(f"   {_short(path)} <{path}>\n" for path in modules)
    yield (
        "api/index.rst",
        f"""{_title("Reference")}
Every public name, by module, as it is reached from ``import functional_nn as fnn``. ``help(fnn.fit)`` in a Python
prints the same text. The search finds any name.

{_table(rows)}
.. toctree::
   :hidden:

{toctree}""",
    )
    for path, module in modules.items():
        yield f"api/{path}.rst", _module_page(path, module, modules, described)


def _module_page(path: str, module: types.ModuleType, modules: dict, described: dict[int, str]) -> str:
    rows, bodies = [], []
    paths = {module.__name__: path for path, module in modules.items()}
    for name in getattr(module, "__all__", ()):
        held, full = getattr(module, name), f"{path}.{name}"
        if isinstance(held, types.ModuleType):
            rows.append(f"   * - :doc:`{name} <{paths[held.__name__]}>`\n     - {_summary(held)}\n")
            continue
        role = _role(held)
        home = described[id(held)] if role != "data" else full
        rows.append(f"   * - :py:{role}:`{name} <{home}>`\n     - {_summary(held)}\n")
        if home == full:
            bodies.append(_described(full, held, role))
    derived = f"\nDerivation: :doc:`../mathematics/{module.__name__}`\n" if _derives(module) else ""
    intro = _summary(module) + "\n" if derived else f".. automodule:: {module.__name__}\n   :no-index:\n"
    return f"{_title(path)}\n{intro}{derived}\n{_table(''.join(rows)) if rows else ''}\n" + "\n".join(bodies)


def _role(held: object) -> str:
    """What kind of name it is, in Sphinx's words."""
    return "class" if isinstance(held, type) else "func" if callable(held) else "data"


def _described(path: str, held: object, role: str) -> str:
    if role == "func":
        return f".. autofunction:: {path}\n"
    if role == "data":
        text = repr(held)
        value = f"   :value: {text}\n" if isinstance(held, int | str | tuple) and len(text) < SHOWN else ""
        return f".. py:data:: {path}\n   :type: {type(held).__name__}\n{value}"
    fields = [*getattr(held, "_fields", ()), *getattr(held, "__dataclass_fields__", ())]
    without = f"   :exclude-members: {', '.join(fields)}\n" if fields else ""
    return f".. autoclass:: {path}\n   :members:\n{without}"


def _summary(held: object) -> str:
    """The first sentence of a docstring; of a value, its type."""
    if _role(held) == "data" and not isinstance(held, types.ModuleType):
        return f"`{type(held).__name__}`"
    paragraph = (inspect.getdoc(held) or "").strip().partition("\n\n")[0]
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])|:\s*$", " ".join(paragraph.split()))[0]
    return sentence.rstrip(":") or "\\ "


def _table(rows: str) -> str:
    return f".. list-table::\n   :widths: auto\n\n{rows}"


def _short(path: str) -> str:
    return path.removeprefix("functional_nn.")


def _title(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n"


# The mathematics ------------------------------------------------------------------------------------------------------


def derivations() -> list[types.ModuleType]:
    """The modules whose docstrings display equations, floor by floor; of the laboratory, the public ones."""
    floors = [importlib.import_module(f"functional_nn.{name}") for name in FLOORS]
    names = [found.name for floor in floors for found in pkgutil.walk_packages(floor.__path__, f"{floor.__name__}.")]
    lab = [module for path, module in public_paths().items() if path.startswith("functional_nn.lab")]
    return [module for module in [*map(importlib.import_module, names), *lab] if _derives(module)]


def _derives(module: types.ModuleType) -> bool:
    return ".. math::" in (module.__doc__ or "")


def mathematics(index: str) -> dict[str, str]:
    """The index, with a table of the modules that derive something, their pages, and the equations by kind."""
    modules = derivations()
    rows = "".join(
        f"| [{_short(module.__name__)}]({module.__name__}.rst) | {_in_table(_summary(module))} |\n"
        for module in modules
    )
    entries = "\n".join([*(f"equations-of-{kind}" for kind in KINDS), *(module.__name__ for module in modules)])
    table = f"| module | derives |\n|---|---|\n{rows}"
    found = {"mathematics/index.md": f"{index}\n{table}\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"}
    for module in modules:
        name = module.__name__
        title = f"{_title(_subject(module))}\nThe module ``{name}``.\n"
        found[f"mathematics/{name}.rst"] = f"{title}\n.. automodule:: {name}\n   :no-index:\n"
    for kind, (title, letters, rows_of, described_in) in KINDS.items():
        sections = "\n".join(_equations(name, parts, described_in) for name, parts in rows_of.items())
        found[f"mathematics/equations-of-{kind}.rst"] = f"{_title(f'Equations: {title}')}\n{letters}\n\n{sections}"
    return found


def _subject(module: types.ModuleType) -> str:
    """What a module derives, in a few words: how its docstring begins, or its name where that is long."""
    begins = re.split(r"[:,.;](?:\s|$)| :math:", _summary(module))[0]
    return begins if len(begins) < TITLE else module.__name__.rpartition(".")[2].replace("_", " ").capitalize()


def _in_table(text: str) -> str:
    """A first sentence, which is reST, in a table of Markdown."""
    return re.sub(r":math:`([^`]*)`", r"$\1$", text).replace("|", r"\|")


def _equations(name: str, parts: tuple, described_in: types.ModuleType) -> str:
    """A section: what it is, and its equations; where an option chooses among forms, each of them."""
    lines = [name, "-" * len(name), "", _summary(getattr(described_in, name, None)), ""]
    for part in parts:
        if isinstance(part, equations.By):
            for value, forms in part.forms.items():
                lines += [f"``{part.option}={value!r}``:", "", *map(_displayed, forms)]
        else:
            lines.append(_displayed(part))
    return "\n".join(lines)


def _displayed(latex: str) -> str:
    return f".. math:: {latex}\n"


def write(folder: Path) -> None:
    """Writes the pages into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for page, text in pages().items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
