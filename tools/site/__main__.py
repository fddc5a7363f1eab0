"""Build the site: `make site`, or python -m tools.site [FOLDER]. Default: build/site.

The first build downloads what requirements/site.lock pins; later ones need no network.
"""

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pygments.formatters import HtmlFormatter

from labkit.errors import LabkitError
from labkit.files import root
from labkit.labs import LABS
from tools.site.api import put_api
from tools.site.guides import put_guides
from tools.site.labs import put_labs
from tools.site.links import Links
from tools.site.pages import put_pages

HERE = Path(__file__).parent
CODE_STYLES = ("default", "github-dark")  # light and dark


@dataclass(frozen=True)
class Built:
    """The findings of a build: labs without a runbook, and broken links in the sources."""

    without_runbook: list[str]
    broken_links: list[str]


def build(site: Path, cache: Path) -> Built:
    """Build the site into `site`; its old content is replaced once everything is ready."""
    templates = page_templates()
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent) as temporary:
        new, links = Path(temporary) / "site", Links()
        put_static(new)
        guides = put_guides(new, templates, links)
        without_runbook = put_labs(new, templates, links)
        labs = [{"name": name, "number": name.split("_")[0], **dict(lab)} for name, lab in LABS.items()]
        index = templates.get_template("index.html.j2").render(base="", title="Start", labs=labs, guides=guides)
        (new / "index.html").write_text(index, encoding="utf-8")
        put_api(new, templates)
        put_pages(new, cache, templates)
        links.put_files(new, templates)
        if site.exists():
            shutil.rmtree(site)
        new.rename(site)
    return Built(without_runbook, links.broken)


def page_templates() -> Environment:
    loader = FileSystemLoader(HERE / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def put_static(site: Path) -> None:
    """Copy scripts and style sheet into the new folder `site`, with the colours of code, light and dark."""
    shutil.copytree(HERE / "static", site)
    light, dark = (HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in CODE_STYLES)
    colours = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    with (site / "site.css").open("a", encoding="utf-8") as sheet:
        sheet.write(f"\n/* code */\n{colours}")


def main(arguments: list[str]) -> int:
    """Build the site; print its size, problems and how to open it."""
    site, started = Path(arguments[0]) if arguments else root() / "build" / "site", time.monotonic()
    built = build(site, platformdirs.user_cache_path("serving-lab") / "site")
    files = [file for file in site.rglob("*") if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{site}: {len(files)} files, {megabytes:.1f} MB, built in {time.monotonic() - started:.0f} s")
    if built.without_runbook:
        print(f"Labs without a runbook, which are not on the runbook page: {', '.join(built.without_runbook)}")
    for link in built.broken_links:
        print(f"A broken link was removed: {link}")
    print(f"Open it: python -m http.server --bind 127.0.0.1 -d {site} 8000, then http://127.0.0.1:8000/")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
