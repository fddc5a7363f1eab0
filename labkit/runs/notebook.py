"""Execute one notebook unattended, from top to bottom, and stop it cleanly on request.

papermill executes it in a thread; the main thread handles signals and progress. In every case the notebook is written
as far as it ran, and the kernel and all processes that the lab started are ended.
"""

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from labkit.machine.processes import Scope
from labkit.serving import guard
from labkit.serving.process import SOCKET_NAME_BYTES, temporary_folder

INTERRUPT_GRACE_S = 10.0  # for the lab's clean-up: stopping a server takes some seconds
LEFTOVER_GRACE_S = 2.0
TICK_S = 0.1
ENGINE = "labkit"
LOG_TAIL = "The end of its log:"  # ServerError's words before the log


@dataclass(frozen=True, kw_only=True)
class NotebookEnd:
    """How a notebook ended. `status`: done, failed or interrupted; `cell` and `error`: set if it failed."""

    status: str
    seconds: float
    cell: str = ""
    error: str = ""


@dataclass
class Stop:
    """A request to stop. The second one is `urgent`: it leaves no time for clean-up."""

    asked: threading.Event = field(default_factory=threading.Event)
    urgent: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        """Request a stop; the second time, an urgent one."""
        (self.urgent if self.asked.is_set() else self.asked).set()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a `Stop` while the block runs (in the main thread only)."""
    stop = Stop()
    with stop_signals_call(lambda *_: stop.ask()):
        yield stop


@contextlib.contextmanager
def stop_signals_call(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and a closed terminal by `handler` in this block; SIGHUP stays ignored under `nohup`."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        signals = []
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    log_path: Path,
    stop: Stop | None = None,
    on_cell: Callable[[int, int], None] = lambda _index, _total: None,
) -> NotebookEnd:
    """Run `notebook` with `parameters` into `output`; its printed output goes to `log_path`.

    `on_cell(index, total)` is called from another thread when a cell starts.
    """
    stop, started = stop or Stop(), time.monotonic()
    log_path.write_text("", encoding="utf-8")
    with (
        temporary_files() as temporary,
        Scope() as scope,
        log_path.open("a", encoding="utf-8") as log,  # appending: the kernel writes to it too
    ):
        run = _Run(notebook, output, dict(parameters), log, stop, on_cell, temporary)
        run.thread.start()
        _wait(run.thread, stop.asked)
        interrupted = run.thread.is_alive()
        if interrupted:
            _interrupt(run, stop, scope)
        left = scope.end(wait_s=0 if interrupted else LEFTOVER_GRACE_S)
        run.thread.join(INTERRUPT_GRACE_S)
        if left:
            log.write(f"labkit ended {left} processes that the lab had left running\n")
    cell, error = run.failure()
    return NotebookEnd(
        status="interrupted" if interrupted else "failed" if error else "done",
        seconds=time.monotonic() - started,
        cell=cell,
        error="stopped by the user" if interrupted else error,
    )


@contextlib.contextmanager
def temporary_files() -> Iterator[Path]:
    """A folder for a lab's temporary files, removed at the end even if this process is killed."""
    folder = temporary_folder(sockets_bytes=SOCKET_NAME_BYTES)
    watch = guard.start_watch(str(folder), ())
    try:
        yield folder
    finally:
        watch.communicate()  # closes the watch's pipe: it removes the folder and ends


def _wait(thread: threading.Thread, until: threading.Event, *, timeout_s: float = math.inf) -> None:
    """Wait for the thread's end, the event, or the time-out."""
    end = time.monotonic() + timeout_s
    while thread.is_alive() and not until.is_set() and time.monotonic() < end:
        thread.join(TICK_S)


def _interrupt(run: "_Run", stop: Stop, scope: Scope) -> None:
    """Raise KeyboardInterrupt in the running cell, so that the lab cleans up; then, or if urgent, end its processes."""
    if run.kernel_pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.kernel_pid, signal.SIGINT)
        _wait(run.thread, stop.urgent, timeout_s=INTERRUPT_GRACE_S)
    if run.thread.is_alive():
        scope.end()


@dataclass
class _Run:
    """A notebook's execution in its own thread."""

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    log: TextIO
    stop: Stop
    on_cell: Callable[[int, int], None]
    temporary: Path
    kernel_pid: int | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._execute, name=f"lab {self.notebook.stem}", daemon=True)

    def _execute(self) -> None:
        try:
            import papermill

            _register_engine()
            papermill.execute_notebook(
                self.notebook,
                self.output,
                parameters=self.parameters,
                engine_name=ENGINE,
                language="python",
                kernel_name="python3",
                progress_bar=False,
                run=self,
            )
        except BaseException as error:  # reported in the main thread
            self.error = error

    def failure(self) -> tuple[str, str]:
        """Return (the cell, the error in one line), both "" without an error."""
        if self.error is None:
            return "", ""
        if not hasattr(self.error, "ename"):
            return "", f"{type(self.error).__name__}: {one_line(str(self.error))}"
        error: Any = self.error  # papermill's PapermillExecutionError
        number = f" [In {error.exec_count}]" if error.exec_count else ""
        code = [line for line in error.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        first_line = code[0] if code else ""
        return f"cell {error.cell_index + 1}{number}: {first_line}", f"{error.ename}: {one_line(error.evalue)}"


def one_line(message: str) -> str:
    """Return a message in one line, without a server's log, which is in the notebook and in the lab's log."""
    return " ".join(message.partition(LOG_TAIL)[0].split())


def kernel_environment() -> dict[str, str]:
    """Return the kernel's environment, with this Python's programs (vllm, ray) first on PATH."""
    programs = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")])}


def _register_engine() -> None:
    """Register a papermill engine that reports cells, logs all output, and names the cell in which a kernel died."""
    # A kernelspec in the user's home must not replace this environment's Python.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # Parameters are already checked; papermill would warn about those in the folded cell.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    from nbclient.exceptions import DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    class LabEngine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, run: _Run, **_options: Any) -> Any:
            def on_cell_start(cell_index: int, **_cell: Any) -> None:
                if run.stop.asked.is_set():  # an idle kernel ignores SIGINT, so stop between two cells here
                    raise KeyboardInterrupt
                run.kernel_pid = getattr(client.km.provisioner, "pid", None)
                run.on_cell(cell_index, len(nb_man.nb.cells))

            client = PapermillNotebookClient(
                nb_man,
                timeout=None,
                startup_timeout=120,
                kernel_name=kernel_name,
                stdout_file=run.log,
                stderr_file=run.log,
                on_cell_start=on_cell_start,
                config=Config({"KernelManager": {"connection_file": str(run.temporary / "kernel.json")}}),
            )
            env = {**kernel_environment(), "TMPDIR": str(run.temporary)}
            kernel = {"cwd": str(run.notebook.parent), "env": env}
            try:
                return client.execute(**kernel, stdout=run.log, stderr=run.log)
            except DeadKernelError:
                _mark_dead_kernel(nb_man)

    papermill_engines.register(ENGINE, LabEngine)


def _mark_dead_kernel(nb_man: Any) -> None:
    """Add an error output to the cell that was running, which papermill leaves looking completed."""
    import nbformat

    started = [cell for cell in nb_man.nb.cells if cell.metadata.papermill.get("start_time")]
    if not started:
        raise RuntimeError("the kernel died before the first cell")
    evalue = "the kernel died while this cell ran (killed, out of memory, or a crash in native code)"
    output = nbformat.v4.new_output("error", ename="DeadKernelError", evalue=evalue, traceback=[evalue])
    started[-1].setdefault("outputs", []).append(output)
    nb_man.cell_exception(started[-1])
