"""Markdown as pages: the guides, and slides, whose source separates them by lines with only `---`."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jinja2 import Environment
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

from labkit.files import root
from tools.site.links import Links, base_of, url_of

SOURCES = ("*.md", "docs/*.md", "docs/workshop/*.md", "cluster/*.md")
SLIDE = re.compile(r"^---$", re.MULTILINE)
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").use(anchors_plugin, max_level=6, slug_func=slug)


def sources() -> Iterator[PurePosixPath]:
    """The repository's Markdown files that become pages."""
    for pattern in SOURCES:
        yield from (PurePosixPath(path.relative_to(root())) for path in sorted(root().glob(pattern)))


def title_of(text: str, path: PurePosixPath) -> str:
    """The first heading, else the file's name."""
    heading = HEADING.search(text)
    return heading[1].replace("`", "") if heading else path.stem.replace("-", " ")


def put_guides(site: Path, templates: Environment, links: Links) -> list[tuple[str, str]]:
    """Writes a page for each guide. Returns the pages and their titles."""
    pages = []
    for path in sources():
        text, url = (root() / path).read_text(encoding="utf-8"), url_of(path)
        parts = [part for part in SLIDE.split(text) if part.strip()] if "slides" in path.stem else [text]
        kind = "slides.html.j2" if len(parts) > 1 else "page.html.j2"
        bodies = [links.rewrite(MARKDOWN.render(part), path) for part in parts]
        title = title_of(text, path)
        html = templates.get_template(kind).render(base=base_of(url), title=title, body=bodies[0], slides=bodies)
        (site / url).parent.mkdir(parents=True, exist_ok=True)
        (site / url).write_text(html, encoding="utf-8")
        pages.append((url, title))
    return pages
