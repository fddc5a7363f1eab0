"""Before a load: does anything listen, is the key accepted, is the model known?"""

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
TORCHSERVE_REFUSAL = b"Token Authorization failed"  # said with a 400
MOST_MODELS = 20
WITHOUT = "pass --no-preflight (preflight=False)"
UNREACHABLE: tuple[tuple[type[Exception], str, str], ...] = (
    (
        TimeoutError,
        f"{{url}} gave no answer within {TIMEOUT_S:g} s",
        "look into the server's log: is it still starting?",
    ),
    (
        aiohttp.ClientConnectorCertificateError,
        "the certificate of {url} is not trusted",
        "name the file of the authority that signed it in SSL_CERT_FILE, or use the name that it is for",
    ),
    (aiohttp.ClientSSLError, "{url} does not speak TLS", "use http:// if that is meant"),
    (aiohttp.ClientConnectorDNSError, "no host of the name in {url} is known", "correct the URL"),
    (aiohttp.ClientConnectorError, "nothing listens at {url}", "start the server, or correct the URL"),
    (Exception, "{url} cannot be read", "is an OpenAI-compatible server there?"),
)
"""Errors of a connection, the narrower kinds first: what happened, and what to change."""


async def check_server(session: aiohttp.ClientSession, address: Address, model: str) -> None:
    """One GET of the models: does anything listen, is the key accepted, is the model known?"""
    url = f"{address.root}/models"
    status, raw = await _get(session, address)
    if status in (401, 403) or (status == 400 and TORCHSERVE_REFUSAL in raw):
        fix = "pass the key that it started with"
        raise LoadError(f"the server refused the API key ({status} at {url})", remedy=fix)
    if status != 200:
        fix = (
            f"pass the server's root, its /v1 or the whole address of an endpoint; or, if it lists no models, {WITHOUT}"
        )
        raise LoadError(f"{url} answered {status}: no OpenAI-compatible API there", remedy=fix)
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
    """Is `model` in a server's list? LoadError if `raw` is no list of models, UsageError if `model` is not in it."""
    try:
        tree = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        tree = None
    for key in ("data", "models"):
        if isinstance(tree, dict) and isinstance(tree.get(key), list):
            tree = tree[key]
    if not isinstance(tree, list):
        fix = f"is an OpenAI-compatible server there? If so, {WITHOUT}"
        raise LoadError(f"{url} lists no models: {raw[:80]!r}", remedy=fix)
    names = list(_names(tree))
    known = any(model in (name, name.removesuffix(":latest"), name.removeprefix("models/")) for name in names)
    known = known or any("*" in name and fnmatchcase(model, name) for name in names)  # a gateway's wildcard
    shown = names if len(names) <= MOST_MODELS else difflib.get_close_matches(model, names, n=5, cutoff=0.3)
    fix = f"choose one of: {', '.join(shown) or 'none served'}"
    require(known, f"the server has no model {model!r} among its {len(names)}", fix=fix)


def _names(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            yield from dict.fromkeys(str(entry[key]) for key in ("id", "name", "model") if entry.get(key))
