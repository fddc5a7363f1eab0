"""JupyterLab on a copy of the notebooks, and a real browser that may speak to it and to nothing else."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT / "notebooks", Path(__file__).parent / "notebooks")
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# No news and no update check, which would go out; every cell in the page, also those out of sight.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
START_S, STARTS = 120, 3
EXPECT_S = 30  # for what a loaded machine takes seconds to do
# The lowest contrast of a text in a form with what is behind it (WCAG 2).
CONTRAST = """() => {
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = one => {
        for (; one; one = one.parentElement) {
            const colour = parse(getComputedStyle(one).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    let worst = 21;
    for (const one of document.querySelectorAll('.widget-html-content div, .widget-html-content td, .widget-label')) {
        if (!one.textContent.trim() || !one.getClientRects().length) continue;
        const [r, g, b, a = 1] = parse(getComputedStyle(one).color), ground = behind(one);
        const ink = [r, g, b].map((v, n) => a * v + (1 - a) * ground[n]);
        const [high, low] = [light(ink), light(ground)].sort((x, y) => y - x);
        worst = Math.min(worst, (high + 0.05) / (low + 0.05));
    }
    return worst;
}"""
LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: where it listens, its token, and the folder with the copies of the notebooks."""

    url: str
    token: str
    root: Path


@dataclass
class Watch:
    """What a page did that it should not have done."""

    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def chromium() -> str:
    """The browser's path: LAB_CHROMIUM, or the first of the usual names. Fails the test where there is none."""
    found = os.environ.get("LAB_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found is None or not Path(found).exists():
        pytest.fail(
            f"no Chromium ({found or 'none on the PATH'}): apt-get install chromium, or set LAB_CHROMIUM to its path",
            pytrace=False,
        )
    return str(found)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab with a configuration of its own, on a copy of the course's and these tests' notebooks."""
    root = tmp_path_factory.mktemp("lab")
    for source in SOURCES:
        for notebook in sorted(source.glob("*.ipynb")):
            shutil.copy(notebook, root)
    process, running = _start(root)
    yield running
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def _start(root: Path) -> tuple["subprocess.Popen[bytes]", Lab]:
    """Starts the server; another one may take the free port first, so a start that dies is tried again."""
    environment = _environment(root)
    for _ in range(STARTS):
        running = Lab(f"http://127.0.0.1:{_free_port()}", secrets.token_hex(16), root)
        with (root / "lab.log").open("wb") as log:
            process = subprocess.Popen(
                _command(running), stdout=log, stderr=log, env=environment, start_new_session=True, cwd=root
            )
        if _answers(process, running):
            return process, running
        process.kill()
    pytest.fail(f"JupyterLab did not start:\n{(root / 'lab.log').read_text()[-3000:]}", pytrace=False)


def _command(running: Lab) -> list[str]:
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"),
        f"--port={running.url.rsplit(':', 1)[1]}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={running.token}",
        f"--ServerApp.root_dir={running.root}",
        "--allow-root",
        "--expose-app-in-browser",
    ]


def _environment(root: Path) -> dict[str, str]:
    """The server's environment: configuration, data and settings in `root`, the kernel of this Python."""
    for name, values in SETTINGS.items():
        extension, plugin = name.split("/")
        folder = root / ".settings" / "@jupyterlab" / extension
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{plugin}.jupyterlab-settings").write_text(json.dumps(values))
    places = {
        "JUPYTER_CONFIG_DIR": ".config",
        "JUPYTER_DATA_DIR": ".data",
        "JUPYTER_RUNTIME_DIR": ".runtime",
        "JUPYTERLAB_WORKSPACES_DIR": ".workspaces",
        "JUPYTERLAB_SETTINGS_DIR": ".settings",
        "IPYTHONDIR": ".ipython",
    }
    return {
        **os.environ,
        **{name: str(root / place) for name, place in places.items()},
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers(process: "subprocess.Popen[bytes]", running: Lab) -> bool:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{running.url}/api/status?token={running.token}", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
        else:
            return True
    return False


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One headless Chromium for all tests; playwright downloads nothing."""
    from playwright.sync_api import expect, sync_playwright

    path = chromium()
    expect.set_options(timeout=EXPECT_S * 1000)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def watch() -> Watch:
    """What the page asked of the outside, and its script errors. `open_notebook` asserts that both stay empty."""
    return Watch()


@pytest.fixture
def page(browser: Any, watch: Watch, tmp_path: Path) -> Iterator[Any]:
    """A fresh page. Requests to anything but this machine are recorded and refused. Leaves a screenshot in tmp_path."""
    context = browser.new_context(viewport={"width": 1300, "height": 1500})
    context.set_default_timeout(60_000)

    def guard(route: Any) -> None:
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            watch.outside.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    opened = context.new_page()
    opened.on("pageerror", lambda error: watch.errors.append(str(error)))
    yield opened
    opened.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    context.close()


class Notebook:
    """A notebook open in JupyterLab, driven by the application's own commands: menus race the kernel."""

    READY = """async () => {
        const widget = window.jupyterapp?.shell?.currentWidget;
        if (!widget?.context || !widget.sessionContext) return false;
        await widget.context.ready;
        await widget.sessionContext.ready;
        return widget.sessionContext.session?.kernel?.status === 'idle';
    }"""
    CODE = """window.jupyterapp.shell.currentWidget.content.widgets
        .filter(cell => cell.model.type === 'code' && cell.model.sharedModel.source.trim())"""

    def __init__(self, page: Any, lab: Lab, name: str) -> None:
        self.page = page
        page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
        page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
        page.wait_for_function(self.READY, timeout=120_000)

    def run_all(self, *, timeout_s: float = 180) -> None:
        """Runs every cell and fails on any error output."""
        self._command("notebook:run-all-cells")
        self._wait_until_run(timeout_s)

    def run_cells(self, *marks: str, timeout_s: float = 120) -> None:
        """Runs those code cells again, in the given order, whose source contains a mark."""
        for mark in marks:
            self.page.evaluate(
                """mark => {
                    const content = window.jupyterapp.shell.currentWidget.content;
                    const found = content.widgets.findIndex(
                        cell => cell.model.type === 'code' && cell.model.sharedModel.source.includes(mark));
                    if (found < 0) throw new Error('no cell with ' + mark);
                    content.activeCellIndex = found;
                }""",
                mark,
            )
            self._command("notebook:run-cell")
        self._wait_until_run(timeout_s)

    def error_outputs(self) -> list[str]:
        """Every error output in the notebook."""
        found: list[str] = self.page.evaluate(
            f"""() => {self.CODE}.flatMap(cell => cell.model.outputs.toJSON())
                .filter(output => output.output_type === 'error').map(error => error.ename + ': ' + error.evalue)"""
        )
        return found

    def _command(self, name: str) -> None:
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def _wait_until_run(self, timeout_s: float) -> None:
        done = f"() => {self.CODE}.every(cell => cell.model.executionCount !== null)"
        self.page.wait_for_function(done, timeout=timeout_s * 1000)
        assert self.error_outputs() == []


@pytest.fixture
def open_notebook(page: Any, lab: Lab, watch: Watch) -> Iterator[Callable[[str], Notebook]]:
    """Opens a notebook by its file name. Afterwards its kernel is ended, nothing went outside, no script failed."""
    yield lambda name: Notebook(page, lab, name)
    page.evaluate("() => window.jupyterapp?.serviceManager.sessions.shutdownAll()")
    assert watch.outside == []
    assert watch.errors == []


Voila = Callable[[Path], str]


@pytest.fixture
def voila(tmp_path: Path) -> Iterator[Voila]:
    """Serves a notebook as a page of its own and gives its address."""
    processes = []

    def serve(notebook: Path) -> str:
        port, root, log = _free_port(), tmp_path / "voila", tmp_path / "voila.log"
        root.mkdir()
        shutil.copy(notebook, root)
        command = [
            *(sys.executable, "-m", "voila", notebook.name, "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"),
            *("--strip_sources=True", "--template=offline"),  # our template asks no CDN for icons
        ]
        environment = _environment(root) | {"JUPYTER_PATH": str(ROOT / "data" / "jupyter")}
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=root)
        processes.append(process)
        address = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{address}voila/static/nonesuch", timeout=5).close()
            except urllib.error.HTTPError:
                return address  # it answers
            except OSError:
                time.sleep(0.25)
        pytest.fail(f"Voila did not start:\n{log.read_text()[-3000:]}", pytrace=False)

    yield serve
    for process in processes:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
