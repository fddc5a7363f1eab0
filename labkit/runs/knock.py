"""Check, before ray is imported, that a Ray cluster answers at an address and accepts this machine's token."""

import os
from pathlib import Path

from labkit.errors import UsageError, require
from labkit.serving.ray_serve import TOKEN_FILE

MODE, TOKEN, TOKEN_PATH, ADDRESS = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"
AUTO = "auto"
STARTED_HERE = Path("/tmp/ray/ray_current_cluster")  # written by `ray start` on this machine
TIMEOUT_S = 5.0
GET_CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # needs the token if the cluster has one
ON_A_NODE = "on a node of the cluster, pass HOST:PORT of its head, or `auto`"


def knock(address: str) -> str:
    """Return HOST:PORT of the cluster's head, and set the environment variable of its authentication mode.

    `address`: HOST:PORT, or "auto" for the cluster that was started on this machine. UsageError: no Ray cluster
    answers, or this machine's token is missing or wrong.
    """
    head = _started_here() if address == AUTO else address
    host, _, port = head.rpartition(":")
    valid = host and "/" not in head and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535
    require(bool(valid), f"{head!r} is not an address of a Ray cluster", fix=ON_A_NODE)
    if _accepts(head, token=""):
        os.environ[MODE] = "disabled"  # with another Ray's token this process could not talk to the nodes
    elif not (token := _token()):
        remedy = "copy ~/.ray/auth_token from the cluster's head (mode 600), or set RAY_AUTH_TOKEN"
        raise UsageError(f"the Ray cluster at {head} needs a token, and this machine has none", remedy=remedy)
    elif not _accepts(head, token=token):
        remedy = "copy ~/.ray/auth_token from the cluster's head (mode 600); RAY_AUTH_TOKEN comes before the file"
        raise UsageError(f"the Ray cluster at {head} refuses the token of this machine", remedy=remedy)
    else:
        os.environ[MODE] = "token"
    return head


def _started_here() -> str:
    if address := os.environ.get(ADDRESS, ""):
        return address
    try:
        return STARTED_HERE.read_text(encoding="utf-8").strip()
    except OSError:
        raise UsageError("no Ray cluster was started on this machine", remedy=ON_A_NODE) from None


def _token() -> str:
    """This machine's token, by Ray's rules."""
    if token := os.environ.get(TOKEN, ""):
        return token
    try:
        return Path(os.environ.get(TOKEN_PATH) or TOKEN_FILE).expanduser().read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _accepts(address: str, *, token: str) -> bool:
    import grpc  # type: ignore[import-untyped]  # comes with ray

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(GET_CLUSTER_ID)(b"", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise UsageError(f"no Ray cluster answers at {address!r}: {error.details()}", remedy=ON_A_NODE) from None
    return True
