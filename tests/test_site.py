"""The site: its pages' Python runs, links lead somewhere, every public name is in the reference, and it builds."""

import html.parser
import io
import os
import re
import shutil
import subprocess
import sys
import types
import urllib.parse
import xml.etree.ElementTree as ElementTree
from functools import reduce
from pathlib import Path

import docutils.core
import docutils.utils
import pytest
from docutils import nodes
from docutils.parsers.rst import Directive, directives, roles
from pages import generate, mathml
from public_names import names
from sphinx.ext.napoleon import Config, GoogleDocstring
from test_readme import blocks

import functional_nn as fnn
from functional_nn import optimizers, training
from functional_nn.lab import datasets, events, matlab, measures, plots, runs
from functional_nn.training import checkpoints, logs

ROOT = generate.ROOT
PAGES = {str(path.relative_to(generate.PAGES)): path.read_text() for path in generate.PAGES.rglob("*.md")}


# Examples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text and page != "tasks.md"])
def test_a_pages_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks("python", PAGES[page]):
        exec(compile(block, page, "exec"), namespace)
    plots.plt.close("all")
    assert PRINTED.get(page, "") in capsys.readouterr().out


# what shows that a page's examples do what its words say
PRINTED = {
    "how_to/compare.md": "agree None",
    "how_to/checkpoints.md": "20\n",
    "how_to/your_own.md": "sign descent: True",
    "how_to/learning_rules.md": "another rule",
    "how_to/logging.md": "the lowest training loss",
}
TASK = {task.partition("\n")[0]: task for task in PAGES["tasks.md"].split("\n## ")[1:]}
SAID = {
    "Train on your own CSV": "held out: loss",
    "Check the gradient of an activation of your own": "agree",
    "Get the norm of every example's gradient": "[",
    "Fit a curve by Levenberg-Marquardt": "converged",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the table that the tasks make for themselves."""
    folder = tmp_path_factory.mktemp("tasks")
    in_a_shell(blocks("bash", PAGES["tasks.md"])[0], folder)
    assert len((folder / "flowers.csv").read_text().splitlines()) == 151
    return folder


def in_a_shell(commands: str, folder: Path) -> str:
    """The output of commands in a shell where the environment is active; every command must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which("bash"), "-euc", commands],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SAID)
def test_a_task_in_python_is_complete(name, folder, monkeypatch, capsys):
    (block,) = blocks("python", TASK[name])
    monkeypatch.chdir(folder)
    exec(compile(block, "tasks.md", "exec"), {})
    assert SAID[name] in capsys.readouterr().out


@pytest.mark.slow
def test_a_csv_is_trained_on_from_the_shell(folder):
    (commands,) = blocks("bash", TASK["Train on your own CSV"])
    assert "held out" in in_a_shell(commands, folder)
    assert (folder / "runs" / "flowers" / "report.html").exists()
    assert len((folder / "predictions.csv").read_text().splitlines()) == 151


@pytest.mark.slow
def test_rates_are_swept_from_the_shell(folder):
    (commands,) = blocks("bash", TASK["Sweep learning rates"])
    assert "learning_rate" in in_a_shell(commands, folder)
    assert len((folder / "runs" / "flowers-sweep" / "results.csv").read_text().splitlines()) == 1 + 7 * 4


@pytest.mark.slow
def test_a_convolutional_network_is_trained_from_the_shell(folder):
    (commands,) = blocks("bash", TASK["Train a convolutional network on pictures"])
    assert "held out" in in_a_shell(commands, folder)
    assert "conv1" in (folder / "runs" / "digits" / "report.html").read_text()


def test_six_tasks_of_at_most_fifteen_lines():
    assert set(TASK) == {*SAID, "Sweep learning rates", "Train a convolutional network on pictures"}
    for name, task in TASK.items():
        for block in blocks("python", task) + blocks("bash", task):
            assert len([line for line in block.splitlines() if line.strip()]) <= 15, name


# Names and links ------------------------------------------------------------------------------------------------------

KNOWN = {
    "fnn": fnn,
    "optimizers": optimizers,
    "training": training,
    "checkpoints": checkpoints,
    "logs": logs,
    "datasets": datasets,
    "events": events,
    "matlab": matlab,
    "measures": measures,
    "plots": plots,
    "runs": runs,
}


@pytest.mark.parametrize("page", PAGES)
def test_names_that_a_page_mentions_exist(page):
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        for root, path in re.findall(rf"(?<![\w.\"/])({'|'.join(KNOWN)})\.(\w+(?:\.\w+)*)", code):
            assert reduce(lambda held, name: getattr(held, name, None), path.split("."), KNOWN[root]), code


@pytest.fixture(scope="module")
def sources():
    return generate.pages()


def test_links_of_the_sources_lead_to_pages_and_files(sources):
    for page, text in sources.items():
        text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        for _, target, _ in generate.LINK.findall(text) if page.endswith(".md") else ():
            path = os.path.normpath(f"{generate.HERE}/{os.path.dirname(page)}/{target.partition('#')[0]}")
            is_page = os.path.relpath(path, generate.HERE) in sources
            assert "://" in target or target.startswith("#") or is_page or (ROOT / path).exists(), (page, target)


def test_every_public_name_is_in_the_reference_once(sources):
    reference = "\n".join(text for page, text in sources.items() if page.startswith("api/"))
    described = re.findall(r"^\.\. auto(?:function|class):: (\S+)", reference, re.MULTILINE)
    found = [reduce(getattr, path.split(".")[1:], fnn) for path in described]
    assert len(described) == len({id(held) for held in found})
    missing = {path for path, held in names().items() if not any(held is other for other in found)}
    assert not missing


def test_every_public_module_has_a_page(sources):
    for path, module in generate.public_paths().items():
        assert f"api/{path}.rst" in sources and isinstance(module, types.ModuleType)


def test_the_tutorial_shows_every_section_of_its_script(sources):
    titles = re.findall(r"^# (\d\. .*?) -+$", (ROOT / "scripts" / "tutorial.py").read_text(), re.MULTILINE)
    assert len(titles) == 7 and all(f"## {title}\n" in sources["tutorial.md"] for title in titles)


# Docstrings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [r"\lVert x \rVert", r"\left\lVert x \right\rVert"])
def test_an_exponent_belongs_to_the_whole_norm(norm):
    text = mathml.converted(rf"\frac{{1}}{{2}} {norm}^2 + {norm}_F^2", "block")
    tags = {"msup": 1, "msubsup": 1}
    root = ElementTree.fromstring(text)
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name in tags:
            tags[name] -= 1
            assert "".join(element[0].itertext()) == "\u2016x\u2016"
    assert not any(tags.values())


def test_the_bars_of_a_norm_do_not_grow_with_the_line():
    text = mathml.converted(r"\lVert x \rVert + \frac{1}{2}", "block")
    bars = [element for element in ElementTree.fromstring(text).iter() if element.text == "\u2016"]
    assert len(bars) == 2 and all(bar.get("stretchy") == "false" for bar in bars)


@pytest.fixture
def complaints():
    """A function of a docstring: what docutils finds wrong with it, its Google sections expanded, and its LaTeX."""
    unconverted = []

    def convert(latex):
        try:
            mathml.converted(latex, "block")
        except Exception as error:  # of a dozen kinds
            unconverted.append(f"{latex}: {error!r}")

    def role(name, raw, text, line, inliner, options=None, content=()):
        if name == "math":
            convert(docutils.utils.unescape(text, restore_backslashes=True))
        return [nodes.literal(raw, text)], []

    class Any(Directive):
        has_content, optional_arguments, final_argument_whitespace = True, 1, True

        def run(self):
            if self.name == "math":
                convert("\n".join([*self.arguments, *self.content]))
                return []
            node = nodes.container()
            self.state.nested_parse(self.content, self.content_offset, node)
            return [node]

    kept = dict(directives._directives), dict(roles._roles)
    for name in ("math", "func", "class", "meth", "mod", "attr", "ref", "doc", "py:func", "py:class"):
        roles.register_local_role(name, role)
    for name in ("math", "rubric", "attribute", "seealso"):
        directives.register_directive(name, Any)

    def found(text: str) -> str:
        text = str(GoogleDocstring(text, Config(napoleon_use_param=False, napoleon_use_rtype=False)))
        said = io.StringIO()
        settings = {"warning_stream": said, "report_level": 2, "halt_level": 6}
        docutils.core.publish_doctree(text, settings_overrides=settings)
        return said.getvalue() + "\n".join(unconverted)

    yield found
    directives._directives, roles._roles = kept


def test_docstrings_are_valid_for_the_site(complaints):
    held = {module.__name__: module for module in [*generate.public_paths().values(), *generate.derivations()]}
    wrong = {
        path: said for path, x in {**names(), **held}.items() if (said := complaints(generate.inspect.getdoc(x) or ""))
    }
    assert not wrong


# The site itself ------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href", ""))
        elif given.get("src"):
            self.loads.append(given["src"])


@pytest.mark.slow
def test_the_site_builds_whole_and_loads_nothing_from_a_network():
    done = subprocess.run([ROOT / "scripts" / "site"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "runs" / "site"
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 60
    for path, page in pages.items():
        for target in page.links + page.loads:
            link = urllib.parse.urlsplit(target)
            if link.scheme in ("http", "https", "mailto"):
                assert target in page.links, f"{path} loads {target}"
                continue
            assert not link.netloc, f"{path} loads {target}"
            there = (path.parent / urllib.parse.unquote(link.path)).resolve() if link.path else path
            assert there.exists(), f"{path}: {target}"
            if link.fragment and there in pages:
                assert urllib.parse.unquote(link.fragment) in pages[there].anchors, f"{path}: {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import\s+['\"]?http", style.read_text()), style
