"""The labs as stored, and the runbook of all labs: the table below "### Runbook" in each."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from jinja2 import Environment
from nbconvert import HTMLExporter

from labkit.files import notebooks_path
from labkit.labs import LABS
from tools.site.guides import MARKDOWN
from tools.site.links import Links, base_of, url_of

TEMPLATES = Path(__file__).parent / "templates"
# Forms and sliders need a kernel: a page shows neither.
STORED = "<p><em>A stored run. To predict and move sliders, <a href='../README.html'>install the course</a>.</em></p>"
RUNBOOK = re.compile(r"^### Runbook\s*\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
# The first of these forms that an output has is shown. A widget or a live chart needs a kernel; HTML and images do not.
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]


def put_labs(site: Path, templates: Environment, links: Links) -> list[str]:
    """Write a page for each notebook, and the runbook. Return the labs that have no runbook."""
    exporter = HTMLExporter(
        template_name="lab",
        template_file="notebook.html.j2",
        extra_template_basedirs=[],
        extra_template_paths=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    exporter.config.NbConvertBase.display_data_priority = SHOWN
    (site / "labs").mkdir(parents=True)
    tables: dict[str, str] = {}
    for file in sorted(notebooks_path().glob("*.ipynb")):
        path, notebook = PurePosixPath("notebooks") / file.name, nbformat.read(file, as_version=4)
        notebook.metadata.pop("widgets", None)
        body, _ = exporter.from_notebook_node(notebook)
        number, _, words = file.stem.partition("_")
        title = f"{number} {LABS[file.stem].title if file.stem in LABS else words.replace('_', ' ')}"
        html = templates.get_template("page.html.j2").render(
            base=base_of(url_of(path)), title=title, body=STORED + links.rewrite(body, path)
        )
        (site / url_of(path)).write_text(html, encoding="utf-8")
        if table := runbook(notebook):
            tables[file.stem] = links.rewrite(MARKDOWN.render(table), path).replace('"../', '"')
    rows = [(name, LABS[name].title, table) for name, table in tables.items() if name in LABS]
    html = templates.get_template("runbook.html.j2").render(base="", title="Runbook", rows=rows)
    (site / "runbook.html").write_text(html, encoding="utf-8")
    return [name for name in LABS if name not in tables]


def runbook(notebook: Any) -> str:
    """Return the Markdown below "### Runbook"; "" if the notebook has none."""
    sources = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = (match[1].strip() for source in sources if (match := RUNBOOK.search(source)))
    return next(found, "")
