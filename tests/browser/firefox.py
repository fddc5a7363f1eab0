"""Firefox without a window, driven by its own protocol, WebDriver BiDi: playwright drives only a Firefox of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("firefox-esr", "firefox")
LISTENS = re.compile(r"WebDriver BiDi listening on (ws://\S+)")
START_S, REPLY_S, END_S = 120, 300, 20


class Firefox:
    """One tab. `requests`: the addresses that the page and its workers asked for."""

    def __init__(self, socket: ClientConnection) -> None:
        self.requests: list[str] = []
        self._socket, self._number = socket, 0
        self.command("session.new", capabilities={})
        self.command("session.subscribe", events=["network.beforeRequestSent"])
        self._tab = self.command("browsingContext.getTree")["contexts"][0]["context"]

    def command(self, method: str, **params: Any) -> Any:
        """Sends a command and returns its result; requests reported in between are kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=REPLY_S))
            if message.get("method") == "network.beforeRequestSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message.get("id") == self._number:
                assert message["type"] == "success", message
                return message["result"]

    def open(self, url: str) -> None:
        """Opens a page and waits until its files are loaded."""
        self.command("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of a script's promise, as JSON gives it."""
        code = f"Promise.resolve({expression}).then(JSON.stringify)"
        done = self.command("script.evaluate", expression=code, target={"context": self._tab}, awaitPromise=True)
        assert done["type"] == "success", done
        return json.loads(done["result"]["value"])


def installed() -> str | None:
    """Firefox's path: LAB_FIREFOX, or the first of the usual names."""
    return os.environ.get("LAB_FIREFOX") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def firefox(path: str) -> Iterator[Firefox]:
    """Firefox on a profile of its own. Both its processes and its profile are gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        log, profile = Path(home) / "log", Path(home) / "profile"
        profile.mkdir()
        ends_with_us = ["setpriv", "--pdeathsig", "TERM"]  # even when pytest is killed
        options = ["--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*ends_with_us, path, *options],
                stdout=output,
                stderr=output,
                env=os.environ | {"HOME": home},
                start_new_session=True,
            )
        try:
            with connect(f"{_address(process, log)}/session", max_size=None) as socket:
                yield Firefox(socket)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if listens := LISTENS.search(log.read_text(errors="replace")):
            return listens[1]
        time.sleep(0.1)
    raise AssertionError(f"Firefox does not listen after {START_S} s:\n{log.read_text(errors='replace')[-3000:]}")
