"""Documents and configuration that a reader relies on: links and commands lead somewhere, numbers are the data's."""

import os
import re
import subprocess
from datetime import datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.files import notebooks_path, root
from labkit.labs import LABS
from labkit.records.ledger import load_claims
from setup import install
from tests.unit.test_cli import COMMANDS
from tools import article, binder, prediction_sheet

DOCUMENTS = sorted([*root().glob("*.md"), *root().glob("docs/**/*.md"), *root().glob("[a-z]*/README.md")])
GUIDE = (root() / "docs" / "workshops.md").read_text(encoding="utf-8")
WORKSHOP = {path.stem: path.read_text(encoding="utf-8") for path in (root() / "docs" / "workshop").glob("*.md")}
CLAIMS, SECTIONS = load_claims(), article.load_sections()


@cache
def anchors(path: Path) -> set[str]:
    """A document's headings as GitHub makes links of them, and its own anchors."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


def test_links_commands_and_targets_exist() -> None:
    """In all documents: files and headings that are linked, commands of labkit, targets of make."""
    targets = set(re.findall(r"^([a-z-]+):", (root() / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, anchor = link.partition("#")
            path = (document.parent / file).resolve() if file else document
            if "://" not in link and not (path.exists() and (not anchor or anchor in anchors(path))):
                wrong.append((document.name, link))
        for shown in code:
            commands = set(re.findall(r"(?:^|[;&|] |/)labkit ([a-z][a-z-]*)", shown, re.MULTILINE)) - COMMANDS
            made = {word for line in re.findall(r"^make ([a-z -]+?)(?: [A-Z]+=|$)", shown) for word in line.split()}
            wrong += [(document.name, name) for name in commands | (made - targets)]
    assert wrong == []


def test_the_articles_map_is_current_and_whole() -> None:
    """docs/article.md is what `make article` writes now, and every claim of the ledger is in a section, in order."""
    assert article.main(["--check"]) == 0
    assert {name for section in SECTIONS for name in section.claims} == set(CLAIMS)
    assert [section.section for section in SECTIONS if list(section.claims) != sorted(set(section.claims))] == []


def test_tested_is_only_what_a_rule_and_a_lab_make_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its lab or its rule a claim is tested nowhere, and the page says so; an old page is noticed."""
    left = {name: lab for name, lab in LABS.items() if name != "03_prefix_caching"}
    row = next(line for line in article.page(SECTIONS, CLAIMS, left).splitlines() if line.startswith('| <a id="c06"'))
    assert row.endswith("| no lab | 03 (not written yet) |")
    assert article.tested_in(CLAIMS["C06"].model_copy(update={"rule": None}), LABS) == []
    with pytest.raises(UsageError, match="'Made': no claim C99"):
        article.page([article.Section(section="Made", claims=("C99",))], CLAIMS, LABS)
    monkeypatch.setattr(article, "PAGE", tmp_path / "article.md")
    assert article.main(["--check"]) == 1
    assert article.main([]) == article.main(["--check"]) == 0


def test_the_prediction_sheet_is_current() -> None:
    """It is what `make prediction-sheet` writes now: each question of each notebook, with its options or its unit."""
    page = prediction_sheet.page()
    assert prediction_sheet.PAGE.read_text(encoding="utf-8") == page
    for lab in LABS.values():
        asked = (notebooks_path() / lab.notebook).read_text(encoding="utf-8").count("lab.predict(")
        assert len(list(prediction_sheet.predictions(lab))) == asked, lab.name
    assert "| With 16 clients instead of 1, how much later is the slowest first token? | ☐ no" in page


def rows_after(heading: str, text: str = GUIDE) -> list[list[str]]:
    """The cells of the first table under a heading, its head left out."""
    table = re.search(r"\n\|---.*\n((?:\|.*\n)*)", text.partition(f"\n{heading}\n")[2])
    assert table, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


PLANS = ["## Half a day: understand", "## Half a day: choose", "## A full day"] + [
    f"**{line}**" for line in re.findall(r"^\*\*((?:Mon|Tues|Wednes|Thurs|Fri)day: .+)\*\*$", GUIDE, re.MULTILINE)
]


def test_the_guides_minutes_are_the_labs() -> None:
    """Each lab has its row with the minutes of labs.yaml, and its notes. A plan's clock times follow from its minutes,
    which add up and give a lab more than its engine takes."""
    minutes = {row[0]: row[1] for row in rows_after("## The labs in minutes")}
    names = {name.replace("_", " "): lab for name, lab in LABS.items()}
    assert minutes == {name: f"{lab.minutes:g}" for name, lab in names.items()}
    assert [name for name in names if WORKSHOP["lab-by-lab"].count(f"\n**{name}.** ") != 1] == []
    assert len(PLANS) == 3 + 5
    for plan in PLANS:
        *blocks, total = rows_after(plan)
        given = [int(row[1]) for row in blocks]
        assert total[1] == f"**{sum(given)}**", plan
        begin = datetime.strptime(blocks[0][0], "%H:%M")
        starts = [begin + timedelta(minutes=sum(given[:n])) for n in range(len(given) + 1)]
        assert [row[0] for row in (*blocks, total)] == [f"{start:%H:%M}" for start in starts], plan
        taught = [(row[2], int(row[1])) for row in blocks if row[2][:2].isdigit()]
        assert [lab for lab, spent in taught if spent <= float(minutes[lab])] == [], plan


def test_the_guides_messages_are_labkits() -> None:
    """Each piece of a message in the table of failures stands in the package's source, so a learner can meet it."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in (root() / "labkit").rglob("*.py"))
    messages = [row[0].strip("`") for row in rows_after("## Messages", WORKSHOP["failures"])]
    assert len(messages) > 10
    assert [message for message in messages if message not in source] == []


def test_the_handouts_metrics_and_flags_are_vllms() -> None:
    """Each vLLM metric and flag of the handout is in the installed vLLM's source."""
    package = Path(str(find_spec("vllm").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    metrics = "".join(file.read_text(encoding="utf-8") for file in (package / "v1" / "metrics").glob("*.py"))
    arguments = (package / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    named = re.findall(r"`(vllm:\w+)`", WORKSHOP["handout"])
    flags = re.findall(r"`--([a-z-]+)", WORKSHOP["handout"])
    assert min(len(named), len(flags)) > 8
    assert [name for name in named if f'"{name.removesuffix("_total")}' not in metrics] == []
    assert [flag for flag in flags if f"--{flag}" not in arguments] == []


def test_the_quiz_has_a_key() -> None:
    """Each question has options A to D and a letter in the key; the key's headings exist in the lab that it names."""
    questions = re.findall(r"^\*\*(\d+)\.\*\* ", WORKSHOP["quiz"], re.MULTILINE)
    letters = re.findall(r"^- ([A-D]): ", WORKSHOP["quiz"], re.MULTILINE)
    key = re.findall(r"^\| (\d+) \| ([A-D]) \| .* \| (.*) \|$", WORKSHOP["quiz-key"], re.MULTILINE)
    assert questions == [number for number, *_ in key] == [str(number) for number in range(1, 11)]
    assert letters == [*"ABCD"] * 10
    for _, _, where in key:
        for number, cells in re.findall(r"(\d\d[a-z]?), ([^;]*)", where):
            (lab,) = [lab for lab in LABS.values() if lab.number == number]
            text = (notebooks_path() / lab.notebook).read_text(encoding="utf-8").lower()
            assert [cell for cell in re.findall(r"\*(.*?)\*", cells) if cell.lower() not in text] == [], number


def test_binder_installs_the_pages_lock_on_the_oldest_python() -> None:
    """By hash and nothing beside it, without an address or a path of a machine."""
    files = {path.name: path.read_text() for path in binder.BINDER.iterdir()}
    lines = [line for line in files["requirements.txt"].splitlines() if not line.startswith("#")]
    assert lines == ["--require-hashes", "-r ../requirements/pages.lock"]
    assert files["runtime.txt"] == "python-{}.{}\n".format(*install.OLDEST)
    address = r"index-url|find-links|://|trusted-host|(?<![\w.}])/\w+/"
    assert [name for name, text in files.items() if re.search(address, text.replace("#!/bin/bash", ""))] == []


def test_binder_starts_a_command_with_the_page_template(tmp_path: Path) -> None:
    """The repository's Jupyter folder comes before what was set; both scripts can be run."""
    assert subprocess.run(["bash", "-n", str(binder.BINDER / "postBuild")], check=False).returncode == 0
    assert os.access(binder.BINDER / "postBuild", os.X_OK)
    command = [str(binder.BINDER / "start"), "bash", "-c", 'echo "$JUPYTER_PATH $1"', "-", "two words"]
    environment = {**os.environ, "REPO_DIR": str(root()), "JUPYTER_PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    folders, words = done.stdout.strip().split(" ", 1)
    first, second = folders.split(os.pathsep)
    assert (Path(first) / "voila" / "templates" / "offline").is_dir()
    assert (second, words) == (str(tmp_path), "two words")


def test_binder_tries_every_lab_without_an_engine(tmp_path: Path) -> None:
    """And each page, from notebooks that exist."""
    pages = {f"widgets/{path.stem}" for path in (root() / "notebooks" / "widgets").glob("*.ipynb")}
    assert set(binder.notebooks()) == {name for name, lab in LABS.items() if lab.engine == "none"} | pages
    commands = list(binder.steps(tmp_path / "venv", tmp_path))
    assert [command[-2] for command in commands[2:] if not Path(command[-2]).exists()] == []
