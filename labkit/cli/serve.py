"""A server in the foreground: started, told about, and ended by Ctrl-C with every process that it has."""

import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from labkit.machine import inspect
from labkit.models import CHAT, architecture, resolve
from labkit.runs.notebook import stop_on_signals
from labkit.runs.runner import now_and_then
from labkit.serving import ray_serve, torchserve, vllm
from labkit.serving.process import require_free_port

POLL_S = 0.5
KEY = "LABKIT_API_KEY"
LONGEST = 4096  # prompt and answer in tokens; TorchServe's handler keeps a whole batch of them, padded to the longest


def serve_vllm(model: str, *, port: int, gpu_memory_share: float, say: Callable[[str], None]) -> None:
    """Serves `model` by `vllm serve` until somebody stops it. ServerError, with the log's end, when it dies itself."""
    require_free_port(port)
    folder_of_model = resolve(model, progress=say)
    weight_bytes = architecture(folder_of_model).weight_bytes
    settings = vllm.settings(inspect(), gpu_memory_share=gpu_memory_share, weight_bytes=weight_bytes)
    name = served_name(model)
    words = ["vllm", "serve", str(folder_of_model), "--served-model-name", name]
    command = f"{shlex.join(words)} {settings.flags}".strip()
    say(command)
    key = os.environ.get(KEY)
    with tempfile.TemporaryDirectory(prefix="labkit-serve-") as folder:
        # Ctrl-C while it starts is Python's own: a KeyboardInterrupt, upon which `start` ends what it has started.
        waiting = now_and_then(say)
        server = vllm.start(command, folder=Path(folder), env=settings.env, port=port, api_key=key, progress=waiting)
        with server:
            _stay(server.url, name, server.api_key, say, check=server.process.check)


def serve_modelled(card: str, model: str, *, port: int, tensor_parallel: int, say: Callable[[str], None]) -> None:
    """`vllm serve` on a modelled GPU: answers take the time that the card would take; their text is filler.

    UsageError for a card or model that cannot be modelled; ServerError, with the log's end, when the server dies.
    """
    from labkit import modelled

    require_free_port(port)
    gpu = modelled.gpu(card, model=model, tensor_parallel=tensor_parallel, tokenizer=resolve(CHAT, progress=say))
    name = gpu.folder.name
    command = f"{shlex.join(['vllm', 'serve', gpu.model, '--served-model-name', name])} {gpu.flags}"
    say(f"{command}\n{gpu.label}\nIts answers are filler text: no model computes them.")
    with tempfile.TemporaryDirectory(prefix="labkit-serve-") as folder:
        key, waiting = os.environ.get(KEY), now_and_then(say)
        env = modelled.SERVER_ENV
        server = vllm.start(command, folder=Path(folder), env=env, port=port, api_key=key, progress=waiting)
        late = _new_lines(server.process.log_path, "modelled GPU: this machine is too slow", say)
        with server:

            def check() -> None:
                server.process.check()
                late()

            _stay(server.url, name, server.api_key, say, check=check)


def _new_lines(log: Path, words: str, say: Callable[[str], None]) -> Callable[[], None]:
    """A function that says each new line of the log that holds `words`, from these on."""
    seen = 0

    def look() -> None:
        nonlocal seen
        with log.open(encoding="utf-8", errors="replace") as stream:
            stream.seek(seen)
            text = stream.read()
            seen = stream.tell()
        for line in text.splitlines():
            if words in line:
                say(line[line.index(words) :])

    return look


def serve_ray(model: str, *, port: int, gpu_memory_share: float, say: Callable[[str], None]) -> None:
    """Serves the support desk (applications/support_desk.py) on Ray Serve, with its OpenAI routes, until it is stopped.

    ServerError when Ray does not come up or the application cannot be deployed.
    """
    require_free_port(port)
    machine, folder_of_model = inspect(), resolve(model, progress=say)
    vllm.settings(machine, gpu_memory_share=gpu_memory_share, weight_bytes=architecture(folder_of_model).weight_bytes)
    name, key = served_name(model), os.environ.get(KEY) or secrets.token_urlsafe(16)
    gpus = 1 if machine.gpus else 0
    say("Ray and Ray Serve: starting")
    with ray_serve.start(num_gpus=gpus, port=port, progress=say) as running:
        from applications.support_desk import DeskSettings, build

        desk = DeskSettings(
            model=str(folder_of_model),
            model_name=name,
            writer_gpus=gpu_memory_share if gpus else 0,
            gpu_memory_share=gpu_memory_share,
            api_key=key,
        )
        say("the support desk (applications/support_desk.py): starting, a minute or so")
        ray_serve.deploy(build(desk), name="desk")
        say(f"also there: POST {running.url}/chain and /parallel, a message as JSON in `text`")
        _stay(running.url, name, key, say, check=running.check)


def serve_torchserve(model: str, *, port: int, say: Callable[[str], None]) -> None:
    """Serves `model` by TorchServe and our batched handler (handlers/text_generation.py) until somebody stops it.

    ServerError, with the log's end, when it does not start or dies.
    """
    require_free_port(port)
    folder_of_model = resolve(model, progress=say)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", served_name(model).rsplit("/", 1)[-1]).lstrip("_.-")  # what its URLs take
    positions = min(architecture(folder_of_model).max_positions or LONGEST, LONGEST)
    limits = {"max_new_tokens": positions // 4, "max_prompt_tokens": positions - positions // 4}
    if os.environ.get(KEY):
        say(f"TorchServe makes its own keys: {KEY} is not used")
    with tempfile.TemporaryDirectory(prefix="labkit-serve-") as folder:
        settings = {"model_path": str(folder_of_model), **limits}
        made = torchserve.archive(
            "text_generation", folder=Path(folder) / "archives", model_name=name, handler_settings=settings
        )
        say(made.command)
        waiting = now_and_then(say)
        with torchserve.start([made], folder=Path(folder) / "run", port=port, progress=waiting) as server:
            say(f"{server.command}\nmetrics: {server.metrics_url}")
            root = server.base_url(name).removesuffix("/v1")
            _stay(root, name, server.keys.inference, say, check=server.process.check)


def served_name(model: str) -> str:
    """The name by which requests call the model: an embedded one's, a hub id, or the folder's last part."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _stay(url: str, name: str, key: str, say: Callable[[str], None], *, check: Callable[[], None]) -> None:
    """Tells how to reach the server, and stays until Ctrl-C; `check` raises when the server has died."""
    with stop_on_signals() as stop:
        say(f"ready: {url}/v1 (Ctrl-C stops it). In another terminal:")
        say(f"  {KEY}={key} labkit load {url} --model {shlex.quote(name)}")
        while not stop.asked.is_set():
            check()
            time.sleep(POLL_S)
