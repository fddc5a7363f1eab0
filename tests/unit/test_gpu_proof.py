"""`make gpu-proof` without a GPU reports the checks that it could not run, and does not fail."""

import json
from pathlib import Path

import pytest

from tools import gpu_proof


def test_without_a_gpu_each_check_says_why_it_was_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of JSON for the machine and for each check; none failed, none claims to be done, each has its reason."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # also where the tests run beside a GPU
    assert gpu_proof.main([]) == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["check"] for row in rows] == ["machine", *gpu_proof.CHECKS]
    assert {row["status"] for row in rows[1:]} == {"not checked"}
    assert all("GPU" in row["why"] for row in rows[1:])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def test_the_checks_fit_into_ten_minutes() -> None:
    """The limits of all checks together are ten minutes at most."""
    assert sum(limit_s for _, limit_s in gpu_proof.CHECKS.values()) <= 600
