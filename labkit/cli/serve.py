"""Run a server in the foreground until Ctrl-C, which ends it with all its processes.

Of labkit's modules only this one imports `applications`.
"""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit.cli.output import say
from labkit.errors import ServerError
from labkit.files import root
from labkit.machine import inspect
from labkit.models import CHAT, architecture, resolve
from labkit.runs.notebook import stop_on_signals, stop_signals_call
from labkit.runs.runner import now_and_then
from labkit.serving import gate, ray_serve, torchserve, vllm
from labkit.serving.process import require_free_port

POLL_S = 0.5
KEY = "LABKIT_API_KEY"
LONGEST = 4096  # prompt and answer in tokens: TorchServe's handler pads a whole batch to the longest
LONGEST_ANSWER = 256  # a batch is computed to its end even if its clients have disconnected (handlers/README.md)
TOO_SLOW = "modelled GPU: this machine is too slow"


def serve_vllm(model: str, *, port: int, gpu_memory_share: float) -> None:
    """Serve `model` by `vllm serve` until it is stopped. ServerError, with the end of the log, if it dies."""
    require_free_port(port)
    folder = resolve(model, progress=say)
    weight_bytes = architecture(folder).weight_bytes
    settings = vllm.settings(inspect(), gpu_memory_share=gpu_memory_share, weight_bytes=weight_bytes)
    words = ["vllm", "serve", str(folder), "--served-model-name", served_name(model)]
    command = f"{shlex.join(words)} {settings.flags}".strip()
    say(command)
    _run_vllm(command, settings.env, served_name(model), port)


def serve_modelled(card: str, model: str, *, port: int, tensor_parallel: int) -> None:
    """Run `vllm serve` on a modelled GPU: answers take the time that the card would take; their text is filler.

    UsageError for a card or model that cannot be modelled; ServerError, with the end of the log, if the server dies.
    """
    from labkit import modelled

    require_free_port(port)
    gpu = modelled.gpu(card, model=model, tensor_parallel=tensor_parallel, tokenizer=resolve(CHAT, progress=say))
    name = gpu.folder.name
    command = f"{shlex.join(['vllm', 'serve', gpu.model, '--served-model-name', name])} {gpu.flags}"
    say(f"{command}\n{gpu.label}\nIts answers are filler text, not computed by a model.")
    _run_vllm(command, modelled.SERVER_ENV, name, port)


def _run_vllm(command: str, env: dict[str, str], name: str, port: int) -> None:
    with _private_folder() as folder:
        key, progress = os.environ.get(KEY), now_and_then(say)
        server = vllm.start(command, folder=folder, env=env, port=port, api_key=key, progress=progress)
        read_to = 0

        def check() -> None:
            nonlocal read_to
            server.process.check()
            with server.process.log_path.open(encoding="utf-8", errors="replace") as log:
                log.seek(read_to)
                lines = log.read().splitlines()
                read_to = log.tell()
            for line in lines:
                if TOO_SLOW in line:
                    say(line[line.index(TOO_SLOW) :])

        with server:
            _stay(server.url, name, server.api_key, check)


def serve_ray(model: str, *, port: int, gpu_memory_share: float) -> None:
    """Serve the support desk (applications/support_desk.py) on Ray Serve, with its OpenAI routes, until it is stopped.

    ServerError if Ray does not start or the application cannot be deployed.
    """
    require_free_port(port)
    machine, folder = inspect(), resolve(model, progress=say)
    vllm.settings(machine, gpu_memory_share=gpu_memory_share, weight_bytes=architecture(folder).weight_bytes)
    key = os.environ.get(KEY) or secrets.token_urlsafe(16)
    _find_applications()  # before Ray starts: its workers inherit the path
    say("Ray and Ray Serve: starting")
    with (
        stop_signals_call(signal.default_int_handler),
        tempfile.TemporaryDirectory(prefix="labkit-serve-") as private,
        ray_serve.start(num_gpus=1 if machine.gpus else 0, port=port, progress=say) as running,
    ):
        from applications.this_machine import desk_settings, import_llm

        import_llm()
        from applications.support_desk import DeskSettings, build

        settings = desk_settings(
            str(folder),
            machine=machine,
            name=served_name(model),
            gpu_memory_share=gpu_memory_share,
            api_key_file=gate.write_key(Path(private) / "api_key", key),
        )
        say("the support desk (applications/support_desk.py): starting, about a minute")
        ray_serve.deploy(build(DeskSettings(**settings)), name="desk")
        say(f"more routes: POST {running.url}/chain and /parallel, a message as JSON in `text`")
        _stay(running.url, served_name(model), key, running.check)


def serve_torchserve(model: str, *, port: int) -> None:
    """Serve `model` by TorchServe and the batched handler (handlers/text_generation.py) until it is stopped.

    ServerError, with the end of the log, if it does not start or dies.
    """
    require_free_port(port)
    model_folder = resolve(model, progress=say)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", served_name(model).rsplit("/", 1)[-1]).lstrip("_.-")  # allowed in URLs
    positions = min(architecture(model_folder).max_positions or LONGEST, LONGEST)
    answer = min(positions // 4, LONGEST_ANSWER)
    settings = {"model_path": str(model_folder), "max_new_tokens": answer, "max_prompt_tokens": positions - answer}
    if os.environ.get(KEY):
        say(f"TorchServe makes its own keys; {KEY} is ignored")
    with _private_folder() as folder:
        archive = torchserve.archive(
            "text_generation", folder=folder / "archives", model_name=name, handler_settings=settings
        )
        say(archive.command)
        with torchserve.start([archive], folder=folder / "run", port=port, progress=now_and_then(say)) as server:
            say(f"{server.command}\nmetrics: {server.metrics_url}")
            root = server.base_url(name).removesuffix("/v1")
            _stay(root, name, server.keys.inference, server.process.check)


def _find_applications() -> None:
    """Let this process and Ray's workers import `applications`, which a wheel installs below labkit."""
    folder = str(root())
    if folder not in sys.path:
        sys.path.append(folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))


def served_name(model: str) -> str:
    """Return the model's name in requests: the embedded model's name, the hub id, or the folder's last part."""
    return Path(model).resolve().name if Path(model).is_dir() else model


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that is removed at the end, even if a signal interrupts a start; a failed server's log is kept."""
    folder, failed = Path(tempfile.mkdtemp(prefix="labkit-serve-")), False
    with stop_signals_call(signal.default_int_handler):
        try:
            yield folder
        except ServerError:
            failed = True
            raise
        finally:
            if not failed:
                shutil.rmtree(folder, ignore_errors=True)


def _stay(url: str, name: str, key: str, check: Callable[[], None]) -> None:
    """Print how to reach the server, and wait until Ctrl-C; `check` raises if the server has died."""
    with stop_on_signals() as stop:
        say(f"ready: {url}/v1 (Ctrl-C stops it). In another terminal:")
        say(f"  {KEY}={shlex.quote(key)} labkit load {url} --model {shlex.quote(name)}")
        while not stop.asked.is_set():
            check()
            time.sleep(POLL_S)
