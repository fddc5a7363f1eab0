"""The site's parts that need no browser: what is downloaded, the forms, the archive for the browser, links, runbook."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
import pytest
from typer.testing import CliRunner

from labkit.advice import costs, selector
from labkit.advice.costs.form import CHARTS
from labkit.advice.costs.settings import SETTINGS
from labkit.advice.costs.words import to_json
from labkit.cli.main import app
from labkit.errors import LabkitError
from labkit.files import root
from tools.site import answers, api, downloads, forms, labs, pages
from tools.site.__main__ import page_templates
from tools.site.guides import put_guides
from tools.site.links import Links, base_of, url_of

COST = {"requests_per_s": 7, "instance": "p5.48xlarge", "hourly_load": "office", "prices_on": "2026-11-24"}
SELECT = {"kind": "rag", "size": "80b", "card": "80gb", "hardware": "several"}


def printed(command: str, given: dict[str, Any]) -> Any:
    """What `labkit COMMAND --json` prints for these settings."""
    settings = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    done = CliRunner().invoke(app, [command, "--json", *settings])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def plain(page: str, given: dict[str, Any]) -> Any:
    """The object that a page gets, as JSON brings it."""
    return json.loads(answers.reply(json.dumps({"kind": "plain", "page": page, "given": given})))


def test_the_locks_agree_on_pydantic_core() -> None:
    """The wheel for the browser has the version that the installed pydantic, and each lock, asks for."""
    pinned = downloads.pins()["pydantic-core"].version
    assert pinned == version("pydantic-core")
    for lock in ("pages.lock", "cpu.lock", "gpu.lock"):
        text = (root() / "requirements" / lock).read_text(encoding="utf-8")
        assert re.findall(r"^pydantic-core==(\S+)", text, re.MULTILINE) == [pinned], lock


def test_a_download_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is fetched once; another content than the pinned one is refused, with both sums."""
    write = "import pathlib, sys; pathlib.Path(sys.argv[1], 'a.whl').write_text('content')"
    monkeypatch.setattr(
        downloads.Pin, "command", lambda _, folder: [sys.executable, "-c", write, str(folder)], raising=True
    )
    right = hashlib.sha256(b"content").hexdigest()
    pin = downloads.Pin(name="a", registry="pypi", version="1", sha256=right)
    file = downloads.cached(pin, tmp_path)
    assert file.read_text() == "content"
    monkeypatch.setattr(downloads.Pin, "command", lambda *_: ["false"])
    assert downloads.cached(pin, tmp_path) == file
    with pytest.raises(LabkitError, match=right):
        downloads.cached(pin.model_copy(update={"sha256": "0" * 64}), tmp_path)
    with pytest.raises(LabkitError, match="b 1 cannot be downloaded"):
        downloads.cached(pin.model_copy(update={"name": "b"}), tmp_path)
    monkeypatch.setattr(downloads.Pin, "command", lambda *_: ["/none/npm"])
    with pytest.raises(LabkitError, match="npm is missing"):
        downloads.cached(pin.model_copy(update={"name": "c"}), tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["a-1"]


def test_the_forms_ask_for_settings_and_questions() -> None:
    """Every field is a setting or a question, with its range or options; the first question is the default one, at the
    prices of the reader's own day."""
    cost, choice = forms.calculator(), forms.selector()
    fields = {field.name: field for group in cost.values() for field in group}
    assert set(fields) <= set(SETTINGS)
    assert (fields["buffer"].least, fields["buffer"].most, fields["buffer"].value) == (0, 100, "0.2")
    assert "share of the peak" in fields["buffer"].tip
    assert set(fields["instance"].options) == set(costs.instances())
    assert {field.name for group in choice.values() for field in group} == {*selector.catalogue().questions, "model"}
    assert "prices_on" not in forms.given(cost)
    assert answers.plain("calculator", forms.given(cost)) == to_json(costs.calculate(costs.default()))
    assert answers.plain("selector", forms.given(choice)) == answers.plain("selector", {})


def test_the_answers_are_the_command_lines() -> None:
    """The object that a page gets is what `--json` prints; a refusal has its remedy."""
    assert plain("calculator", COST) == printed("cost", COST)
    assert plain("selector", SELECT) == printed("select", SELECT)
    request = {"kind": "shown", "page": "calculator", "given": {"instance": "p5.48xlarg"}}
    assert "p5.48xlarge" in json.loads(answers.reply(json.dumps(request)))["error"]


def test_each_view_and_part_is_shown() -> None:
    """The calculator's three charts and sums, the selector's parts, with links to the site's labs."""
    for view in CHARTS:
        shown = answers.shown("calculator", COST, view)
        assert shown["chart"]["description"]
        assert shown["parts"]["The sums"].count("<li>") > 5
    found = answers.shown("selector", SELECT)
    assert selector.select(selector.complete(SELECT)).winner.title in found["answer"]
    assert "href='labs/0" in found["parts"]["Why"]
    assert ".ipynb" not in json.dumps(found)


def test_the_archive_answers_with_nothing_else(tmp_path: Path) -> None:
    """Unpacked, its files and pydantic's core are enough for both pages, with the data as JSON."""
    pages.pack(tmp_path / "sources.zip")
    with zipfile.ZipFile(tmp_path / "sources.zip") as packed:
        packed.extractall(tmp_path / "site")
    core = find_spec("pydantic_core")
    assert core is not None
    assert core.origin is not None
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "pydantic_core").symlink_to(Path(core.origin).parent)
    code = (
        "import json, sys; import answers; answers.start();"
        "print(json.dumps([answers.plain(*asked) for asked in json.load(sys.stdin)]))"
    )
    asked: list[tuple[str, dict[str, Any]]] = [("calculator", COST), ("selector", SELECT)]
    environment = {
        "PYTHONPATH": f"{tmp_path / 'site'}:{tmp_path / 'core'}",
        "LABKIT_ROOT": str(tmp_path / "site"),
        "LABKIT_RUNS": str(tmp_path / "none"),
    }
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], input=json.dumps(asked), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [plain(page, given) for page, given in asked]


def test_links_lead_to_pages() -> None:
    """Notebooks, guides, images, files and folders each have a page; what is not there is removed and named."""
    expected = {
        "README.md": "README.html",
        "docs/article.md": "docs/article.html",
        "docs/report.png": "docs/report.png",
        "notebooks/01_first_deployment.ipynb": "labs/01_first_deployment.html",
        "notebooks/widgets/selector.ipynb": "selector.html",
        "data/claims.yaml": "files/data/claims.yaml.html",
        "data/profiles": "files/data/profiles/index.html",
    }
    assert {path: url_of(PurePosixPath(path)) for path in expected} == expected
    assert (base_of("a.html"), base_of("files/data/a.html")) == ("", "../../")
    links = Links()
    html = "<a href='../data/claims.yaml#x'>a</a><a href='https://a.org/'>b</a><a href='#c'>c</a><a href='d'>d</a>"
    rewritten = links.rewrite(html, PurePosixPath("docs/article.md"))
    assert "href='../files/data/claims.yaml.html#x'" in rewritten
    assert "href='https://a.org/'" in rewritten
    assert "<a href='#c'>c</a><a >d</a>" in rewritten
    assert links.broken == ["docs/article.md: d"]
    assert list(links.linked) == [PurePosixPath("data/claims.yaml")]


def test_slides_keep_notes_and_the_key_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of three dashes ends a slide, a comment is a note, and the quiz's key has neither page nor link."""
    (tmp_path / "docs" / "workshop").mkdir(parents=True)
    (tmp_path / "docs/workshop/slides.md").write_text(
        "# One\n\n---\n\n## Two\n\n[key](quiz-key.md)\n\n<!-- say it -->\n"
    )
    (tmp_path / "docs/workshop/quiz-key.md").write_text("# Key\n")
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    links = Links()
    assert put_guides(tmp_path / "site", page_templates(), links) == [("docs/workshop/slides.html", "Slides: One")]
    html = (tmp_path / "site/docs/workshop/slides.html").read_text()
    assert html.count("<section") == 2
    assert '<aside class="note">say it</aside>' in html
    assert "quiz-key" not in html
    assert (links.broken, list(links.linked)) == ([], [])


def test_the_runbook_is_the_table_below_its_heading() -> None:
    """Up to the next heading or the cell's end; empty without one."""
    table = "| symptom | metric |\n|---|---|\n| slow | `ttft` |"
    cell = nbformat.v4.new_markdown_cell
    with_one = nbformat.v4.new_notebook(cells=[cell("## Verdict\n\n### Runbook\n\n" + table + "\n\n### More\n\ntext")])
    assert labs.runbook(with_one) == table
    assert labs.runbook(nbformat.v4.new_notebook(cells=[cell("# Runbooks\n\n" + table)])) == ""


def test_the_api_shows_what_is_public() -> None:
    """Signatures without `self`; names with an underscore are left out; every module of labkit is read."""
    method = "    def f(self, x: int = 1) -> str:\n        '''Say `x`.'''\n    def _g(self): ...\n"
    source = f"class A(B):\n{method}    @property\n    def p(self) -> int:\n        '''P.'''"
    (shown,) = (api.entry(node) for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    assert shown.signature == "class A(B)"
    assert [method.signature for method in shown.methods] == ["f(x: int=1) -> str", "p: int"]
    assert "<code>x</code>" in shown.methods[0].docstring
    names = {module.name for module in api.modules()}
    assert {"labkit.errors", "labkit.advice.costs.settings"} <= names
    assert not [name for name in names if "._" in name]
