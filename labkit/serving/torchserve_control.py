"""TorchServe's management API: what its models and workers do, and how a model is ended without losing a request."""

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import ServerError, UsageError

POLL_S = 0.1
KEY_FILE = "key_file.json"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The three keys of a TorchServe: for its management API, for predictions, and for making new keys of the two."""

    management: str
    inference: str
    api: str


def read_keys(folder: Path) -> Keys:
    """The keys that TorchServe wrote into the folder in which it runs. ServerError while there are none."""
    try:
        found = json.loads((folder / KEY_FILE).read_text(encoding="utf-8"))
        names = {"management": "management", "inference": "inference", "api": "API"}
        return Keys(**{ours: str(found[theirs]["key"]) for ours, theirs in names.items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"TorchServe wrote no keys into {folder / KEY_FILE}: {error!r}",
            remedy="start it again; with disable_token_authorization=true there are none",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A status, and the body: decoded where it is JSON, text otherwise."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Control:
    """The management API at `url`, asked with the key that `key` gives ("" where authorisation is off)."""

    def __init__(self, url: str, key: Callable[[], str], *, check: Callable[[], None] = lambda: None) -> None:
        self.url = url
        self._key = key
        self._check = check  # raises when the server has died: no use to wait any longer

    def call(self, method: str, path: str, *, timeout_s: float = 120.0, **query: Any) -> Reply:
        """One call, such as `call("POST", "/models", url="sleep-2.0.mar", initial_workers=1, synchronous="true")`.

        Returns every status that TorchServe gives. ServerError when it gives none.
        """
        url = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {key}"} if (key := self._key()) else {}
        request = urllib.request.Request(url, headers=headers, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback
        try:
            with direct.open(request, timeout=timeout_s) as response:
                return Reply(status=response.status, body=_decoded(response.read()))
        except urllib.error.HTTPError as error:
            return Reply(status=error.code, body=_decoded(error.read()))
        except (OSError, http.client.HTTPException) as error:
            self._check()
            raise ServerError(
                f"{method} {url} got no answer: {error!r}", remedy="look into the server's log"
            ) from error

    def describe(self, model: str, version: str | None = None) -> dict[str, Any]:
        """What TorchServe says of a model (`version` None: the default one): batchSize, workers, jobQueueStatus, ...

        UsageError, with TorchServe's words, where it has no such model.
        """
        reply = self.call("GET", _path(model, version))
        if not reply.ok:
            raise UsageError(f"{_path(model, version)} cannot be described: {_message(reply)}", remedy="GET /models")
        described: dict[str, Any] = reply.body[0]
        return described

    def worker_pids(self, model: str, version: str | None = None) -> tuple[int, ...]:
        """The processes of the workers that are ready."""
        workers = self.describe(model, version)["workers"]
        return tuple(int(worker["pid"]) for worker in workers if worker["status"] == "READY")

    def wait_ready(
        self,
        model: str,
        version: str | None = None,
        *,
        workers: int | None = None,
        timeout_s: float = 180.0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Waits until `workers` of a model (None: as many as it is to have at least) are ready to answer.

        /ping is no readiness: it says Healthy while a worker loads, and while one crashes again and again.
        """
        began = time.monotonic()
        while True:
            self._check()
            found = self.describe(model, version)
            ready = sum(worker["status"] == "READY" for worker in found["workers"])
            if ready >= (found["minWorkers"] if workers is None else workers):
                return
            waited_s = time.monotonic() - began
            if waited_s > timeout_s:
                raise ServerError(
                    f"{ready} workers of {model} were ready after {waited_s:.0f} s",
                    remedy="the server's log says what the others met",
                )
            progress(f"{model}: {ready} of {found['minWorkers']} workers ready, {waited_s:.0f} s")
            time.sleep(POLL_S)

    def drain(self, model: str, version: str, *, quiet_s: float = 1.0, timeout_s: float = 300.0) -> None:
        """Waits until nothing has been queued for the version for `quiet_s`. Send it no more requests before that.

        TorchServe tells what waits, not what is being computed: choose `quiet_s` longer than a batch takes. Its
        default version gets the requests that name none: make another one the default first.
        """
        began, quiet_since = time.monotonic(), None
        while True:  # two looks bound the quiet: one alone says nothing about a pause between them
            waiting, now = self.describe(model, version)["jobQueueStatus"]["pendingRequests"], time.monotonic()
            quiet_since = None if waiting else quiet_since or now
            if quiet_since is not None and now - quiet_since >= quiet_s:
                return
            if now - began > timeout_s:
                raise ServerError(
                    f"{waiting} requests still waited for {model} {version} after {timeout_s:.0f} s",
                    remedy="stop sending to it, and drain again",
                )
            time.sleep(POLL_S)

    def unregister(self, model: str, version: str, *, quiet_s: float = 1.0, timeout_s: float = 300.0) -> None:
        """Drains a version, then takes it away; without the first, the requests in it are lost.

        UsageError where TorchServe refuses: the default version while there are others, or the model API is off.
        """
        self.drain(model, version, quiet_s=quiet_s, timeout_s=timeout_s)
        reply = self.call("DELETE", _path(model, version))
        if not reply.ok:
            raise UsageError(
                f"TorchServe did not unregister {model} {version}: {_message(reply)}",
                remedy="make another version the default first; and it must have been started with model_api=True",
            )


def _path(model: str, version: str | None) -> str:
    name = urllib.parse.quote(model, safe="")
    return f"/models/{name}/{urllib.parse.quote(version, safe='')}" if version else f"/models/{name}"


def _decoded(raw: bytes) -> Any:
    text = raw.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text


def _message(reply: Reply) -> str:
    said = reply.body.get("message", reply.body) if isinstance(reply.body, dict) else reply.body
    return f"{reply.status} {said}"
