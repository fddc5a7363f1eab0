"""Disk space and loopback ports."""

import shutil
import socket
from pathlib import Path

from labkit.errors import UsageError


def disk_free_bytes(path: Path | str) -> int:
    """Free bytes on the file system that holds `path`, or would hold it: the nearest parent that exists is asked."""
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def port_is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now. UsageError for a number that is no port (1 to 65535)."""
    if not 1 <= port <= 65535:
        raise UsageError(f"{port} is not a port", remedy="choose a port from 1024 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
