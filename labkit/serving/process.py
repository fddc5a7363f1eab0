"""A server process for any engine: own process group, log file, health check, loopback port, clean stop.

A server runs under `labkit.serving.guard`, which ends it when this process ends, even by SIGKILL.
"""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from labkit.errors import ServerError, UsageError
from labkit.machine.facts import port_problem
from labkit.serving import guard

LOOPBACK = "127.0.0.1"
POLL_S = 0.25
PREFIX = "labkit-"  # for temporary folders
SOCKET_PATH_BYTES = 107  # unix(7)
SOCKET_NAME_BYTES = 48  # "/" and a UUID (vLLM), "/pymp-xxxxxxxx/listener-xxxxxxxx" (multiprocessing), "/.ts.sock.65535"
Say = Callable[[str], None]
Failures = Sequence[tuple[str, str, str]]
"""Known failures of a start: a pattern in its log, its meaning, its remedy; {0} is the pattern's group."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this loopback


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return `count` different free ports; all are held until the last is found."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]


def require_free_port(port: int) -> int:
    """Return `port`. UsageError if it is out of range or in use."""
    if reason := port_problem(port, host=LOOPBACK):
        raise UsageError(
            f"port {port} on {LOOPBACK} cannot be used: {reason}",
            remedy=f"stop what listens there, use another port ({free_port()} is free now), or leave it out",
        )
    return port


def temporary_folder(*, sockets_bytes: int, inside: str | None = None) -> Path:
    """Create a folder for temporary files in `inside` (default: TMPDIR), or in /tmp if sockets' paths get too long.

    `sockets_bytes`: length of the longest socket path below the folder, with its leading "/".
    """
    path = tempfile.mkdtemp(prefix=PREFIX, dir=inside)
    if len(os.fsencode(path)) + sockets_bytes > SOCKET_PATH_BYTES:
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
    return Path(path)


def poll(every_s: float, *, timeout_s: float) -> Iterator[float]:
    """Yield the seconds that have passed, every `every_s` seconds until `timeout_s`, at least once."""
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) <= timeout_s:
        yield waited_s
        time.sleep(every_s)


class Stoppable:
    """Something that is stopped at the end of a `with` block."""

    def stop(self) -> None:
        """Stop it and wait until it has ended. Safe to call again."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class ServerProcess(Stoppable):
    """A server as a child process, which runs until `stop`, the end of a `with` block, or the end of this process.

    `command` runs in `folder` and logs to `folder/server.log`; it is ready when `health_url` answers 200. `failures`
    explain the log of a failed start. Temporary files and sockets are in another folder, removed when it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        folder: Path,
        health_url: str,
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 300.0,
        stop_grace_s: float = 20.0,
        failures: Failures = (),
    ) -> None:
        self.command = tuple(command)
        self.name = name
        self.folder = folder
        self.log_path = folder / "server.log"
        self.start_seconds: float | None = None
        self._health_url = health_url
        self._env = dict(env or {})
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._failures = failures
        self._temporary: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """True from `start` until the server has ended."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def pids(self) -> tuple[int, ...]:
        """The server's process, then its descendants."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._guard is not None and self.running:
                family = psutil.Process(self._guard.pid).children(recursive=True)
                return tuple(process.pid for process in family[1:])  # without the inner guard
        return ()

    def start(self, *, progress: Say = lambda _: None) -> Self:
        """Start the server, unless it runs, and wait until it is ready; a failed start leaves no process running."""
        if self.running:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            self._launch()
            for waited_s in poll(POLL_S, timeout_s=self._start_timeout_s):
                if _status(self._health_url, timeout_s=2.0) == 200:
                    break
                self.check()
                progress(f"{self.name}: starting, {waited_s:.0f} s")
            else:
                raise self.error(f"{self.name} was not ready after {self._start_timeout_s:.0f} s")
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - began
        return self

    def stop(self) -> None:
        """End the server and its descendants, and wait until they have ended. Safe to call again."""
        if self._guard is None:
            return
        server, pids = self._guard, self.pids
        if server.stdin is not None:
            with contextlib.suppress(OSError):
                server.stdin.close()
        server.terminate()  # a fork of this process may still hold the pipe's write end
        try:
            server.wait(self._stop_grace_s + 10)
        except subprocess.TimeoutExpired:
            for pid in (server.pid, *pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            server.wait(10)
        self._cleaner.join(10)
        self._guard = None  # ended because we asked: no death to report
        if self._temporary is not None:  # it is still there when the guard was killed
            shutil.rmtree(self._temporary, ignore_errors=True)

    def check(self) -> None:
        """Raise ServerError, with the end of the log, if the server has died (not if `stop` ended it)."""
        if self._guard is not None and not self.running:
            raise self.error(f"{self.name} {_ending(self._guard.returncode)}")

    def log_text(self) -> str:
        """The whole log so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def error(self, what: str) -> ServerError:
        """Return an error for `what`, with the reason and remedy that the log gives and its last lines."""
        whole_log = f"the whole log: {self.log_path}"
        reason, remedy = explain(self.log_text(), self._failures) or ("", "")
        remedy = f"{remedy} ({whole_log})" if remedy else f"read {whole_log}"
        log_tail = "\n".join(self.log_text().splitlines()[-15:])
        return ServerError(f"{what}: {reason}" if reason else what, remedy=remedy, log_tail=log_tail)

    def _launch(self) -> None:
        # Run as a file and with -P, so that no file in the server's folder can shadow a module.
        self._temporary = temporary_folder(sockets_bytes=SOCKET_NAME_BYTES)
        temporary = str(self._temporary)
        guarded = [sys.executable, "-P", guard.__file__, temporary, str(self._stop_grace_s), *self.command]
        with self.log_path.open("wb") as log:
            self._guard = subprocess.Popen(
                guarded,
                cwd=self.folder,
                env={**os.environ, **self._env, "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches only this process, which then stops the server
            )
        self._cleaner = threading.Thread(target=_end_session, args=(self._guard,), daemon=True)
        self._cleaner.start()

    def __enter__(self) -> Self:
        return self.start()


def _end_session(leader: "subprocess.Popen[bytes]") -> None:
    """Wait for the outer guard; if both guards were killed, end the rest of their session."""
    leader.wait()
    while left := _session(leader.pid):
        if not any(guard.__file__ in (process.info["cmdline"] or ()) for process in left):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(POLL_S)


def _session(pid: int) -> list[psutil.Process]:
    """The running processes of the session that `pid` began."""
    left = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left


def answers_http(port: int, *, timeout_s: float = 0.5) -> bool:
    """Whether this loopback port gives any HTTP response, including errors."""
    return _status(f"http://{LOOPBACK}:{port}/", timeout_s) is not None


def _status(url: str, timeout_s: float) -> int | None:
    try:
        with DIRECT.open(url, timeout=timeout_s) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


def explain(log: str, failures: Failures) -> tuple[str, str] | None:
    """Return meaning and remedy of the first of `failures` that matches the log; None if none does."""
    for pattern, meaning, remedy in failures:
        if hits := list(re.finditer(pattern, log)):
            return meaning.format(*hits[-1].groups()), remedy.format(*hits[-1].groups())
    return None


def _ending(code: int) -> str:
    """Describe a guard's exit code; negative: a signal ended the guard itself."""
    number = -code if code < 0 else code - 128
    if number == signal.SIGKILL:
        return "was killed (SIGKILL, from a process or from the kernel when memory runs out)"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(number).name}"
    return f"died with exit code {code}" if code else "ended on its own with exit code 0"
