"""A page of the site for each file outside of it that a page links to: sources with line numbers, notebooks as run.

In the repository such a link is relative, so that it works there too, and it has to lead to a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from nbconvert import HTMLExporter
from pygments.lexers import get_lexer_for_filename
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).parent.parent
FOLDER = "files"  # of the built site
TEMPLATE = Path(__file__).parent / "_templates" / "notebook.html.j2"


class LinkedFiles(SphinxTransform):
    """MyST makes a link to any other file a download. Here it becomes one to the page of that file."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for link in list(self.document.findall(download_reference)):
            _, path = self.env.relfn2path(link["reftarget"], self.env.docname)
            file = Path(path).resolve().relative_to(ROOT).as_posix()
            self.env.app.linked_files.add(file)
            target = relative_uri(self.env.app.builder.get_target_uri(self.env.docname), f"{FOLDER}/{file}.html")
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=target))


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """Name, content and template of a page for each linked file that is not a notebook."""
    for file in sorted(app.linked_files):
        if file.endswith(".ipynb"):
            continue
        text = (ROOT / file).read_text()
        language = get_lexer_for_filename(file).aliases[0]
        code = app.builder.highlighter.highlight_block(text, language, linenos="inline", location=file)
        yield f"{FOLDER}/{file}", {"title": file, "body": f"<h1>{file}</h1>\n{code}"}, "page.html"


def write_notebooks(app: Sphinx, failure: Exception | None) -> None:
    """The linked notebooks, with the outputs they were committed with."""
    if failure is not None:
        return
    exporter = HTMLExporter(template_file=str(TEMPLATE))
    for file in sorted(app.linked_files):
        if file.endswith(".ipynb"):
            name = f"{FOLDER}/{file}.html"
            exporter.mathjax_url = relative_uri(name, f"_static/{app.config.mathjax_path}")
            page = Path(app.outdir) / name
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(exporter.from_filename(ROOT / file)[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.linked_files = set()
    app.add_transform(LinkedFiles)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": False}
