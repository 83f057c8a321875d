"""Sphinx's configuration; `make docs` builds the pages, warnings are errors."""

from importlib.metadata import version as version_of

project = "wsssfast"
author = "the wsssfast team"
version = release = version_of("wsssfast")
extensions = ["myst_nb", "sphinx_click", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"wsssfast {release}"
html_static_path: list[str] = []
html_show_sourcelink = False
myst_heading_anchors = 3
nb_execution_mode = "force"  # the notebook is kept without its output
nb_execution_timeout = 900
nb_execution_raise_on_error = True
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
nitpicky = False
