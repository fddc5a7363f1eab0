"""Run one lab on a cluster's node, in a process that stops when its parent ends.

    python -m labkit.runs.lab_process FOLDER

FOLDER holds `job.json` and the notebook; the lab writes to FOLDER/out. A Ray worker that ends kills its children but
not their children. So this process detaches from its parent at once, and is connected to it only by two pipes. Each
line on stdin requests a stop, the second an urgent one; the end of stdin requests a stop and the removal of FOLDER.
Output: one `Message` per line.
"""

import contextlib
import os
import shutil
import sys
import threading
from pathlib import Path

from labkit.runs.notebook import Stop, execute
from labkit.runs.on_node import JOB, NOTEBOOK, OUT, Message, Order
from labkit.runs.plan import OUT_DIR
from labkit.runs.runner import log_path


def main(folder: Path) -> None:
    """Run the lab of FOLDER to its end."""
    if os.fork():
        os._exit(0)
    stop, orphaned = Stop(), threading.Event()
    threading.Thread(target=_listen, args=(stop, orphaned), daemon=True).start()
    order, out = Order.model_validate_json((folder / JOB).read_text(encoding="utf-8")), folder / OUT
    end = execute(
        folder / NOTEBOOK,
        out / f"{order.lab}.ipynb",
        {**order.parameters, OUT_DIR: str(out)},
        log_path=log_path(out, order.lab),
        stop=stop,
        on_cell=lambda index, total: _write(Message(cell=(index, total))),
    )
    _write(Message(end=end))
    if orphaned.is_set():
        shutil.rmtree(folder, ignore_errors=True)


def _listen(stop: Stop, orphaned: threading.Event) -> None:
    for _line in sys.stdin:
        stop.ask()
    orphaned.set()
    stop.ask()


def _write(message: Message) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has ended; `_listen` stops the lab
        print(message.model_dump_json(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
