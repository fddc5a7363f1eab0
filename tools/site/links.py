"""Map the repository's files to pages of the site, and rewrite the links between them.

A linked file that has no other page gets one under files/, so every link stays on the site.
"""

import os
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from jinja2 import Environment

from labkit.files import root

LINK = re.compile(r"""\b(href|src)=(["'])(.*?)\2""")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#|$", re.IGNORECASE)
PAGES = {
    "notebooks/widgets/selector.ipynb": "selector.html",
    "notebooks/widgets/cost_calculator.ipynb": "calculator.html",
    "notebooks": "index.html",
}
IMAGES = (".png", ".svg", ".jpg")
INSTRUCTORS = (PurePosixPath("docs/workshop/quiz-key.md"),)
"""Files that learners should not find on the site: they have no page, and links to them are removed."""


def url_of(path: PurePosixPath) -> str:
    """Return the page of a file or folder of the repository, relative to the site's root."""
    if known := PAGES.get(str(path)):
        return known
    if path.suffix == ".ipynb":
        return f"labs/{path.stem}.html"
    if path.suffix == ".md":
        return str(path.with_suffix(".html"))
    if path.suffix in IMAGES:
        return str(path)
    return f"files/{path}/index.html" if (root() / path).is_dir() else f"files/{path}.html"


def base_of(url: str) -> str:
    """Return the relative path from a page to the site's root: "../" for each folder."""
    return "../" * url.count("/")


class Links:
    """Rewrite the links of pages. `linked`: the linked files; `broken`: broken links, with their source."""

    def __init__(self) -> None:
        self.linked: dict[PurePosixPath, None] = {}
        self.broken: list[str] = []

    def rewrite(self, html: str, source: PurePosixPath) -> str:
        """Return the page of `source` with its links to the repository's files leading to their pages."""

        def led(match: re.Match[str]) -> str:
            attribute, quote, link = match.groups()
            if ELSEWHERE.match(link):
                return match[0]
            file, hash_, fragment = link.partition("#")
            target = PurePosixPath(os.path.normpath(source.parent / unquote(file)))
            if str(target).startswith("..") or not (root() / target).exists():
                self.broken.append(f"{source}: {link}")
                return ""
            if target in INSTRUCTORS:
                return ""
            self.linked[target] = None
            return f"{attribute}={quote}{base_of(url_of(source))}{url_of(target)}{hash_}{fragment}{quote}"

        return LINK.sub(led, html)

    def put_files(self, site: Path, templates: Environment) -> None:
        """Write a page for each linked file that has none yet, and for the files that those link to."""
        done = set[PurePosixPath]()
        while left := [path for path in self.linked if path not in done]:
            for path in left:
                done.add(path)
                page, source = site / url_of(path), root() / path
                if page.exists():
                    continue
                page.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix in IMAGES:
                    page.write_bytes(source.read_bytes())
                    continue
                body = self.rewrite(_folder(path) if source.is_dir() else _text(source), path)
                base = base_of(url_of(path))
                html = templates.get_template("page.html.j2").render(base=base, title=path, body=body)
                page.write_text(html, encoding="utf-8")


def _text(file: Path) -> str:
    return f"<h1>{file.name}</h1>\n<pre><code>{escape(file.read_text(encoding='utf-8', errors='replace'))}</code></pre>"


def _folder(path: PurePosixPath) -> str:
    entries = "".join(f"<li><a href='{path.name}/{name}'>{name}</a></li>" for name in _names(root() / path))
    return f"<h1>{path}</h1><ul>{entries}</ul>"


def _names(folder: Path) -> Iterator[str]:
    return (entry.name for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "__")))
