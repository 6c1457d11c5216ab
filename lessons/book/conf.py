"""Sphinx's settings for the book; ``python -m lessons.book`` makes the pages and calls Sphinx."""

import re

import tinyadv

project = "tinyadv"
author = "the authors of tinyadv"
release = tinyadv.__version__
language = "en"

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks
    "sphinx.ext.autodoc",  # the reference, from docstrings
    "sphinx.ext.napoleon",  # in NumPy's style
    "sphinx.ext.viewcode",  # with links to the source
    "sphinx-mathjax-offline",
]
root_doc = "index"
exclude_patterns = ["files"]  # downloads
suppress_warnings = ["ref.python"]  # a name that several modules have
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # done before, and kept
nb_merge_streams = True

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings say shapes, which types cannot
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "tinyadv"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False
highlight_language = "none"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00558a", "color-brand-content": "#00558a"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}


BARS = re.compile(r"(?<!`)\|(?=\S[^|`]*\|)|(?<=\S)\|")


def as_restructured_text(app, what, name, obj, options, lines):
    """Docstrings are written to be read as they are; here they become reStructuredText.

    ``|x|`` is an absolute value, not a substitution. A block of a module's docstring that is
    indented, or set in columns, keeps its lines.
    """
    lines[:] = [s if s.startswith(" " * 8) else BARS.sub(r"\|", s) for s in lines]
    if what == "module":
        blocks = "\n".join(lines).split("\n\n")
        for i, block in enumerate(blocks):
            rows = block.split("\n")
            if len(rows) > 1 and set(rows[1]) == {"-"}:  # a section, such as the parameters
                break
            columns = len(rows) > 1 and all(re.search(r"\S {2,}\S|^ {4}", row) for row in rows)
            if (columns or rows[0].startswith("    ")) and not rows[0].lstrip().startswith(">>>"):
                blocks[i] = "::\n\n" + "\n".join("    " + row for row in rows)
        lines[:] = "\n\n".join(blocks).split("\n")


def accessible(app, page, template, context, doctree):
    """Levels for the headings of the navigation, and scrolling by keyboard."""
    for part, old, new in (
        ("furo_navigation_tree", 'role="heading"', 'role="heading" aria-level="2"'),
        ("body", "<pre>", '<pre tabindex="0">'),
        ("body", '<div class="table-wrapper', '<div tabindex="0" class="table-wrapper'),
    ):
        context[part] = context.get(part, "").replace(old, new)


def setup(app):
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("html-page-context", accessible, priority=900)
