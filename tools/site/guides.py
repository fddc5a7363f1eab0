"""Markdown as pages: the guides, and slides, whose source separates them by lines with only `---`."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jinja2 import Environment
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

from labkit.files import root
from tools.site.links import INSTRUCTORS, Links, base_of, url_of

SOURCES = ("*.md", "docs/*.md", "docs/workshop/*.md")
SLIDE = re.compile(r"^---$", re.MULTILINE)
NOTE = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").use(anchors_plugin, max_level=6, slug_func=slug)


def sources() -> Iterator[PurePosixPath]:
    """Yield the repository's Markdown files that become pages."""
    for pattern in SOURCES:
        paths = (PurePosixPath(path.relative_to(root())) for path in sorted(root().glob(pattern)))
        yield from (path for path in paths if path not in INSTRUCTORS)


def title_of(text: str, path: PurePosixPath) -> str:
    """Return the first heading, or else the file's name."""
    heading = HEADING.search(text)
    return heading[1].replace("`", "") if heading else path.stem.replace("-", " ")


def slide(text: str) -> str:
    """Return one slide as HTML; its comments become the speaker's notes, which the page shows on request."""
    return NOTE.sub(r'<aside class="note">\1</aside>', MARKDOWN.render(text))


def put_guides(site: Path, templates: Environment, links: Links) -> list[tuple[str, str]]:
    """Write a page for each guide. Return the pages and their titles."""
    pages = []
    for path in sources():
        text, url = (root() / path).read_text(encoding="utf-8"), url_of(path)
        title, values = title_of(text, path), {"base": base_of(url)}
        if "slides" in path.stem:
            title = f"Slides: {title}"
            slides = [links.rewrite(slide(part), path) for part in SLIDE.split(text) if part.strip()]
            html = templates.get_template("slides.html.j2").render(**values, title=title, slides=slides)
        else:
            body = links.rewrite(MARKDOWN.render(text), path)
            html = templates.get_template("page.html.j2").render(**values, title=title, body=body)
        (site / url).parent.mkdir(parents=True, exist_ok=True)
        (site / url).write_text(html, encoding="utf-8")
        pages.append((url, title))
    return pages
