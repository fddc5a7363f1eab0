"""Server addresses: a root, a versioned path such as /v1, or a pasted endpoint."""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from labkit.errors import UsageError, require

Api = Literal["completions", "chat"]
PATHS: dict[Api, str] = {"completions": "/completions", "chat": "/chat/completions"}
ENDPOINTS = {"/chat/completions": "chat", "/completions": "completions", "/models": None, "/embeddings": None}
VERSION = re.compile(r"v\d+([a-z]+\d*)?|deployments")
"""A path segment before OpenAI's routes: /v1, /api/v3, /v1beta/openai, Azure's deployments."""
SHORTEST_SECRET = 4
EXAMPLE = "pass one such as http://127.0.0.1:8000/v1"


@dataclass(frozen=True, kw_only=True)
class Address:
    """A parsed address; its repr hides the password and the key.

    `root` is the base of the routes, such as http://127.0.0.1:8000/v1; `query` is sent with every request; `api` is
    that of a pasted endpoint."""

    root: str
    query: str = ""
    api: str | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    @property
    def authorization(self) -> str:
        if self.user:
            return "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode()
        return f"Bearer {self.key}" if self.key else ""

    def url(self, path: str) -> str:
        return f"{self.root}{path}{'?' if self.query else ''}{self.query}"

    def hide(self, text: str) -> str:
        """Mask the key, the password and the query's values in `text`: servers echo them in messages."""
        values = (value for _, value in parse_qsl(self.query))
        for secret in (self.key, self.password, self.query, *values):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return text


def parse(url: str, *, api_key: str | None = None) -> Address:
    """Parse a server's root, its .../v1 or another version, or an endpoint. UsageError for anything but http(s)."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the address cannot be read: {error}", remedy=EXAMPLE) from None
    is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    shown = "the address" if "@" in url else repr(url)
    require(is_http and port != 0, f"{shown} is not an http address", fix=EXAMPLE)
    sendable = not api_key or (api_key.isascii() and api_key.isprintable())
    fix = "pass the key alone, without line breaks"
    require(sendable, "the API key contains a line break or another character that a header cannot carry", fix=fix)
    fix = "leave one of them out: both would go into the header Authorization"
    require(not (api_key and parts.username), "the address contains a user name, and an API key is given too", fix=fix)
    path, api = parts.path.rstrip("/"), None
    if endpoint := next((end for end in ENDPOINTS if path.endswith(end)), None):
        path, api = path.removesuffix(endpoint), ENDPOINTS[endpoint]
    elif not any(VERSION.fullmatch(segment) for segment in path.split("/")):
        path += "/v1"
    return Address(
        root=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}",
        query=parts.query,
        api=api,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        key=api_key or "",
    )
