"""The learner's copies of the notebooks: clean, of the right sizes, and never overwritten once they are a learner's."""

import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.files import notebooks_path
from labkit.labs import LABS, Profile, load_profile
from labkit.runs import workspace
from tests.unit import synthetic

GPU_24 = synthetic.machine(gpu_gib=24)
NAME = "04_chunked_prefill"


@pytest.fixture(scope="module")
def gpu_profile() -> Profile:
    """The GPU profile, sized to a card of 24 GiB."""
    return load_profile("gpu", GPU_24)


def read(folder: Path, name: str = NAME) -> Any:
    """A notebook of the workspace."""
    return nbformat.read(folder / f"{name}.ipynb", as_version=4)


def parameters_of(notebook: Any) -> str:
    """The text of its folded parameters and of those in view."""
    tagged = [cell for cell in notebook.cells if {"defaults", "parameters"} & set(cell.metadata.get("tags", ()))]
    return "\n".join(cell.source for cell in tagged)


def save(notebook: Any, folder: Path, name: str = NAME) -> None:
    """As JupyterLab does."""
    nbformat.write(notebook, folder / f"{name}.ipynb")


def test_a_gpus_workspace_has_its_sizes_and_no_outputs(tmp_path: Path, gpu_profile: Profile) -> None:
    """Each lab's copy assigns what the profile says, keeps every other parameter, and shows no output; an untouched
    copy gets the sizes of another profile."""
    laid = workspace.lay_out(tmp_path, gpu_profile)
    assert {f"{name}.ipynb" for name in LABS} <= set(laid.written)
    for name, lab in LABS.items():
        notebook = read(tmp_path, name)
        assert not any(cell.get("outputs") for cell in notebook.cells)
        values: dict[str, Any] = {}
        exec(parameters_of(notebook), {}, values)
        assert set(values) == set(lab.parameters)
        assert values == values | gpu_profile.parameters(lab)
    laid = workspace.lay_out(tmp_path, load_profile("cpu", GPU_24))
    assert (f"{NAME}.ipynb" in laid.written, laid.kept) == (True, ())
    assert 'model = "smollm2-135m"' in parameters_of(read(tmp_path))


def test_every_link_leads_to_a_file_of_the_workspace(tmp_path: Path, gpu_profile: Profile) -> None:
    """JupyterLab opens nothing outside that folder: linked guides and data come along, those linked there too."""
    workspace.lay_out(tmp_path, gpu_profile)
    links = []
    for file in [*tmp_path.rglob("*.ipynb"), *tmp_path.rglob("*.md")]:
        cells = nbformat.read(file, as_version=4).cells if file.suffix == ".ipynb" else []
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown") or file.read_text()
        links += [file.parent / link for link in re.findall(r"\]\(([^)#:]+)[#)]", text)]
    assert {tmp_path / "docs" / "ray-serve.md", tmp_path / "data" / "selector" / "rules.yaml"} <= set(links)
    assert [link for link in links if not link.is_file() or not link.resolve().is_relative_to(tmp_path)] == []


def test_what_a_learner_did_is_kept(tmp_path: Path, gpu_profile: Profile) -> None:
    """An edited cell or an output: the next layout leaves the notebook byte by byte as it is."""
    workspace.lay_out(tmp_path, gpu_profile)
    edited, ran = (read(tmp_path) for _ in range(2))
    edited.cells[-1].source += "\nmy note"
    cell = next(cell for cell in ran.cells if cell.cell_type == "code")
    cell.execution_count, cell.outputs = 1, [nbformat.v4.new_output("stream", text="hello")]
    path = tmp_path / f"{NAME}.ipynb"
    for text in (nbformat.writes(edited), nbformat.writes(ran)):
        path.write_text(text, encoding="utf-8")
        assert workspace.lay_out(tmp_path, gpu_profile).kept == (path.name,)
        assert path.read_text(encoding="utf-8") == text


NOT_NOTEBOOKS = (
    "", "[]", "{}", '{"nbformat": 4}', '{"cells": 3, "metadata": 3, "nbformat": 4}', "\xff",
    '{"cells": [{}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
)  # fmt: skip


@pytest.mark.parametrize("broken", NOT_NOTEBOOKS)
def test_a_file_that_is_not_a_notebook_is_kept_and_named(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is in a lab's place, the command lays out the others and says what to do about it."""
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path))
    path = tmp_path / f"{NAME}.ipynb"
    path.write_text(broken, encoding="latin-1")
    assert workspace.main(["--profile", "cpu"]) == 0
    assert f"not notebooks: {path.name} (rename or delete" in capsys.readouterr().err
    assert path.read_text(encoding="latin-1") == broken
    assert (tmp_path / "00_start_here.ipynb").is_file()
    assert workspace.newer_version(path) == ""


def test_linked_files_that_a_learner_edited_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_profile: Profile
) -> None:
    """An edited guide, rule file or form is kept and named; a copy as laid out follows the course, also beside a lab
    that was run; an edited copy counts as outdated if its original has changed, or may have: without hashes."""
    course = tmp_path / "course"
    shutil.copytree(notebooks_path(), course / "notebooks")
    for folder in ("data", "docs", "handlers", "applications", "course"):
        shutil.copytree(notebooks_path().parent / folder, course / folder)
    monkeypatch.setattr("labkit.runs.workspace.notebooks_path", lambda: course / "notebooks")
    mine = tmp_path / "mine"
    assert workspace.lay_out(mine, gpu_profile).kept == ()
    names = ("data/selector/rules.yaml", "docs/ray-serve.md", "widgets/selector.ipynb")
    for name in names[:2]:
        (mine / name).write_text(f"mine: {name}")
    assert set(workspace.lay_out(mine, gpu_profile).kept) == set(names[:2])
    for original in (course / names[0], course / "docs" / "gpu.md", course / "notebooks" / names[2]):
        original.write_text(original.read_text() + "\n")
    labs = sorted(path.name for path in mine.glob("*.ipynb") if names[2] in path.read_text())
    for lab in labs:
        notebook = nbformat.read(mine / lab, as_version=4)
        notebook.cells[-1].source += "\nmy note"
        nbformat.write(notebook, mine / lab)
    laid = workspace.lay_out(mine, gpu_profile)
    assert (sorted(laid.kept), laid.outdated) == (sorted([*labs, *names[:2]]), names[:1])
    assert labs
    assert [(mine / name).read_text() for name in names[:2]] == [f"mine: {name}" for name in names[:2]]
    assert (mine / names[2]).read_bytes() == (course / "notebooks" / names[2]).read_bytes()
    (mine / workspace.COPIES).write_text("[")
    laid = workspace.lay_out(mine, gpu_profile)
    assert (set(laid.kept) - set(labs), set(laid.outdated)) == (set(names[:2]), set(names[:2]))


def test_folders_and_files_in_the_way_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in the place of a linked file is kept; where nothing can be written, the command says so and ends."""
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path))
    (tmp_path / "docs" / "ray-serve.md").mkdir(parents=True)
    assert workspace.main(["--profile", "cpu"]) == 0
    assert "kept as you left them: docs/ray-serve.md" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "docs")
    (tmp_path / "docs").write_text("")
    assert workspace.main(["--profile", "cpu"]) == 1
    assert f"exists: '{tmp_path / 'docs'}'\n  To fix it: rename" in capsys.readouterr().err


def test_a_notebook_says_that_a_newer_version_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_profile: Profile
) -> None:
    """A kept copy of a lab that has changed since says so, by name; one of the present version says nothing."""
    course = tmp_path / "course"
    course.mkdir()
    source = nbformat.read(notebooks_path() / f"{NAME}.ipynb", as_version=4)
    save(source, course)
    monkeypatch.setattr("labkit.runs.workspace.notebooks_path", lambda: course)
    mine = tmp_path / "mine"
    workspace.lay_out(mine, gpu_profile)
    notebook = read(mine)
    notebook.cells[-1].source += "\nmy note"
    save(notebook, mine)
    assert workspace.newer_version(mine / f"{NAME}.ipynb") == ""
    source.cells[0].source += "\nA better first sentence."
    save(source, course)
    assert f"rename {NAME}.ipynb" in workspace.newer_version(mine / f"{NAME}.ipynb")
    laid = workspace.lay_out(mine, gpu_profile)
    assert (laid.kept, laid.outdated) == ((f"{NAME}.ipynb",), (f"{NAME}.ipynb",))


@given(
    values=st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=3)),
    )
)
def test_only_the_values_change(values: dict[str, Any]) -> None:
    """Whatever is put in, the cell assigns it, and comments, order and the other values stay."""
    source = 'a = 1  # first, ä\nb = [\n    1,\n    2,\n]  # second\nc = "x"  # third'
    changed = workspace.with_parameters(source, values)
    found: dict[str, Any] = {}
    exec(changed, found)
    assert {name: found[name] for name in "abc"} == {"a": 1, "b": [1, 2], "c": "x"} | values
    assert [comment in changed for comment in ("# first, ä", "# second", "# third")] == [True] * 3


def test_the_command_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make lab`'s first step names the folder and the profile; an unknown profile ends with 2 and a remedy."""
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path / "mine"))
    assert workspace.main(["--profile", "cpu"]) == 0
    assert "profile cpu" in capsys.readouterr().err
    assert (tmp_path / "mine" / "00_start_here.ipynb").is_file()
    assert workspace.main(["--profile", "cup"]) == 2
    assert "cup" in capsys.readouterr().err
