"""binder/: repo2docker's configuration files say what the locks say, and nothing of any machine."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from labkit.files import root
from labkit.labs import LABS
from setup import install
from tools import binder

# What repo2docker reads, by its documentation; a file of any other name would be passed over in silence.
KNOWN = {"requirements.txt", "runtime.txt", "postBuild", "start"}


def lines(path: Path) -> Iterator[str]:
    """The lines of a requirements file that say something, and those of the files that it names."""
    for line in path.read_text().splitlines():
        said = line.split("#")[0].strip()
        if said.startswith("-r "):
            yield from lines((path.parent / said.removeprefix("-r ")).resolve())
        elif said:
            yield said


def test_there_is_nothing_that_repo2docker_would_not_read() -> None:
    """Only files of the names that it knows."""
    assert {path.name for path in binder.BINDER.iterdir()} == KNOWN


def test_the_packages_are_those_of_the_pages_lock() -> None:
    """What is installed is the lock as it stands, by hash, and nothing beside it."""
    lock = list(lines(root() / "requirements" / "pages.lock"))
    assert list(lines(binder.BINDER / "requirements.txt")) == ["--require-hashes", *lock]
    pins = [one for one in lock if "==" in one]
    assert len(pins) > 20
    assert sum("--hash=sha256:" in one for one in lock) >= len(pins)


def test_the_python_is_the_one_that_the_course_is_tested_on() -> None:
    """runtime.txt pins major and minor version, as repo2docker wants it: the oldest Python that set-up takes."""
    assert (binder.BINDER / "runtime.txt").read_text() == "python-{}.{}\n".format(*install.OLDEST)


def test_no_address_and_no_path_of_a_machine_is_in_it() -> None:
    """Neither an index nor a URL nor an absolute path: every registry that has the packages will do."""
    for path in binder.BINDER.iterdir():
        text = path.read_text().replace("#!/bin/bash", "")
        assert not re.search(r"index-url|find-links|://|trusted-host|(?<![\w.}])/\w+/", text), path.name


def test_both_scripts_can_be_run() -> None:
    """postBuild and start are executable bash without a syntax error, and postBuild resolves nothing."""
    for name in ("postBuild", "start"):
        assert os.access(binder.BINDER / name, os.X_OK), name
        assert subprocess.run(["bash", "-n", str(binder.BINDER / name)], check=False).returncode == 0
    assert "--no-deps --no-build-isolation" in (binder.BINDER / "postBuild").read_text()


def test_start_adds_the_page_template_and_passes_the_command_on(tmp_path: Path) -> None:
    """The command runs with the repository's Jupyter folder in front of what was set before."""
    command = [str(binder.BINDER / "start"), "bash", "-c", 'echo "$JUPYTER_PATH $1"', "-", "two words"]
    environment = {**os.environ, "REPO_DIR": str(root()), "JUPYTER_PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    folders, words = done.stdout.strip().split(" ", 1)
    first, second = folders.split(os.pathsep)
    assert (Path(first) / "voila" / "templates" / "offline").is_dir()
    assert (second, words) == (str(tmp_path), "two words")


def test_every_lab_without_an_engine_is_tried(tmp_path: Path) -> None:
    """The check runs each lab whose entry says that it needs no engine, and each page, from notebooks that exist."""
    tried = list(binder.notebooks())
    assert {name for name, lab in LABS.items() if lab.engine == "none"} <= set(tried)
    assert {path.stem for path in (root() / "notebooks" / "widgets").glob("*.ipynb")} == {
        Path(name).name for name in binder.PAGES
    }
    commands = list(binder.steps(tmp_path / "venv", tmp_path))
    assert commands[0][-1].endswith("binder/requirements.txt")
    assert all(Path(command[-2]).exists() for command in commands[2:])
    assert len(commands) == 2 + len(tried)
