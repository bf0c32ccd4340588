"""A Sphinx extension: mathematics as MathML, which browsers draw without JavaScript and without a network."""

import html
import re
import xml.etree.ElementTree as ElementTree

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LOGGER = logging.getLogger(__name__)


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Writes a formula within a line."""
    translator.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Writes a displayed formula, in a box that scrolls where the formula is wider than the page."""
    translator.body.append(f'<div class="equation" tabindex="0">{_mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def aligned(latex: str) -> str:
    r"""Lines (\\) and columns (&) in an environment, as Sphinx's other renderers put them."""
    lines = r" \\ ".join(part.strip() for part in latex.split("\n\n") if part.strip())
    lines = lines.replace("{aligned}", "{align*}")  # which latex2mathml knows
    inside = re.sub(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", "", lines, flags=re.DOTALL)
    return rf"\begin{{align*}} {lines} \end{{align*}}" if "&" in inside or r"\\" in inside else lines


def grouped(latex: str) -> str:
    r"""Norms (\lVert ... \rVert) in braces, so that an exponent or index belongs to the norm, not to its last bar."""
    return re.sub(
        r"(?<!\\right)\\rVert(?![A-Za-z])", r"\\rVert}", re.sub(r"(?<!\\left)\\lVert(?![A-Za-z])", r"{\\lVert", latex)
    )


def converted(latex: str, display: str) -> str:
    """LaTeX as a <math> element. Raises an error for what latex2mathml does not know, or what is not well formed."""
    text = latex2mathml.converter.convert(aligned(grouped(latex)), display=display)
    text = text.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')  # else bars grow with the line
    if "\\" in "".join(ElementTree.fromstring(text).itertext()):
        raise ValueError("a command that latex2mathml does not know")
    return text


def _mathml(node: nodes.Element, display: str) -> str:
    try:
        return converted(node.astext(), display)
    except Exception as error:  # of a dozen kinds
        LOGGER.warning("no MathML of %r (%r)", node.astext(), error, location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
