"""Small servers that behave well or badly on purpose, and how to tell that their processes are gone."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from labkit.serving.process import LOOPBACK, ServerProcess, free_port

SERVER = '''
import http.server, os, signal, socket, subprocess, sys, time

port, modes = int(sys.argv[1]), set(sys.argv[2:])
SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
DEAF = [*SLEEP[:-1], "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); " + SLEEP[-1]]

def sleeper(command, **options):
    child = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    if command is DEAF:
        child.stdout.readline()  # it is deaf from here on
    return child.pid

def orphan(command):
    """A double fork: the middle process ends at once, its child lives in a session of its own."""
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        os.write(writing, str(sleeper(command, start_new_session=True)).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    return int(os.read(reading, 20))

if "deaf" in modes:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "family" in modes:
    pids = [sleeper(SLEEP), sleeper(SLEEP, start_new_session=True), sleeper(DEAF, process_group=0)]
    pids += [orphan(SLEEP), orphan(DEAF)]
    with open("family.tmp", "w") as file:
        file.write(" ".join(map(str, pids)))
    os.rename("family.tmp", "family")
if "worker" in modes:
    sleeper(SLEEP)
if "storm" in modes:
    if os.fork() == 0:
        os.setsid()
        while True:  # new processes all the time, each in a session of its own
            subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1)"], start_new_session=True)
            time.sleep(0.02)
if "facts" in modes:
    print(os.getcwd(), os.environ.get("STAND_IN"), flush=True)
if "dies" in modes:
    print("\\n".join(f"line {number}" for number in range(40)), flush=True)
    sys.exit(3)
if "silent" in modes:
    time.sleep(600)
if "garbage" in modes:
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        talk, _ = listener.accept()
        talk.recv(1000)
        talk.sendall(b"SSH-2.0-none of your business\\r\\n\\r\\n")
        talk.close()

answers = iter([503, 503] if "warming" in modes else [])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("the last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self.send_response(next(answers, 200))
        self.end_headers()

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


def stand_in(tmp_path: Path, *modes: str, **options: Any) -> ServerProcess:
    """A server that does what `modes` say; its folder is tmp_path/run, its address `url_of(server)`."""
    script = tmp_path / "standin_server.py"
    script.write_text(SERVER)
    port = options.pop("port", None) or free_port()
    return ServerProcess(
        [sys.executable, str(script), str(port), *modes],
        name="stand-in",
        folder=tmp_path / "run",
        health_url=f"http://{LOOPBACK}:{port}/health",
        **{"start_timeout_s": 60.0, "stop_grace_s": 1.0, **options},
    )


def url_of(server: ServerProcess) -> str:
    """The address of a stand-in."""
    return f"http://{LOOPBACK}:{server.command[2]}"


def running(pids: str) -> list[psutil.Process]:
    """The processes with these pids; those that are gone already are left out."""
    return [psutil.Process(int(pid)) for pid in pids.split() if psutil.pid_exists(int(pid))]


def family_of(tmp_path: Path) -> list[psutil.Process]:
    """The processes that a "family" stand-in started, deaf ones and orphans included."""
    return running(wait_for(tmp_path / "run" / "family"))


def wait_for(file: Path) -> str:
    """The text of a file that another process is about to put there whole."""
    wait_until(file.exists)
    return file.read_text()


def wait_until(condition: Callable[[], bool], *, within_s: float = 60.0) -> bool:
    """Whether the condition holds within that time; returns as soon as it does."""
    deadline = time.monotonic() + within_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


def processes_of(server: ServerProcess) -> list[psutil.Process]:
    """The server's processes at this moment, to be looked for later."""
    return [psutil.Process(pid) for pid in server.pids]


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run. A zombie does not: in a container nobody may collect it."""
    left = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left


def survivors(processes: Iterable[psutil.Process], *, within_s: float = 15.0) -> list[psutil.Process]:
    """Those that still run after `within_s`; returns early when there are none."""
    watched = list(processes)
    wait_until(lambda: not alive(watched), within_s=within_s)
    return alive(watched)
