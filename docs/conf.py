"""Sphinx: see build.py, which lays out the pages that this reads."""

import importlib
from typing import Any

import xaibench

project = "xaibench"
release = version = xaibench.__version__
copyright = "the xaibench authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings"]
myst_enable_extensions = ["fieldlist", "deflist", "colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page woven from sections may begin at any level
html_theme = "furo"
html_title = "xaibench"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
highlight_language = "bash"
default_role = "code"
nitpicky = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

OTHERS = ("torch", "nn", "pd", "pandas", "np", "PIL", "Image", "collections", "pathlib", "typing", "abc", "numpy")


def missing_reference(app: Any, env: Any, node: Any, shown: Any) -> Any:
    """A type in a signature: a promised name by its other path is linked; what is not on this site is plain text.

    Anything else stays missing, which is an error.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    name = target.rpartition(".")[2]
    if name in xaibench.__all__ and target != f"xaibench.{name}":
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"xaibench.{name}", node, shown)
    known = "." not in target or target.partition(".")[0] in OTHERS or _importable(target)
    return shown if known else None


def _importable(path: str) -> bool:
    module, _, name = path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def setup(app: Any) -> None:
    app.connect("missing-reference", missing_reference)
