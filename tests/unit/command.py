"""The command line in this process, as a fixture (see conftest.py)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on stdout; fails when anything else stands there."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


Labkit = Callable[..., Ended]


@pytest.fixture
def labkit(capsys: pytest.CaptureFixture[str]) -> Labkit:
    """Runs a command in this process."""
    from labkit.cli import main

    def call(*arguments: object) -> Ended:
        with pytest.raises(SystemExit) as caught:
            main.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        return Ended(int(caught.value.code or 0), out, err)

    return call
