"""Before a load starts: does anything listen, is the model known, is the key accepted?"""

import asyncio
from typing import Any

import aiohttp
import msgspec

from labkit.errors import LoadError, UsageError

_PATIENCE_S = 10.0
TORCHSERVE_REFUSAL = b"Token Authorization failed"  # said with a 400


async def check_server(session: aiohttp.ClientSession, root: str, model: str) -> None:
    """One GET of `root`/models. LoadError if nothing answers or the key is refused, UsageError if `model` is
    unknown."""
    url = f"{root}/models"
    status, raw = await _get(session, url)
    if status in (401, 403) or (status == 400 and TORCHSERVE_REFUSAL in raw):
        raise LoadError(
            f"the server refused the API key ({status} at {url})", remedy="pass the key that it started with"
        )
    if status != 200:
        raise LoadError(
            f"{url} answered {status}: no OpenAI-compatible API there",
            remedy="pass the server's root or its /v1; for a server that lists no models pass preflight=False",
        )
    names = _model_names(raw, url)
    if model not in names:
        raise UsageError(
            f"the server has no model {model!r}", remedy=f"choose one of: {', '.join(names) or 'none served'}"
        )


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(_PATIENCE_S), session.get(url) as response:
            return response.status, await response.read()
    except TimeoutError as error:
        raise LoadError(
            f"{url} gave no answer within {_PATIENCE_S:g} s", remedy="look into the server's log: is it still starting?"
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise LoadError(f"nothing listens at {url} ({error})", remedy="start the server, or correct the URL") from error
    except (aiohttp.ClientError, OSError) as error:
        raise LoadError(
            f"{url} cannot be read ({error or type(error).__name__})", remedy="is an OpenAI-compatible server there?"
        ) from error


def _model_names(raw: bytes, url: str) -> list[str]:
    try:
        listing: Any = msgspec.json.decode(raw)
        return [str(entry["id"]) for entry in listing["data"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise LoadError(
            f"{url} lists no models: {raw[:80]!r}", remedy="is an OpenAI-compatible server there?"
        ) from error
