"""How the documentation is built: `sphinx-build -W -n docs build/docs`.

Nothing is fetched, neither while it is built nor while it is read: formulas become MathML, which
browsers draw themselves, and fonts are those of the reader's machine.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

project = "vimpac_kernels"
author = "the vimpac_kernels authors"
release = metadata.version("vimpac-kernels")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Code hosts show the same Markdown files, so they use little beyond tables and code.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings are in Google style; a single backtick is code, as in Markdown.
default_role = "code"
napoleon_use_rtype = False
autodoc_typehints = "none"  # the docstring says shapes, dtypes and legal values
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 60
nitpick_ignore_regex = [
    ("py:class", r"Module|torch\..*"),  # torch's own pages are elsewhere
    # Docstrings name the errors without their module.
    ("py:exc", r"(Usage|Vimpac)Error|UnreadableVideo|DamagedVideo"),
]
smartquotes_action = "D"  # dashes only: "T|H" is what one types

html_theme = "furo"
html_title = "vimpac_kernels"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_math_renderer = "mathml"
highlight_language = "none"  # a block that names no language is what a command prints
pygments_style = "tango"
pygments_dark_style = "monokai"


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    formula = tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
