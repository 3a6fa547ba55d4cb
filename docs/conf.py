"""The site's settings: Markdown by MyST, reference from the docstrings, links to the sources by `linked_files`.

`make docs` builds it, and counts every warning as an error.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "scratchnn"
html_title = "scratchnn"
html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

extensions = [
    "linked_files",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinxarg.ext",
    "sphinx-mathjax-offline",  # formulas are set in the browser, without a network
]
root_doc = "index"
exclude_patterns = ["*.py", "__pycache__"]

highlight_language = "none"  # of what names no language: commands and what they print
rst_prolog = ".. highlight:: python"  # docstrings have examples in no other

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# What is torch's own stays out: names that fall through to it, and members that a layer inherits.
autodoc_default_options = {"members": True, "exclude-members": "cls_to_become"}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "fully-qualified"  # a layer's base has the same name as the layer
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have no room for them, and the docstrings say shapes and types
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are a list within their class
add_module_names = False


def keep_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in a property's first line for its type; here it is text."""
    if what == "property":
        lines[:0] = ["..", ""]  # an empty comment as the first line


def skip_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Those of a named tuple are in its docstring; as members they would be "alias for field number 0"."""
    return True if str(inspect.getdoc(obj)).startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before Napoleon
    app.connect("autodoc-skip-member", skip_fields)
