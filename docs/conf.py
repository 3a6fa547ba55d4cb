"""The site's settings: Markdown by MyST, reference from the docstrings, links to the sources by `linked_files`.

`make docs` builds it, and counts every warning as an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "scratchnn"
html_title = "scratchnn"
html_theme = "furo"

extensions = [
    "linked_files",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas are set in the browser, without a network
]
root_doc = "index"
exclude_patterns = ["*.py", "__pycache__"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# What is torch's own stays out: names that fall through to it, and members that a layer inherits.
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have no room for them, and the docstrings say shapes and types
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are a list within their class
add_module_names = False
