"""The documentation: ``sphinx-build -W --keep-going -b html docs build/docs``."""

from lit_gamma import __version__

project = "lit-gamma"
author = "The lit-gamma authors"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 2  # Pages link to each other's sections.
html_theme = "furo"
html_extra_path = ["_extra"]  # The reports of the gallery.
html_title = f"lit-gamma {release}"

default_role = "py:obj"
autodoc_inherit_docstrings = False  # Else Lightning's come with every hook.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
