"""The calculator and the selector as pages: their forms, a first answer, and the Python that runs in the browser."""

import json
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import yaml
from jinja2 import Environment

from labkit.advice.costs.form import CHARTS
from labkit.errors import LabkitError, require
from labkit.files import FAST_LOADER, root
from tools.site import answers, forms
from tools.site.downloads import put_pyodide

# Pure Python; pydantic's compiled core comes as a wheel for Pyodide.
PACKAGES = (
    "pydantic",
    "annotated-types",
    "typing-extensions",
    "typing-inspection",
    "genai-prices",
    "jinja2",
    "markupsafe",
    "pyyaml",
)
MODULES = ("__init__", "checked_yaml", "display", "errors", "files", "vega", "advice")
DATA = ("cost_form.yaml", "modelled_throughput.json", "prices", "selector")
FORMS = {"calculator": forms.calculator, "selector": forms.selector}
TITLES = {"calculator": "What does serving cost?", "selector": "Which framework for which workload?"}
COMPILE_S = 300
# genai-prices imports its HTTP client to update prices, which no page does.
NO_CLIENT = '"""Replaces the HTTP client that genai-prices imports: a page sends no requests."""\n'


def put_pages(site: Path, cache: Path, templates: Environment) -> None:
    """Write both pages and the files that they load into `site`."""
    from vl_convert import javascript_bundle

    wheel = put_pyodide(site / "pyodide", cache)
    with tempfile.TemporaryDirectory() as temporary:
        sources = Path(temporary) / "sources.zip"
        pack(sources)
        prepare_python(site / "pyodide", site / "python.zip", sources, wheel)
    bundle = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    (site / "vega.js").write_text(bundle, encoding="utf-8")
    for page, form in FORMS.items():
        fields = form()
        first = answers.shown(page, forms.given(fields))
        # "<" could end the script element that contains the JSON.
        data = json.dumps({"page": page, "first": first}).replace("<", "\\u003c")
        views = list(CHARTS) if page == "calculator" else []
        html = templates.get_template("form.html.j2").render(
            base="", title=TITLES[page], page=page, fields=fields, first=first, data=data, views=views
        )
        (site / f"{page}.html").write_text(html, encoding="utf-8")


def prepare_python(pyodide: Path, compiled: Path, *archives: Path) -> None:
    """Compile the archives and Pyodide's library, and save Pyodide's memory. LabkitError if that fails."""
    command = ["node", str(Path(__file__).parent / "prepare.mjs"), *map(str, (pyodide, compiled, *archives))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
    except FileNotFoundError:
        remedy = "apt-get install nodejs npm"
        raise LabkitError("Node.js is missing; it prepares the pages' Python", remedy=remedy) from None
    fix = "use Node.js 20 or newer"
    require(done.returncode == 0, f"the pages' Python was not prepared:\n{done.stderr[-1500:]}", fix=fix)


def pack(archive: Path) -> None:
    """Pack the needed part of labkit, its data as JSON, and the packages that it needs."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in sorted(_contents()):
            # Without the time of the build, so that equal contents give equal files.
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def _contents() -> Iterator[tuple[str, bytes]]:
    yield "httpx2.py", NO_CLIENT.encode()
    yield "answers.py", Path(answers.__file__).read_bytes()
    for package in PACKAGES:
        for packaged in distribution(package).files or ():
            if packaged.suffix == ".py" or packaged.name == "METADATA":
                yield str(packaged), packaged.read_binary()
    labkit, data = root() / "labkit", root() / "data"
    for name in MODULES:
        files = (labkit / name).rglob("*.py") if (labkit / name).is_dir() else [labkit / f"{name}.py"]
        yield from ((str(file.relative_to(root())), file.read_bytes()) for file in files)
    for name in DATA:
        for file in (data / name).rglob("*.*") if (data / name).is_dir() else [data / name]:
            yield str(file.relative_to(root())), _as_json(file) if file.suffix == ".yaml" else file.read_bytes()


def _as_json(file: Path) -> bytes:
    """Return a YAML file as JSON, with dates as text, which the models that read it accept too."""
    return json.dumps(yaml.load(file.read_bytes(), Loader=FAST_LOADER), default=str).encode()
