"""The gate before an ASGI application: API key and limit of the body's size."""

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from labkit.serving import gate

KEY = "the-key"
RIGHT = b"Bearer the-key"


def asked(
    path: str = "/v1/models",
    *,
    authorization: bytes | None = None,
    method: str = "GET",
    kind: str = "http",
    length: bytes | None = None,
    body: tuple[bytes, ...] = (b"",),
) -> list[MutableMapping[str, Any]]:
    """Return the gate's messages for one request to an application that reads the body and answers 200."""
    chunks, sent = list(body), list[MutableMapping[str, Any]]()

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def app(scope: MutableMapping[str, Any], receive: gate.Receive, send: gate.Send) -> None:
        while scope["type"] == "http" and (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    headers = [] if authorization is None else [(b"authorization", authorization)]
    headers += [] if length is None else [(b"content-length", length)]
    scope = {"type": kind, "path": path, "method": method, "headers": headers}
    asyncio.run(gate.Gate(app)(scope, receive, send))
    return sent


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gate.environment(api_key=KEY, open_paths=("/health", "/metrics"), body_limit_bytes=100).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "DELETE"])
def test_all_paths_but_the_open_ones_need_the_key(method: str) -> None:
    """This includes paths that vLLM's own key leaves open, and paths similar to an open one."""
    guarded = (
        "/v1/models /invocations /tokenize /load /docs /openapi.json /version /ping / /metrics/x /healthy //health"
    )
    for path in guarded.split():
        for authorization in (None, b"", b"Bearer", b"Bearer wrong", b"Basic the-key", b"the-key", b"Bearer the-keys"):
            assert asked(path, method=method, authorization=authorization)[0]["status"] == 401, (path, authorization)
        assert asked(path, method=method, authorization=RIGHT)[0]["status"] == 200
    for path in ("/health", "/metrics"):
        assert asked(path, method=method)[0]["status"] == 200


def test_a_websocket_is_closed_without_the_key_and_the_lifespan_passes() -> None:
    """A WebSocket gets no HTTP status before its handshake: it is closed; the server's own start needs no key."""
    assert asked("/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert asked("/v1/realtime", kind="websocket", authorization=RIGHT)[0]["status"] == 200
    assert asked("", kind="lifespan")[0]["status"] == 200


def test_without_a_configured_key_requests_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application without a key answers all requests."""
    monkeypatch.setenv(gate.KEY, "")
    assert asked()[0]["status"] == 200


def test_a_key_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment names the file, not the key; a missing, empty or world-readable file stops the server."""
    path = gate.write_key(tmp_path / "keys" / "desk", "old")
    assert gate.write_key(path, KEY).stat().st_mode & 0o777 == 0o600
    settings = gate.environment(api_key_file=str(path))
    assert KEY not in str(settings)
    monkeypatch.delenv(gate.KEY)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert asked(authorization=RIGHT)[0]["status"] == 200
    assert asked()[0]["status"] == 401
    path.chmod(0o604)
    with pytest.raises(PermissionError, match="chmod 600"):
        asked(authorization=RIGHT)
    path.chmod(0o600)
    path.write_text("\n")
    with pytest.raises(ValueError, match="contains no key"):
        asked(authorization=RIGHT)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        asked(authorization=RIGHT)


def test_a_body_without_a_length_is_refused_while_it_arrives() -> None:
    """The limit applies to the received bytes, chunk by chunk."""
    assert asked(authorization=RIGHT, body=(b"x" * 50, b"x" * 50))[0]["status"] == 200
    assert asked(authorization=RIGHT, body=(b"x" * 50, b"x" * 51, b"never read"))[0]["status"] == 413


def test_a_declared_length_is_checked_before_the_body() -> None:
    """A length above the limit gets 413 whatever its number of digits, one that is no number 400, and neither 500."""
    statuses = {b"0": 200, b"100": 200, b"101": 413, b"9" * 5000: 413}
    statuses |= dict.fromkeys((b"", b"-1", b"1e2", b"12, 12", b"1_0", b"0x10", b"\xb2", b"many"), 400)
    for length, status in statuses.items():
        assert asked(authorization=RIGHT, length=length)[0]["status"] == status, length
    assert asked(length=b"many")[0]["status"] == 401
