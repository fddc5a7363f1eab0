"""One lab on a node of a cluster, in a process that ends with whoever ordered it, however that one ends.

    python -m labkit.runs.lab_process FOLDER

FOLDER holds `job.json` and the notebook; what the lab leaves goes to FOLDER/out. A Ray worker that ends kills its
children without a word, and theirs would live on: so this process leaves its parent at once, and holds on to it by two
pipes. Each line on stdin asks to stop, the second one at once; the end of stdin asks too, and then nobody wants the
folder any more. On stdout: one JSON object a line, {"cell": [index, total]} and at last {"end": {...}}.
"""

import contextlib
import json
import os
import shutil
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.runs.notebook import Stop, execute
from labkit.runs.on_node import JOB, OUT


def main(folder: Path) -> None:
    """Runs the lab of FOLDER to its end."""
    if os.fork():
        os._exit(0)
    stop, orphaned = Stop(), threading.Event()
    threading.Thread(target=_listen, args=(stop, orphaned), name="listener", daemon=True).start()
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    notebook, out = folder / job["notebook"], folder / OUT
    end = execute(
        notebook,
        out / notebook.name,
        job["parameters"],
        log_path=out / job["log"],
        stop=stop,
        on_cell=lambda index, total: _tell(cell=[index, total]),
    )
    _tell(end=asdict(end))
    if orphaned.is_set():
        shutil.rmtree(folder, ignore_errors=True)


def _listen(stop: Stop, orphaned: threading.Event) -> None:
    for _line in sys.stdin:
        stop.ask()
    orphaned.set()
    stop.ask()


def _tell(**what: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the listener notices too, and stops the lab
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
