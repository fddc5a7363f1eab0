"""Values as people type them on the command line: sizes with a unit, KEY=VALUE."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from labkit.errors import UsageError

# What vLLM 0.32 takes when nobody says a block size.
CPU_BLOCK_SIZE, GPU_BLOCK_SIZE = 128, 16
UNITS = {"": 1, "b": 1} | {
    f"{prefix}{ending}": base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for base, endings in ((1000, ("", "b")), (1024, ("i", "ib")))
    for ending in endings
}


def parse_bytes(text: str) -> int:
    """ "1GiB", "500 MB", "2g" or plain bytes. UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in UNITS:
        raise UsageError(f"{text!r} is no number of bytes", remedy="write it as 1073741824, 1GiB, 500MB or 2G")
    return int(float(match[1]) * UNITS[match[2]]) if "." in match[1] else int(match[1]) * UNITS[match[2]]


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["prefix_words=400"]` as names and values; a value is a number, true, false or text. UsageError without `=`."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{setting!r} sets nothing", remedy="write KEY=VALUE")
        try:
            found[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name.strip().replace("-", "_")] = value
    return found
