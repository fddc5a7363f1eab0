"""CHANGELOG.md keeps its form: Unreleased first, then versions with their days, the newest first; links that lead."""

import re
from datetime import date

from packaging.version import Version

from labkit import __version__
from labkit.files import root

TEXT = (root() / "CHANGELOG.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"}


def test_unreleased_stands_first_and_versions_have_days() -> None:
    """Everything after Unreleased is `[version] - day`, days descend, and none is newer than the package says."""
    assert HEADINGS[0] == "[Unreleased]"
    matches = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", one) for one in HEADINGS[1:]]
    released = [(Version(one[1]), date.fromisoformat(one[2])) for one in matches if one]
    assert len(released) == len(matches)
    assert released == sorted(released, reverse=True)
    assert all(version <= Version(__version__) for version, _ in released)


def test_kinds_of_change_are_the_forms_own() -> None:
    """The headings below a version are those of the form, and known limits."""
    found = re.findall(r"^### (.+)$", TEXT, re.MULTILINE)
    assert found
    assert set(found) <= KINDS


def test_files_that_are_linked_exist() -> None:
    """Every relative link, here and in CONTRIBUTING.md, leads to a file, and every make target named is one."""
    targets = set(re.findall(r"^([a-z-]+):", (root() / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for text in (TEXT, (root() / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        links = [one for one in re.findall(r"\]\(([^)#]+)", text) if "://" not in one]
        assert [one for one in links if not (root() / one).exists()] == []
        assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
