"""A Sphinx extension: mathematics as MathML, which browsers draw without JavaScript and without a network."""

import html

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


def _mathml(node: nodes.Element, display: str) -> str:
    try:
        return latex2mathml.converter.convert(node.astext(), display=display)
    except Exception as error:  # of a dozen kinds
        LOGGER.warning("latex2mathml cannot convert %r (%r)", node.astext(), error, location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
