"""Check before a load that the server listens, accepts the key and serves the model."""

import asyncio
import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import aiohttp
import msgspec

from labkit.errors import LoadError, require
from labkit.load.address import Address

TIMEOUT_S = 10.0
TORCHSERVE_REFUSAL = b"Token Authorization failed"  # sent with a 400
MOST_MODELS = 20
WITHOUT = "pass --no-preflight (preflight=False)"
UNREACHABLE: tuple[tuple[type[Exception], str, str], ...] = (
    (
        TimeoutError,
        f"{{url}} gave no answer within {TIMEOUT_S:g} s",
        "check the server's log: is it still starting?",
    ),
    (
        aiohttp.ClientConnectorCertificateError,
        "the certificate of {url} is not trusted",
        "set SSL_CERT_FILE to the certificate of the authority that signed it, or use the host name that it names",
    ),
    (aiohttp.ClientSSLError, "{url} does not speak TLS", "use http://, or enable TLS on the server"),
    (aiohttp.ClientConnectorDNSError, "the host name in {url} is unknown", "correct the URL"),
    (aiohttp.ClientConnectorError, "nothing listens at {url}", "start the server, or correct the URL"),
    (Exception, "{url} cannot be read", "check that the URL is an OpenAI-compatible server's"),
)
"""Connection errors, the most specific first: what happened, and what to change."""


async def check_server(session: aiohttp.ClientSession, address: Address, model: str) -> None:
    """GET the server's models. LoadError without a usable API, UsageError for an unknown model."""
    url = f"{address.root}/models"
    status, raw = await _get(session, address)
    if status in (401, 403) or (status == 400 and TORCHSERVE_REFUSAL in raw):
        fix = "pass the key that it started with"
        raise LoadError(f"the server refused the API key ({status} at {url})", remedy=fix)
    if status != 200:
        fix = f"pass the server's root, its /v1 or an endpoint's address; or, if it lists no models, {WITHOUT}"
        raise LoadError(f"{url} answered {status}: not an OpenAI-compatible API", remedy=fix)
    _check_model(raw, model, url=url)


async def _get(session: aiohttp.ClientSession, address: Address) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(TIMEOUT_S), session.get(address.url("/models")) as response:
            return response.status, await response.read()
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        what, fix = next((what, fix) for kind, what, fix in UNREACHABLE if isinstance(error, kind))
        reason = address.hide(str(error)) or type(error).__name__
        raise LoadError(f"{what.format(url=f'{address.root}/models')} ({reason})", remedy=fix) from error


def _check_model(raw: bytes, model: str, *, url: str) -> None:
    """LoadError if `raw` is not a list of models, UsageError if `model` is not in it."""
    try:
        tree = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        tree = None
    for key in ("data", "models"):
        if isinstance(tree, dict) and isinstance(tree.get(key), list):
            tree = tree[key]
    if not isinstance(tree, list):
        fix = f"check that the URL is an OpenAI-compatible server's; if so, {WITHOUT}"
        raise LoadError(f"{url} lists no models: {raw[:80]!r}", remedy=fix)
    names = list(_names(tree))
    served = any(model in (name, name.removesuffix(":latest"), name.removeprefix("models/")) for name in names)
    served = served or any("*" in name and fnmatchcase(model, name) for name in names)  # a gateway's wildcard
    shown = names if len(names) <= MOST_MODELS else difflib.get_close_matches(model, names, n=5, cutoff=0.3)
    fix = f"choose one of: {', '.join(shown) or 'none served'}"
    require(served, f"the server has no model {model!r} among its {len(names)}", fix=fix)


def _names(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            yield from dict.fromkeys(str(entry[key]) for key in ("id", "name", "model") if entry.get(key))
