"""The command line as scripts rely on it: keys, exit codes, one object on stdout, messages without a traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from labkit.cli import main
from labkit.errors import ServerError, UsageError
from labkit.experiments import paired_ratio
from labkit.files import data_path, parse_settings
from labkit.modelled import cards
from labkit.records import Recorder
from labkit.serving.process import free_port
from labkit.words import parse_bytes
from tests.unit import synthetic
from tests.unit.command import Labkit
from tests.unit.stub_server import MODEL, serving

ROOT = Path(__file__).parents[2]
COMMANDS = {"doctor", "fetch", "select", "simulate", "run", "report", "compare", "claims", "kv", "cost", "fractions",
            "log", "load", "serve", "progress", "solutions", "workshop-check"}  # fmt: skip
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
          "hidden_size": 64, "max_position_embeddings": 512, "torch_dtype": "bfloat16"}  # fmt: skip
HEAVY = ("torch", "vllm", "ray", "altair", "pandas", "scipy", "numpy", "papermill", "transformers", "aiohttp",
         "matplotlib")  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config.json of a small model."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    return file


def a_run(folder: Path, *, tokens: int = 3, ratio: float = 2.0, status: Any = "done") -> Path:
    """A run's folder with one record."""
    made = Recorder("01_first_deployment", folder, {}, machine=synthetic.machine(), versions={}, seed=1)
    made.exact("tokens", tokens)
    made.ratio(paired_ratio([ratio, ratio * 1.1], [1.0, 1.0], name="gain"), tolerance=0.3)
    made.evidence("C29", article_formula_over_true=0.25, batch_size=4)
    made.save(status)
    return folder


def test_the_commands_are_those_that_are_promised(labkit: Labkit) -> None:
    """No command is missing and none is a stub for later."""
    ended = labkit("--help")
    listed = {line.split()[0] for line in ended.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert ended.code == 0
    assert listed == COMMANDS


def test_help_and_doctor_import_nothing_heavy() -> None:
    """Both come at once because no engine, no numerics and no data library is loaded for them."""
    code = (
        "import sys\nfrom labkit.cli.main import main\n"
        "for command in (['--help'], ['run', '--help'], ['doctor']):\n"
        " try: main(command)\n"
        " except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


BIG = "9" * 5000
LOAD = "load http://127.0.0.1:9 --model m"
WRONG = {
    "frobnicate": "No such command",
    "run 99_nothing": "there is no lab called '99_nothing'",
    "run -p all.nonsense=1": "no lab has a parameter 'nonsense'",
    "fetch nonsense": "'nonsense' is not an embedded model",
    "fetch {tmp}/empty": "no config.json",
    "report {tmp}/nowhere": "is not a folder",
    "report {tmp}/empty": "0 records",
    "compare {tmp}/empty {tmp}/empty --json": "0 records",
    "claims {tmp}/nowhere --json": "is not a folder",
    "kv {tmp}/none.json --json": "there is no file",
    "kv {tmp}/config.json --block-size x": "valid integer",
    "log {tmp}/none.log --json": "there is no log file",
    "log {tmp}/config.json --json": "no line about memory and no error of vLLM in 1 lines",
    "log {tmp}/config.json --tensor-parallel 0": "greater than or equal to 1",
    "log {tmp}/config.json --model {tmp}/broken.yaml": "broken.yaml",
    "fractions {tmp}/nothing.yaml --json": "there is no file",
    f"{LOAD} --rate 1 --concurrency 2": "concurrency",
    f"{LOAD} --requests 1000000000": "the maximum is 100,000",
    f"{LOAD} --warmup -1": "--warmup=0 or more",
    f"{LOAD} --timeout 0": "--timeout is 0",
    f"{LOAD} --workload mooncake --set path={{tmp}}/none.jsonl": "cannot be read",
    f"{LOAD} --ramp-from 2": "the end of the ramp",
    f"{LOAD} --sweep rate=1,x": "rate=1,2,4,8",
    f"{LOAD} --sweep rate=1,2,4 --rate 2": "leave those out, or --sweep",
    f"{LOAD} --slo ttft_s=1": "add --sweep",
    f"{LOAD} --sweep rate=1,2,4 --slo speed=1": "ttft_s, tpot_s, e2e_s",
    f"{LOAD} --sweep rate=1,2,4 --slo ttft_s=fast": "ttft_s is 'fast'",
    f"{LOAD} --set nonsense": "KEY=VALUE",
    f"{LOAD} --set seed=3": "pass --seed",
    f"{LOAD} --set name=chat": "no option 'name'",
    "serve tgi": "no server called 'tgi'",
    "serve vllm --port 0": "port 0",
    "serve ray --port 0": "port 0",
    "serve torchserve --port 0": "port 0",
    "serve vllm --tensor-parallel 2": "--tensor-parallel is for modelled cards",
    "serve vllm --gpu h100-sxm --tensor-parallel 0": "--tensor-parallel is 0",
    "serve vllm --gpu-memory-share nan": "gpu_memory_share is nan",
    "serve vllm --gpu h100-sxm --gpu-memory-share 0.5": "would have no effect",
    "serve torchserve --gpu-memory-share 0.5": "would have no effect",
    "run 00 --ray 127.0.0.1:99999": "not an address of a Ray cluster",
    "run 00 --out {tmp}/loop/run": "Symlink loop",
    "run 00 --out ~nobody-of-that-name/run": "home directory",
    f"run 00 --out {{tmp}}/{BIG}": "File name too long",
    f"run 00 -p 00.seed={BIG}": "it must be an int",
    f"run 01 -p 01.concurrencies={'[' * 100_000}": "it must be a list of ints",
    r'run 01 -p 01.concurrencies=["\ud800"]': "it must be a list of ints",
    "run \udcff": "there is no lab called",
    "progress": "Missing argument",
    "progress {tmp}/nowhere --json": "is not a folder",
    "solutions 99": "there is no lab called '99'",
    "workshop-check --lab 99": "there is no lab called '99'",
    "workshop-check --summary {tmp}/nowhere": "holds 0 checks",
    "workshop-check --summary {tmp} --answer": "--summary reads files and checks no machine",
}


def test_bad_input_ends_with_2_and_one_message(labkit: Labkit, config: Path) -> None:
    """Each mistake gets its message on stderr with the remedy, nothing on stdout, no traceback, and exit code 2 (1 for
    a model's folder without its file)."""
    (config.parent / "broken.yaml").write_text("{name: x")
    (config.parent / "empty").mkdir()
    (config.parent / "loop").symlink_to("loop")
    for line, says in WRONG.items():
        ended = labkit(*line.replace("{tmp}", str(config.parent)).split())
        assert says in ended.stderr, line
        assert len(ended.stderr) < 3000, line
        code = 1 if says == "no config.json" else 2
        assert (ended.code, ended.stdout, "Traceback" in ended.stderr) == (code, "", False), line
    bare = labkit()
    assert (bare.code, "Commands:" in bare.stdout + bare.stderr) == (2, True)


WRONG_SIMULATIONS = {
    "": "--gpu",
    "--gpu h300": ", ".join(cards.known()),
    "--gpu h100-sxm --model llama-9": "'llama-9'",
    "--gpu h100-sxm --router coin --rate 1": "prefix-aware",
    "--gpu h100-sxm --concurrency 4 --rate 2": "both --concurrency and --rate",
    "--gpu h100-sxm --rate 0": "rate is 0",
    "--gpu h100-sxm --rate 2 --arrival gaussian": "poisson, constant, bursty",
    "--gpu h100-sxm --input-tokens 100 --shared-tokens 100": "100 of 100 input tokens",
    "--gpu h100-sxm --workload conversations --set loudness=3": "loudness",
    "--gpu h100-sxm --workload mooncake": "path",
    "--gpu h100-sxm --concurrency 0": "--concurrency is 0",
    "--gpu h100-sxm --tensor-parallel 0": "--tensor-parallel is 0",
    "--gpu h100-sxm --tensor-parallel 16": "all-reduces between machines of 8 GPUs",
    "--gpu l40s --model {fp8} --tensor-parallel 2": "no NVLink",
    "--gpu h100-sxm --requests 1000000000": "the maximum is 100,000",
    "--gpu h100-sxm --input-tokens 1000000000": "200,000,000,000 prompt tokens",
    "--gpu h100-sxm --workload generated --rate 0": "rate is 0",
    "--gpu h100-sxm --workload generated --set inputs=5": "inputs are 5",
    "--gpu h100-sxm --workload generated --set templates=100000000000": "100000 or fewer",
    "--gpu h100-sxm --workload chat --set n=3": "pass --requests",
    "--gpu h100-sxm --replicas 0": "--replicas is 0",
    "--gpu h100-sxm --set turns=2": "--set would have no effect",
    "--gpu h100-sxm --arrival bursty": "--arrival would have no effect",
    "--gpu h100-sxm --workload generated --input-tokens 9": "--input-tokens would have no effect",
}


def test_simulate_refuses_before_anything_heavy_is_loaded(
    labkit: Labkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What cannot be is named without an engine, a tokenizer or a model; so is a card of which nothing is known from
    which even a direction could be taken."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    dense = json.loads((data_path("models") / "llama-3.1-8b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(dense | {"quantization_config": {"quant_method": "fp8"}}))
    for name in ("vllm", "torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    unknown = {f"--gpu {card.name}": card.title for card in cards.known().values() if card.evidence == "none"}
    assert unknown
    unknown |= {f"{line} --direction-only": title for line, title in unknown.items()}
    for line, says in (WRONG_SIMULATIONS | unknown).items():
        ended = labkit("simulate", *line.format(fp8=tmp_path).split(), "--json")
        assert (ended.code, ended.stdout, "Traceback" in ended.stderr) == (2, "", False), line
        assert says in " ".join(ended.stderr.split()), line


def test_ctrl_c_ends_with_130(labkit: Labkit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is stopped by the user says so by its exit code, without a traceback."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("labkit.report.page.build", interrupted)
    ended = labkit("report", ".")
    assert (ended.code, "Traceback" in ended.stderr) == (130, False)


def test_log(labkit: Labkit, tmp_path: Path) -> None:
    """The lines with what they mean and whether they agree, and the cache's tokens; a pipe is read like a file."""
    file = ROOT / "tests" / "data" / "cases" / "log" / "v0_7_v1_blocks.log"
    found = labkit("log", file, "--json").json
    assert (found["kv_tokens"], found["agrees"], found["lines_read"]) == (22_096, True, 3)
    assert [line["agrees"] for line in found["lines"]] == [None, None, True]
    assert all(line["kind"] and line["meaning"] for line in found["lines"])
    assert "22,096 / 2,048 = 10.79x - agrees" in labkit("log", file).stdout
    command = [sys.executable, "-m", "labkit", "log", "-", "--json"]
    piped = subprocess.run(command, input=file.read_bytes(), capture_output=True, check=True, timeout=60)
    assert json.loads(piped.stdout) == found
    (tmp_path / "empty.log").touch()
    assert "in 0 lines" in labkit("log", tmp_path / "empty.log").stderr


def test_kv_says_the_same_in_words(labkit: Labkit, config: Path) -> None:
    """The lines have the numbers of the object, whose values test_kv_cases.py checks."""
    asked = ("kv", config, "--memory", "1MiB", "--block-size", "16")
    assert f"{labkit(*asked, '--json').json['tokens']:,} tokens" in labkit(*asked).stdout


def test_load_has_its_keys(labkit: Labkit) -> None:
    """Counts, throughputs and the four latencies with mean, p50, p90 and p99; nothing else on stdout. The table
    says that the p99 of few requests is their maximum."""
    with serving() as stub:
        ended = labkit("load", stub.base_url, "--model", MODEL, "--requests", 6, "--concurrency", 2, "--json")
        shown = labkit("load", stub.base_url, "--model", MODEL, "--requests", 3, "--rate", 50)
    assert (ended.code, shown.code, "3 completed, 0 failed" in shown.stdout) == (0, 0, True)
    assert "the p99 of 3 requests" in shown.stdout
    found = ended.json
    assert (found["completed"], found["failed"]) == (6, 0)
    assert {"input_tokens", "output_tokens", "duration_s", "request_throughput", "output_throughput"} <= set(found)
    assert {"client_cpu_share", "warnings"} <= set(found)
    for quantity in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert {"mean", "p50", "p90", "p99"} <= set(found[quantity])


def test_load_reaches_its_concurrency_or_says_so_before_it_starts(labkit: Labkit, tmp_path: Path) -> None:
    """Without --requests there are four per client; with fewer requests than clients a warning names both."""
    file = tmp_path / "few.jsonl"
    file.write_text('{"prompt": "hello", "max_tokens": 2}\n' * 3)
    with serving() as stub:
        called = ("load", stub.base_url, "--model", MODEL)
        filled, few = (
            labkit(*called, "--concurrency", 10, "--json"),
            labkit(*called, "--requests", 3, "--concurrency", 4),
        )
        file_options = ("--workload", "file", "--set", f"path={file}", "--sweep", "concurrency=1,2,4")
        swept = labkit(*called, *file_options, "--json")
    assert filled.json["completed"] == 40
    assert not any("Too few requests" in warning for warning in filled.json["warnings"])
    assert "concurrency is 4, but 3 requests" in few.stderr
    assert "warning: Too few requests" in " ".join(few.stdout.split())
    steps = [" ".join(step["warnings"]) for step in swept.json["steps"]]
    assert ["but 3 requests" in warnings for warnings in steps] == [False, False, True]
    assert "concurrency is 4, but 3 requests" in swept.stderr


def test_load_uses_the_same_prompts_for_the_same_seed(labkit: Labkit) -> None:
    """Two loads with one seed send the same bodies, another seed sends others; workload options arrive."""

    def sent(*options: object) -> list[tuple[str, int]]:
        with serving() as stub:
            labkit("load", stub.base_url, "--model", MODEL, "--requests", 3, "--warmup", 0, *options)
            return sorted((body["prompt"], body["max_tokens"]) for body in stub.bodies)

    assert sent("--seed", 5) == sent("--seed", 5) != sent("--seed", 6)
    assert max(max_tokens for _, max_tokens in sent("--set", "max_tokens=7")) <= 7


def test_load_goes_on_where_a_server_refuses(labkit: Labkit) -> None:
    """A refused field is named with the switch that leaves it out, and the switch does; a server without a list of
    models is loaded with --no-preflight; a pasted chat endpoint is one."""
    for field, switch in (("ignore_eos", ["--no-ignore-eos"]), ("stream_options", ["--no-stream-options"]),
                          ("max_tokens", ["--limit-field", "max_completion_tokens"])):  # fmt: skip
        with serving(refuses=field, models_status=404, token_delay_s=0.001) as stub:
            called = ("load", stub.base_url, "--model", MODEL, "--requests", 2, "--json", "--no-preflight")
            refused, done = labkit(*called), labkit(*called, *switch)
        assert (refused.code, " ".join(switch) in refused.stderr) == (1, True)
        assert (done.code, done.json["completed"]) == (0, 2)
    with serving() as stub:
        assert labkit("load", f"{stub.base_url}/chat/completions", "--model", MODEL, "--requests", 2).code == 0
        assert labkit("load", stub.base_url, "--model", MODEL, "--requests", 2, "--workload", "conversations",
                      "--set", "think_s=0").code == 0  # fmt: skip
        assert set(stub.urls) == {"/v1/chat/completions"}


def test_a_sweep_prints_its_steps_and_its_knee(labkit: Labkit) -> None:
    """As words, with the rule, and as one object whose steps have a load's keys."""
    with serving(slots=1, first_token_delay_s=0.15) as stub:
        called = ("load", stub.base_url, "--model", MODEL, "--requests", 12, "--sweep", "concurrency=1,2,4")
        found, shown = labkit(*called, "--json"), labkit(*called, "--slo", "e2e_s=9")
    assert (found.json["knee"], [step["concurrency"] for step in found.json["steps"]]) == (1, [1, 2, 4])
    assert {"completed", "ttft_s", "output_throughput", "warnings"} <= set(found.json["steps"][0])
    assert "knee: not found; never saturated" in " ".join(shown.stdout.split())


def test_ctrl_c_prints_what_was_measured() -> None:
    """An interrupted load ends with 130, and prints the requests that were answered before."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from labkit.cli import main"
    with serving(first_token_delay_s=0.05) as stub:
        arguments = ["load", stub.base_url, "--model", MODEL, "--requests", "2000", "--json"]
        command = [sys.executable, "-c", f"{code}; main.main({arguments!r})"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as client:
            try:
                deadline = time.monotonic() + 60
                while len(stub.bodies) < 5 and time.monotonic() < deadline:
                    time.sleep(0.01)
                client.send_signal(signal.SIGINT)
                printed, _ = client.communicate(timeout=60)
            finally:
                client.kill()
    assert client.returncode == 130
    assert json.loads(printed)["completed"] >= 3
    assert "were not sent" in " ".join(json.loads(printed)["warnings"])


def test_a_load_that_fails_ends_with_1(labkit: Labkit) -> None:
    """Where no request succeeds the figures are printed all the same, and the message names the first error; where
    there is no server, its address."""
    with serving(error_status=500) as stub:
        ended = labkit("load", stub.base_url, "--model", MODEL, "--requests", 2, "--json")
    assert (ended.code, ended.json["failed"]) == (1, 2)
    assert "none of 2 requests succeeded: http_error" in ended.stderr
    gone = labkit(*LOAD.split(), "--json")
    assert (gone.code, gone.stdout, "127.0.0.1:9" in gone.stderr) == (1, "", True)


def test_compare_has_its_keys_and_exit_codes(labkit: Labkit, tmp_path: Path) -> None:
    """0 where two runs agree; 1 where an exact value differs, a ratio is outside its tolerance, or a lab failed."""
    first = a_run(tmp_path / "a")
    same = labkit("compare", first, a_run(tmp_path / "b", ratio=2.2), "--json")
    assert same.code == 0
    assert same.json["identical"] is True
    assert [set(pair) >= {"name", "a", "b", "within"} for pair in same.json["ratios"]] == [True]
    other = labkit("compare", first, a_run(tmp_path / "c", tokens=4), "--json")
    assert (other.code, other.json["identical"]) == (1, False)
    far = labkit("compare", first, a_run(tmp_path / "d", ratio=4.0), "--json")
    assert (far.code, far.json["identical"], far.json["ratios"][0]["within"]) == (1, True, False)
    words = labkit("compare", first, a_run(tmp_path / "e", status="failed"))
    assert words.code == 1
    assert "01_first_deployment.gain" in words.stdout
    assert "not finished: b: 01_first_deployment (failed)" in words.stdout


def test_claims_has_its_keys(labkit: Labkit, tmp_path: Path) -> None:
    """All 65 claims with id, verdict, evidence and lab; a run's evidence gives its claims a verdict."""
    plain = labkit("claims", "--json").json["claims"]
    found = {claim["id"]: claim for claim in labkit("claims", a_run(tmp_path), "--json").json["claims"]}
    assert len(plain) == len(found) == 65
    assert all({"id", "verdict", "evidence", "lab"} <= set(claim) for claim in found.values())
    assert not any(claim["measured"] for claim in plain)
    assert [name for name, claim in found.items() if claim["measured"]] == ["C29"]
    assert found["C29"]["evidence"] == {"article_formula_over_true": 0.25, "batch_size": 4}
    assert "C29" in labkit("claims", tmp_path).stdout


def test_a_day_of_notebooks_is_one_ledger_and_one_report(labkit: Labkit, tmp_path: Path) -> None:
    """Of a folder of runs the newest finished record of each lab counts, and the report lies in that folder."""
    a_run(tmp_path / "a")
    a_run(tmp_path / "b", status="failed")
    (tmp_path / "c").mkdir()
    found = labkit("claims", tmp_path, "--json").json["claims"]
    assert [claim["id"] for claim in found if claim["measured"]] == ["C29"]
    assert labkit("report", tmp_path).stdout.strip() == str(tmp_path / "report.html")
    other = tmp_path / "other.html"
    assert labkit("report", tmp_path / "a", "--out", other).stdout.strip() == str(other)
    assert other.exists()


def test_a_corrupt_record_is_bad_input_where_it_decides(labkit: Labkit, tmp_path: Path) -> None:
    """compare and claims end with 2 and the file's name; the report shows it and ends well."""
    (a_run(tmp_path) / "00_start_here.json").write_text("{")
    for arguments in (["compare", tmp_path, tmp_path], ["claims", tmp_path]):
        ended = labkit(*arguments)
        assert ended.code == 2
        assert "00_start_here.json is not valid JSON" in ended.stderr
    assert labkit("report", tmp_path).code == 0


@pytest.mark.notebook
def test_run_shows_results_and_fails_with_the_log(tmp_path: Path) -> None:
    """A run of a good and a failing lab: table and report's path on stdout, cell, error and log on stderr, exit 1."""
    ended = subprocess.run(
        [sys.executable, "-m", "labkit", "run", "90", "91", "--out", tmp_path, "-p", "90.number=3"],
        capture_output=True,
        text=True,
        check=False,
        env={"LABKIT_ROOT": str(synthetic.ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert ended.returncode == 1
    assert f"Report: {tmp_path / 'report.html'}" in ended.stdout
    assert "number: 3 s" in ended.stdout
    assert "91_fails failed: ValueError: seed 7 is unlucky (in cell" in ended.stderr
    assert str(tmp_path / "logs" / "91_fails.log") in ended.stderr
    assert "Traceback" not in ended.stderr


class Serving:
    """Stands for a started `vllm serve`; notes what it was started with and that it was stopped."""

    url = "http://127.0.0.1:8123"
    base_url = f"{url}/v1"
    api_key = "two words"

    def __init__(self, command: str, *, dies: bool = False, folder: Path, **options: Any) -> None:
        self.command, self.options, self.dies, self.stopped, self.process = command, options, dies, False, self
        self.log_path = folder / "server.log"
        self.log_path.write_text("out of memory")

    def check(self) -> None:
        """A dead server says so; a live one gets Ctrl-C from the user."""
        if self.dies:
            raise ServerError("vllm serve died with signal 9", log_tail="out of memory")
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True


@pytest.mark.parametrize("dies", [False, True])
def test_serve_runs_until_it_is_stopped(
    labkit: Labkit, config: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """The true command is shown, then how to load it; Ctrl-C ends it well, its own death ends with 1 and its log."""
    started: list[Serving] = []

    def start(command: str, **options: Any) -> Serving:
        started.append(Serving(command, dies=dies, **options))
        return started[0]

    monkeypatch.setattr("labkit.serving.vllm.start", start)
    ended = labkit("serve", "vllm", "--model", config.parent, "--port", free_port())
    name = config.parent.name
    assert ended.code == (1 if dies else 0)
    assert started[0].command.startswith(f"vllm serve {config.parent} --served-model-name {name}")
    assert f"LABKIT_API_KEY='two words' labkit load http://127.0.0.1:8123 --model {name}" in ended.stderr
    assert started[0].stopped
    assert ended.stdout == ""
    assert ("out of memory" in ended.stderr) == dies
    assert started[0].log_path.exists() == dies  # the message names it
    shutil.rmtree(started[0].log_path.parent, ignore_errors=True)


@pytest.fixture
def hangup_ends() -> Iterator[None]:
    """SIGHUP's default: below `nohup` it is ignored, and the command would leave it so."""
    given = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, given)


@pytest.mark.usefixtures("hangup_ends")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_server_that_is_stopped_before_it_is_ready_leaves_no_folder(
    labkit: Labkit, config: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Exit 130, whichever signal it was, and the signals mean what they meant before."""
    folders: list[Path] = []

    def start(_command: str, *, folder: Path, **_options: Any) -> None:
        folders.append(folder)
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr("labkit.serving.vllm.start", start)
    before = signal.getsignal(number)
    ended = labkit("serve", "vllm", "--model", config.parent, "--port", free_port())
    assert (ended.code, "Traceback" in ended.stderr) == (130, False)
    assert not folders[0].exists()
    assert signal.getsignal(number) is before


def test_sizes() -> None:
    """Binary units are powers of 1024, decimal ones of 1000, case and blanks do not matter; other texts are refused
    with examples."""
    sizes = {
        "5": 5,
        str(10**18 - 1): 10**18 - 1,
        "1GiB": 2**30,
        "1 gb": 10**9,
        "2G": 2 * 10**9,
        "1.5KiB": 1536,
        "3MiB": 3 * 2**20,
        "7b": 7,
    }
    assert {text: parse_bytes(text) for text in sizes} == sizes
    for text in ("", "GiB", "-1", "1XB", "1e9", "nan", "1 G i B"):
        with pytest.raises(UsageError, match="1GiB"):
            parse_bytes(text)


def test_settings_have_the_type_that_they_look_like() -> None:
    """Numbers, booleans, text and an equals sign inside a value."""
    parsed = parse_settings(["n=3", "share=0.5", "on=true", "path=a=b", "prefix-words=4"])
    assert parsed == {"n": 3, "share": 0.5, "on": True, "path": "a=b", "prefix_words": 4}


def test_a_missing_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where only the pages are installed, a command that needs more says so; a fault of our own stays a traceback."""
    for name in ("aiohttp", "labkit.nothing"):
        error = ModuleNotFoundError(f"No module named {name!r}", name=name)
        monkeypatch.setattr(main, "app", Mock(side_effect=error))
        with pytest.raises(SystemExit if name == "aiohttp" else ModuleNotFoundError):
            main.main(["kv", "x"])
    told = capsys.readouterr().err
    assert "needs the package aiohttp" in told
    assert ".[cpu]" in told
