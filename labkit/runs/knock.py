"""Is there a Ray cluster at an address, and may this machine join it? Asked before ray is imported."""

import os
from pathlib import Path

from labkit.errors import UsageError, require
from labkit.serving.ray_serve import TOKEN_FILE

MODE, TOKEN, TOKEN_PATH, ADDRESS = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"
AUTO = "auto"
STARTED_HERE = Path("/tmp/ray/ray_current_cluster")  # written by `ray start` on this machine
TIMEOUT_S = 5.0
WHO_ARE_YOU = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # answered to whoever has the token
ON_A_NODE = "name HOST:PORT of its head, on a machine that is a node of it; or `auto` there"


def knock(address: str) -> str:
    """HOST:PORT of the cluster's head; the environment then says how to speak to it.

    `address`: that, or "auto" for the cluster that was started on this machine. UsageError: nobody answers, somebody
    else does, or our token is missing or wrong.
    """
    found = _started_here() if address == AUTO else address
    host, _, port = found.rpartition(":")
    valid = host and "/" not in found and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535
    require(bool(valid), f"{found!r} is no address of a Ray cluster", fix=ON_A_NODE)
    if _lets_in(found, token=""):
        os.environ[MODE] = "disabled"  # a token of ours, from another Ray, would make us deaf to its nodes
    elif not (token := _token()):
        remedy = "copy ~/.ray/auth_token from the cluster's head (mode 600), or set RAY_AUTH_TOKEN"
        raise UsageError(f"the Ray cluster at {found} asks for a token, and there is none here", remedy=remedy)
    elif not _lets_in(found, token=token):
        remedy = "copy ~/.ray/auth_token from the cluster's head (mode 600); RAY_AUTH_TOKEN comes before the file"
        raise UsageError(f"the Ray cluster at {found} refuses the token of this machine", remedy=remedy)
    else:
        os.environ[MODE] = "token"
    return found


def _started_here() -> str:
    if found := os.environ.get(ADDRESS, ""):
        return found
    try:
        return STARTED_HERE.read_text(encoding="utf-8").strip()
    except OSError:
        raise UsageError("no Ray cluster was started on this machine", remedy=ON_A_NODE) from None


def _token() -> str:
    """As Ray looks for it."""
    if token := os.environ.get(TOKEN, ""):
        return token
    try:
        return Path(os.environ.get(TOKEN_PATH) or TOKEN_FILE).expanduser().read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _lets_in(address: str, *, token: str) -> bool:
    import grpc  # type: ignore[import-untyped]  # comes with ray

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(WHO_ARE_YOU)(b"", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise UsageError(f"no Ray cluster answers at {address!r}: {error.details()}", remedy=ON_A_NODE) from None
    return True
