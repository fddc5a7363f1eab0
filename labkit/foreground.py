"""A server in the foreground: started, told about, and ended by Ctrl-C with every process that it has."""

import os
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from labkit.batch import stop_on_signals
from labkit.machine import inspect
from labkit.models import architecture, resolve
from labkit.progress import now_and_then
from labkit.serving import vllm
from labkit.serving.process import require_free_port

POLL_S = 0.5


def serve_vllm(model: str, *, port: int, gpu_memory_share: float, say: Callable[[str], None]) -> None:
    """Serves `model` by `vllm serve` until somebody stops it. ServerError, with the log's end, when it dies itself."""
    require_free_port(port)
    folder_of_model = resolve(model, progress=say)
    weight_bytes = architecture(folder_of_model).weight_bytes
    settings = vllm.settings(inspect(), gpu_memory_share=gpu_memory_share, weight_bytes=weight_bytes)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    words = ["vllm", "serve", str(folder_of_model), "--served-model-name", name]
    command = f"{shlex.join(words)} {settings.flags}".strip()
    say(command)
    key = os.environ.get("LABKIT_API_KEY")
    with tempfile.TemporaryDirectory(prefix="labkit-serve-") as folder:
        # Ctrl-C while it starts is Python's own: a KeyboardInterrupt, upon which `start` ends what it has started.
        waiting = now_and_then(say)
        server = vllm.start(command, folder=Path(folder), env=settings.env, port=port, api_key=key, progress=waiting)
        with server, stop_on_signals() as stop:
            say(f"ready: {server.base_url} (Ctrl-C stops it). In another terminal:")
            say(f"  LABKIT_API_KEY={server.api_key} labkit load {server.url} --model {shlex.quote(name)}")
            while not stop.asked.is_set():
                server.process.check()
                time.sleep(POLL_S)
