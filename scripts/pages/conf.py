"""How Sphinx builds the site (scripts/site). The sources are what `generate.py` lays together.

Sphinx, because JAX's own documentation and most of its libraries' are made with it: docstrings in Google style become
a reference (autodoc, napoleon), an unresolved link is an error (-W), and the search runs in the browser, from an index
that lies next to the pages. MyST, because the pages are Markdown, as README is. Furo, because it is readable on a
telephone and in the dark. Intersphinx is not used: a build needs no network.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import functional_nn

project = "functional_nn"
author = "the functional_nn authors"
copyright = author
version = release = functional_nn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "mathml",
]
exclude_patterns = []
default_role = "code"  # docstrings write `x` for code
add_module_names = False
toc_object_entries = False
nitpicky = True
nitpick_ignore_regex = [(r"py:class", r".*")]  # of annotations: JAX's, NumPy's and the standard library's, too

napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
maximum_signature_line_length = 90
python_display_short_literal_types = True

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]  # the changelog has headings of the third level first

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "functional_nn"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"footer_icons": [], "top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """Types in signatures lead to where a user finds them: functional_nn.Network, not networks.network.Network."""
    public = generate.public_paths()
    held = [getattr(module, name) for module in public.values() for name in getattr(module, "__all__", ())]
    homes = generate.homes()
    paths = {f"{x.__module__}.{x.__qualname__}": homes[id(x)] for x in held if isinstance(x, type)}

    def resolve(app: Sphinx, env, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
        home = paths.get(node.get("reftarget", ""))
        if home is None or node["reftarget"] == home:
            return None
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "class", home, node, content)

    def parsable(app: Sphinx, what: str, name: str, held: object, options, signature: str | None, returns: str | None):
        """Defaults whose text is no Python are written so that Sphinx can read the signature."""
        named = re.sub(r"<(?:function|class) '?([\w.]+)[^>]*>", r"\1", signature or "")
        return signature and named.replace("<factory>", "..."), returns

    def back(link: re.Match) -> str:
        found = max((path for path in public if link[3].startswith(f"{path}.")), key=len)
        return f"{link[1]}{link[2]}.html#{link[2]}{link[3].removeprefix(found)}"

    def corrected(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
        """From the source back to the reference: viewcode takes all names of a file for those of one public module."""
        if page.startswith("_modules/") and "body" in context:
            context["body"] = re.sub(r'(href="[./]*api/)([\w.]+)\.html#([\w.]+)', back, context["body"])

    app.connect("html-page-context", corrected)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", parsable)
