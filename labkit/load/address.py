"""A server's address, in any of the forms that people have it."""

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
"""A segment of a path behind which OpenAI's routes follow: /v1, /api/v3, /v1beta/openai, Azure's deployments."""
SHORTEST_SECRET = 4
AS_IN = "pass one such as http://127.0.0.1:8000/v1"


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server's address, taken apart. It prints without its password and its query.

    `root` is where the routes are, such as http://127.0.0.1:8000/v1; `query` goes with every request; `api` is what a
    pasted endpoint speaks."""

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
        """`text` without the key, the password and what the query holds: servers repeat them in their messages."""
        values = (value for _, value in parse_qsl(self.query))
        for secret in (self.key, self.password, self.query, *values):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return text


def parse(url: str, *, api_key: str | None = None) -> Address:
    """A server's root, its .../v1 or another version, or one of its endpoints. UsageError for no http address."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the address cannot be read: {error}", remedy=AS_IN) from None
    is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    shown = "the address" if "@" in url else repr(url)
    require(is_http and port != 0, f"{shown} is not an http address", fix=AS_IN)
    sendable = not api_key or (api_key.isascii() and api_key.isprintable())
    fix = "pass the key alone, without line breaks"
    require(sendable, "the API key holds a line break or another character that no header can carry", fix=fix)
    fix = "leave one of them out: both would go into the header Authorization"
    require(not (api_key and parts.username), "the address holds a user, and an API key is given too", fix=fix)
    path, api = parts.path.rstrip("/"), None
    endpoint = next((end for end in ENDPOINTS if path.endswith(end)), None)
    if endpoint:
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
