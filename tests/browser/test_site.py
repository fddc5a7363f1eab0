"""The site in a real browser that may ask only the site's own origin, its answers against the command line's.

The first run downloads what requirements/site.lock pins, through npm and pip; without them these tests fail.
"""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import platformdirs
import pytest
from typer.testing import CliRunner

from labkit.advice import costs, selector
from labkit.cli.main import app
from labkit.errors import LabkitError
from labkit.labs import LABS
from tests.browser.conftest import Watch
from tests.browser.firefox import firefox, installed
from tools.site import downloads
from tools.site.__main__ import Built, build, page_templates
from tools.site.guides import put_guides
from tools.site.links import Links

pytestmark = pytest.mark.browser

MOST_BYTES = 40_000_000
READY = "body[data-state=ready]"
DAY = {"prices_on": "2026-11-24"}
COST: list[dict[str, Any]] = [
    {},
    {"requests_per_s": 12.5, "input_tokens": 1500, "output_tokens": 300},
    {"tokens_per_day": 2e9, "input_tokens": 3000, "output_tokens": 500},
    {"model": "llama-3.1-70b", "instance": "p5.48xlarge"},
    {"instance": "coreweave-hgx-h100", "purchase": "spot", "buffer": 0.5},
    {"hourly_load": "office", "requests_per_s": 20},
    {"cached_input": 0.7, "batch": "true"},
    {"instance": "g6.xlarge", "throughput_tokens_per_s": 500, "throughput_counts": "total"},
    {"api": "openai/gpt-4o-mini,openai/gpt-5.4-nano"},
    {"api": "article/claude-3.5-sonnet"},
    {"api_input_usd_per_million": 0.11, "api_output_usd_per_million": 0.27},
    {"usd_per_hour": 1.99, "min_instances": 2, "hours_per_day": 10, "paid_hours_per_day": 12},
]
SELECT: list[dict[str, Any]] = [
    {},
    {"pattern": "pipeline", "team": "ray"},
    {"framework": "multi", "gpu": "shared"},
    {"priority": "latency", "slo": "p99"},
    {"priority": "cost", "rate": "solo"},
    {"kind": "rag", "size": "80b", "card": "80gb", "hardware": "several"},
    {"kind": "both", "models": "few"},
    {"kind": "other"},
    {"hardware": "laptop", "accelerator": "apple"},
    {"hardware": "cluster", "platform": "kubernetes", "size": "700b"},
    {"host": "must", "adapters": "many"},
    {"model": "mistralai/Mistral-7B-Instruct-v0.3", "context": "32k"},
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: a log of each request tells a test's reader nothing."""


@dataclass(frozen=True)
class Site:
    """The site's files, what its build noticed, and the address at which it is served."""

    folder: Path
    built: Built
    url: str


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, cache = tmp_path_factory.mktemp("site") / "site", platformdirs.user_cache_path("serving-lab") / "site"
    try:
        for pin in downloads.pins().values():
            downloads.cached(pin, cache)
    except LabkitError as error:  # a wrong checksum, in contrast, is a failure
        if "cannot be downloaded" in str(error) or "npm is missing" in str(error):
            pytest.skip(f"the site needs two downloads: {error}")
        raise
    built = build(folder, cache)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Site(folder, built, f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()


@pytest.fixture
def requests(page: Any, site: Site, watch: Watch) -> Iterator[list[str]]:
    """All requests of the page and its worker. Afterwards: none left the site, and no script failed."""
    seen: list[str] = []
    page.context.on("request", lambda request: seen.append(request.url))
    page.on("console", lambda said: watch.errors.append(said.text) if said.type == "error" else None)
    yield seen
    assert [url for url in seen if not url.startswith((site.url, "data:", "blob:"))] == []
    assert watch.outside == []
    assert watch.errors == []


class Page(HTMLParser):
    """What a page refers to: links, loaded files and anchors; and its pictures without a text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.silent: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and "href" in values:
            self.loaded.append(values["href"])
        if "src" in values:
            self.loaded.append(values["src"])
        if tag == "img" and not values.get("alt"):
            self.silent.append(values["src"][:80])


def test_every_link_leads_somewhere_on_the_site(site: Site) -> None:
    """Pages, anchors and files exist; nothing is loaded from another origin; each picture has a text."""
    pages = {file: Page(file) for file in sorted(site.folder.rglob("*.html"))}
    wrong = list(site.built.broken_links)
    for file, page in pages.items():
        wrong += [f"{file.name} loads {link}" for link in page.loaded if re.match(r"(https?:)?//", link)]
        wrong += [f"{file.name} has a picture without a text: {picture}" for picture in page.silent]
        for link in page.links:
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            target = (file.parent / path).resolve() if path else file
            known = target in pages and (not anchor or anchor in pages[target].anchors)
            if not (known or (target.is_file() and not anchor)):
                wrong.append(f"{file.relative_to(site.folder)}: {link}")
    assert wrong == []
    assert len(pages) > 40


def test_the_site_is_small_and_whole(site: Site, record_property: Any) -> None:
    """At most 40 MB; a page for each lab; each lab's runbook that exists is on the runbook's page."""
    sizes = {file: file.stat().st_size for file in site.folder.rglob("*") if file.is_file()}
    record_property("site_bytes", sum(sizes.values()))
    assert sum(sizes.values()) < MOST_BYTES
    assert [name for name in LABS if not (site.folder / "labs" / f"{name}.html").is_file()] == []
    runbook = (site.folder / "runbook.html").read_text(encoding="utf-8")
    shown = re.findall(r'<h2 id="(\w+)">', runbook)
    assert re.findall(r'<h2 id="\w+"><a [^>]+>(\w+) ', runbook) == [LABS[name].number for name in shown]
    assert shown == [name for name in LABS if name not in site.built.without_runbook]


@pytest.mark.usefixtures("requests")
def test_pages_open_without_errors(page: Any, site: Site) -> None:
    """Every page: a title, a heading, and text that is no wider than a desktop's or a phone's window."""
    paths = [*site.folder.glob("*.html"), *site.folder.glob("docs/**/*.html"), *site.folder.glob("labs/*.html")]
    for path in sorted(paths):
        page.goto(site.url + str(path.relative_to(site.folder)))
        assert "Serving Lab" in page.title()
        assert page.locator("main h1, main h2").count() > 0, path
        for width in (1000, 390):
            page.set_viewport_size({"width": width, "height": 800})
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{path.name} is {wide} pixels wider than a window of {width}"


def command_line(command: str, given: dict[str, Any]) -> Any:
    settings = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    done = CliRunner().invoke(app, [command, "--json", *settings])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def opened(page: Any, site: Site, name: str) -> int:
    """Opens a tool and waits for its Python. Milliseconds until it answers."""
    page.goto(f"{site.url}{name}")
    page.wait_for_selector(READY, timeout=300_000)
    return int(page.evaluate("performance.now()"))


@pytest.mark.parametrize(("name", "command", "given"), [("calculator", "cost", COST), ("selector", "select", SELECT)])
def test_answers_are_the_command_lines(
    page: Any,
    site: Site,
    requests: list[str],
    name: str,
    command: str,
    given: list[dict[str, Any]],
    record_property: Any,
) -> None:
    """For a dozen settings each: equal objects. The browser's own record shows that Python came from the site."""
    cold_ms, warm_ms = opened(page, site, f"{name}.html"), opened(page, site, f"{name}.html?again")
    record_property("cold_ms", cold_ms)
    record_property("warm_ms", warm_ms)
    print(f"{name}: answers {cold_ms} ms after a cold start and {warm_ms} ms after a warm one")
    assert f"{site.url}pyodide/pyodide.asm.wasm" in requests
    for settings in given:
        asked = settings | (DAY if name == "calculator" else {})
        answer = page.evaluate("given => window.ask('plain', given)", asked)
        assert answer == command_line(command, asked), asked


def test_firefox_answers_as_the_command_line(site: Site) -> None:
    """One setting in each tool: an equal object, and every request, the worker's too, goes to the site."""
    path = installed()
    if path is None:
        pytest.skip("no Firefox: apt-get install firefox-esr, or set LAB_FIREFOX to its path")
    with firefox(path) as browser:
        for name, command, given in (("calculator", "cost", COST[1] | DAY), ("selector", "select", SELECT[5])):
            browser.open(f"{site.url}{name}.html")
            answer = browser.evaluate(f"window.ask('plain', {json.dumps(given)})")
            assert answer == command_line(command, given)
        assert f"{site.url}pyodide/pyodide.asm.wasm" in browser.requests
        assert [url for url in browser.requests if not url.startswith((site.url, "data:", "blob:"))] == []


@pytest.mark.usefixtures("requests")
def test_a_change_in_the_calculator(page: Any, site: Site, record_property: Any) -> None:
    """The answer, the picture, the command line and the address follow; a refusal explains, and the answer stays."""
    from playwright.sync_api import expect

    opened(page, site, "calculator.html")
    page.get_by_label("Prices of").fill(DAY["prices_on"])
    page.get_by_label("Requests/s").fill("9")
    answer = page.locator("#answer")
    settings = costs.settings_from({"requests_per_s": 9, **DAY})
    expect(answer).to_contain_text(costs.show_usd(costs.calculate(settings).hosted.usd_per_day))
    expect(page.locator("#chart svg")).to_be_visible()
    expect(page.locator("#chart-title")).to_contain_text("Hosting pays")
    page.get_by_label("Picture").select_option("What matters")
    expect(page.locator("#chart-title")).to_contain_text("What changes")
    record_property("change_ms", int(page.locator("body").get_attribute("data-took")))
    page.get_by_label("Machine", exact=True).select_option("g6.xlarge")
    page.get_by_label("Modelled model").select_option("llama-3.1-70b")
    message = page.locator("#message")
    expect(message).to_have_class("wrong")
    expect(message).to_contain_text("no throughput is known for llama-3.1-70b on g6.xlarge")
    page.get_by_label("Machine", exact=True).select_option("p5.48xlarge")
    expect(message).to_have_text("")
    page.get_by_label("or tokens per day").fill("2000000000")
    expect(page.get_by_label("Requests/s")).to_have_value("")
    page.get_by_text("The same on the command line").click()
    settings = costs.settings_from(
        {
            "tokens_per_day": 2e9,
            "input_tokens": 600,
            "output_tokens": 200,
            "instance": "p5.48xlarge",
            "model": "llama-3.1-70b",
            **DAY,
        }
    )
    expect(answer).to_contain_text(costs.show_usd(costs.calculate(settings).hosted.usd_per_day))
    expect(page.locator("#command")).to_contain_text("--set 'model=llama-3.1-70b'")
    shown = answer.inner_text()
    page.reload()
    page.wait_for_selector(READY, timeout=300_000)
    expect(page.get_by_label("or tokens per day")).to_have_value("2000000000")
    assert page.get_by_label("Machine", exact=True).input_value() == "p5.48xlarge"
    assert answer.inner_text() == shown


@pytest.mark.usefixtures("requests")
def test_a_change_in_the_selector(page: Any, site: Site, record_property: Any) -> None:
    """The recommendation, its reasons, the configuration and the address follow the answers."""
    from playwright.sync_api import expect

    opened(page, site, "selector.html")
    given = {"kind": "rag", "size": "80b", "card": "80gb", "hardware": "several"}
    for name, value in given.items():
        page.locator(f"#{name}").select_option(value)
    winner = selector.select(selector.complete(given)).winner
    expect(page.locator("#answer [role=status]")).to_have_text(winner.title)
    record_property("change_ms", int(page.locator("body").get_attribute("data-took")))
    page.get_by_text("Configuration", exact=True).click()
    expect(page.get_by_text("--tensor-parallel-size 4").first).to_be_visible()
    page.get_by_label("Model", exact=True).fill("no model; rm")
    expect(page.locator("#message")).to_contain_text("To fix it: give a hub id")
    page.get_by_label("Model", exact=True).fill("mistralai/Mistral-7B-Instruct-v0.3")
    expect(page.get_by_text("mistralai/Mistral-7B-Instruct-v0.3").first).to_be_visible()
    page.get_by_text("Everything as JSON").click()
    expect(page.locator("#json-text")).to_contain_text('"recommended"')
    assert json.loads(page.locator("#json-text").inner_text())["recommended"] == winner.name
    page.get_by_role("link", name="lab 01").first.click()
    expect(page).to_have_title(re.compile("01 A first deployment"))


@pytest.mark.usefixtures("requests")
def test_fields_have_names_and_colours_have_contrast(page: Any, site: Site) -> None:
    """Each field has a label, can be reached by Tab, and text is readable on a light and on a dark page."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name in ("calculator", "selector"):
            page.goto(f"{site.url}{name}.html")
            fields = page.locator("form input, form select")
            assert fields.count() > 20
            assert page.evaluate(
                "[...document.querySelectorAll('form input, form select')].every(f => f.labels.length)"
            )
            assert page.evaluate(CONTRAST) >= 4.5, (scheme, name)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


# The lowest contrast of a text with the page behind it (WCAG 2). The chart has a white ground of its own.
CONTRAST = """() => {
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = colour => colour.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = node => {
        for (; node; node = node.parentElement) {
            const colour = parse(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    let worst = 21;
    for (const node of document.querySelectorAll('nav a, label, legend, h1, p, li, td, th, summary, select, b')) {
        if (!node.innerText?.trim() || !node.getClientRects().length || node.closest('#chart')) continue;
        const [high, low] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        worst = Math.min(worst, (high + 0.05) / (low + 0.05));
    }
    return worst;
}"""


def test_today_is_the_pages_default_day(page: Any, site: Site, requests: list[str]) -> None:
    """Prices are those of the reader's day, not of the day on which the site was built."""
    page.goto(f"{site.url}calculator.html")
    assert page.get_by_label("Prices of").input_value() == str(date.today())
    assert requests[0] == f"{site.url}calculator.html"


@pytest.mark.usefixtures("requests")
def test_slides_turn(page: Any, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and buttons turn the slides, the address keeps the number, N shows the notes; all slides are printed."""
    from playwright.sync_api import expect

    (tmp_path / "docs" / "workshop").mkdir(parents=True)
    text = "# First\n\n---\n\n# Second\n\n<!-- a note -->\n\n---\n\n# Third\n"
    (tmp_path / "docs" / "workshop" / "slides_test.md").write_text(text)
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    put_guides(site.folder, page_templates(), Links())
    page.goto(f"{site.url}docs/workshop/slides_test.html")
    expect(page.get_by_role("heading", name="First")).to_be_visible()
    expect(page.get_by_role("heading", name="Second")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="Second")).to_be_visible()
    expect(page.get_by_text("a note")).to_be_hidden()
    page.keyboard.press("N")
    expect(page.get_by_text("a note")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#count")).to_have_text("3 of 3")
    assert page.url.endswith("#slide-3")
    page.emulate_media(media="print")
    for heading in ("First", "Second", "Third"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    page.emulate_media(media="screen")
    expect(page.get_by_role("heading", name="First")).to_be_hidden()
    page.keyboard.press("p")
    expect(page.get_by_role("heading", name="First")).to_be_visible()
