"""One notebook from top to bottom with nobody at the keyboard, stopped cleanly whenever that is asked.

papermill executes it in a thread, so that the main thread stays free for signals and progress. Whatever happens, the
notebook is written as far as it came, the kernel ends, and so does every process that the lab started.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from labkit.machine.processes import Scope

INTERRUPT_GRACE_S = 10.0  # for the lab's own clean-up: a server's clean stop takes some seconds
LEFTOVER_GRACE_S = 2.0
TICK_S = 0.1
ENGINE = "labkit"
LOG_TAIL = "The end of its log:"  # as ServerError begins it


@dataclass(frozen=True, kw_only=True)
class NotebookEnd:
    """How a notebook ended. `status`: done, failed or interrupted. `cell`: where, `error`: what, when it failed."""

    status: str
    seconds: float
    cell: str = ""
    error: str = ""
    left_processes: int = 0


@dataclass
class Stop:
    """A request to stop. A second one is `urgent`: no more time for clean-up."""

    asked: threading.Event = field(default_factory=threading.Event)
    urgent: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        """Asks to stop; the second time, at once."""
        (self.urgent if self.asked.is_set() else self.asked).set()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and a closed terminal become a `Stop` while the block runs (in the main thread only)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {each: signal.signal(each, lambda *_: stop.ask()) for each in signals}
    try:
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    log_path: Path,
    stop: Stop | None = None,
    on_cell: Callable[[int, int], None] = lambda _index, _total: None,
    on_tick: Callable[[], None] = lambda: None,
) -> NotebookEnd:
    """Runs `notebook` with `parameters` into `output`, everything printed into `log_path`.

    `on_cell(index, total)` is called when a cell starts, from another thread; `on_tick` about ten times a second.
    """
    stop, started = stop or Stop(), time.monotonic()
    log_path.write_text("", encoding="utf-8")
    with (
        Scope() as scope,
        log_path.open("a", encoding="utf-8") as log,
    ):  # appending: the kernel and its children write to it too
        run = _Run(notebook, output, dict(parameters), log, stop, on_cell)
        run.thread.start()
        _wait(run.thread, stop.asked, on_tick=on_tick)
        interrupted = run.thread.is_alive()
        if interrupted:
            _interrupt(run, stop, scope, on_tick)
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
        left_processes=left,
    )


class _Run:
    """A notebook's execution in a thread of its own."""

    def __init__(
        self,
        notebook: Path,
        output: Path,
        parameters: dict[str, Any],
        log: TextIO,
        stop: Stop,
        on_cell: Callable[[int, int], None],
    ) -> None:
        self.notebook, self.output, self.parameters = notebook, output, parameters
        self.log, self.stop, self.on_cell = log, stop, on_cell
        self.kernel_pid: int | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._target, name=f"lab {notebook.stem}", daemon=True)

    def _target(self) -> None:
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
        except BaseException as error:  # whatever it is, it is reported in the main thread
            self.error = error

    def failure(self) -> tuple[str, str]:
        """(the cell, the error in one line), both "" where all went well."""
        if self.error is None:
            return "", ""
        if not hasattr(self.error, "ename"):
            return "", f"{type(self.error).__name__}: {_one_line(str(self.error))}"
        error: Any = self.error  # papermill's PapermillExecutionError
        number = f" [In {error.exec_count}]" if error.exec_count else ""
        lines = [line for line in error.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        begins = lines[0] if lines else ""
        return f"cell {error.cell_index + 1}{number}: {begins}", f"{error.ename}: {_one_line(error.evalue)}"


def _one_line(message: str) -> str:
    """A message in one line, without a server's log, which stands in the notebook and in the lab's own log."""
    return " ".join(message.partition(LOG_TAIL)[0].split())


def kernel_environment() -> dict[str, str]:
    """The kernel's environment: programs of this Python's environment (vllm, ray) come first on its PATH."""
    programs = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")])}


def _register_engine() -> None:
    """A papermill engine that reports cells, logs all output, and names the cell in which a kernel died."""
    # A kernelspec in the user's home must not replace this environment's Python.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    from nbclient.exceptions import DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    class LabEngine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, run: _Run, **_options: Any) -> Any:
            client = PapermillNotebookClient(
                nb_man,
                timeout=None,
                startup_timeout=120,
                kernel_name=kernel_name,
                stdout_file=run.log,
                stderr_file=run.log,
            )
            _follow_cells(nb_man, client, run)
            try:
                return client.execute(
                    cwd=str(run.notebook.parent), env=kernel_environment(), stdout=run.log, stderr=run.log
                )
            except DeadKernelError:
                _mark_dead_kernel(nb_man)

    papermill_engines.register(ENGINE, LabEngine)


def _follow_cells(nb_man: Any, client: Any, run: _Run) -> None:
    original = nb_man.cell_start

    def cell_start(cell: Any, cell_index: int, **options: Any) -> Any:
        if run.stop.asked.is_set():  # an idle kernel ignores SIGINT: the stop that came between two cells ends here
            raise KeyboardInterrupt
        run.kernel_pid = getattr(client.km.provisioner, "pid", None)
        run.on_cell(cell_index, len(nb_man.nb.cells))
        return original(cell, cell_index=cell_index, **options)

    nb_man.cell_start = cell_start


def _mark_dead_kernel(nb_man: Any) -> None:
    """Writes the death into the cell that was running: papermill leaves it looking completed."""
    import nbformat

    started = [cell for cell in nb_man.nb.cells if cell.metadata.papermill.get("start_time")]
    if not started:
        raise RuntimeError("the kernel died before the first cell")
    evalue = "the kernel died while this cell ran (ended from outside, out of memory, or a crash in native code)"
    output = nbformat.v4.new_output("error", ename="DeadKernelError", evalue=evalue, traceback=[evalue])
    started[-1].setdefault("outputs", []).append(output)
    nb_man.cell_exception(started[-1])


def _wait(
    thread: threading.Thread, until: threading.Event, *, on_tick: Callable[[], None], timeout_s: float = float("inf")
) -> None:
    """Waits for the thread's end, the event, or the time-out."""
    end = time.monotonic() + timeout_s
    while thread.is_alive() and not until.is_set() and time.monotonic() < end:
        thread.join(TICK_S)
        on_tick()


def _interrupt(run: _Run, stop: Stop, scope: Scope, on_tick: Callable[[], None]) -> None:
    """KeyboardInterrupt in the running cell, so that the lab cleans up; after that, or when urgent, ends the tree."""
    if run.kernel_pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.kernel_pid, signal.SIGINT)
        _wait(run.thread, stop.urgent, on_tick=on_tick, timeout_s=INTERRUPT_GRACE_S)
    if run.thread.is_alive():
        scope.end()
