"""Sphinx: Markdown pages with MyST, the reference from docstrings; nothing needs the network."""

from __future__ import annotations

import transferseg

project = "transferseg"
author = "The transferseg developers"
copyright = author
release = transferseg.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"transferseg {release}"

# Notebooks come with their outputs: building the pages must not train anything.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# In docstrings a single backtick is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "extra_repr"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Attributes stand in their class's own section: autodoc must not list them a second time.
napoleon_use_ivar = True
# ... where each is also a reference, ambiguous as soon as two classes have a field of one name.
suppress_warnings = ["ref.python"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style"), ("Yields dicts of", "params_style")]
