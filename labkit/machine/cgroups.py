"""The CPU quota and memory limit that a container sets, in cgroup version 1 and 2.

A container that may use two of 64 cores still sees 64 in `os.cpu_count()` and in `/proc`; only its control group tells.
A group's limit is the smallest one on the way from the group to the root, so every level is read. Source of the files'
meaning: the Linux kernel's documentation, admin-guide/cgroup-v2, admin-guide/cgroup-v1/memory and scheduler/sched-bwc.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE_CACHE = ("inactive_file", "total_inactive_file")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the control group allows; None where it sets no limit."""

    cpus: float | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None


def parse_membership(text: str) -> dict[str, str]:
    """`/proc/self/cgroup` as controller name -> path; version 2's single line has the empty name."""
    lines = (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)
    return {name: path for _, controllers, path in lines for name in controllers.split(",")}


def parse_cpu_max(text: str) -> float | None:
    """Version 2's `cpu.max`: "max 100000" or "150000 100000" (quota and period in microseconds) -> CPUs."""
    quota, _, period = text.strip().partition(" ")
    return cpus_of_quota(quota, period or "100000")


def cpus_of_quota(quota_us: str, period_us: str) -> float | None:
    """CPUs in a quota; None for "max", -1, or text that is not a number."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def parse_bytes(text: str) -> int | None:
    """A byte count; None for "max" and for version 1's "no limit" (the largest page-aligned 63-bit number)."""
    try:
        count = int(text)
    except ValueError:
        return None
    return count if 0 <= count < 2**62 else None


def parse_reclaimable(text: str) -> int:
    """Bytes of `memory.stat` that the kernel gives back on demand: counted as used, yet free for a program."""
    pairs = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    return max((parse_bytes(pairs[key]) or 0 for key in PAGE_CACHE if key in pairs), default=0)


def read_text(path: Path) -> str:
    """The file's text, or "" where it cannot be read: an absent limit is no limit."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def levels(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and its parents up to the mount; only the mount where a container does not see the path."""
    folder = mount / path.strip("/")
    while folder != mount and mount in folder.parents:
        if folder.is_dir():
            yield folder
        folder = folder.parent
    yield mount


def read_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits over this process's groups, in both versions; `root` is where /proc and /sys hang."""
    member = parse_membership(read_text(root / "proc/self/cgroup"))
    base = root / "sys/fs/cgroup"
    quotas, bounded = _quotas(base, member), _memories(base, member)
    return Limits(
        cpus=min(quotas, default=None),
        memory_bytes=min((limit for limit, _ in bounded), default=None),
        memory_available_bytes=min((free for _, free in bounded), default=None),
    )


def _v2_folders(base: Path, member: dict[str, str]) -> list[Path]:
    """Version 2's levels, mounted alone or, beside version 1, as "unified"."""
    return [folder for mount in (base, base / "unified") for folder in levels(mount, member.get("", "/"))]


def _v1_folders(base: Path, member: dict[str, str], controller: str) -> list[Path]:
    return list(levels(base / controller, member.get(controller, "/")))


def _quotas(base: Path, member: dict[str, str]) -> list[float]:
    found = [parse_cpu_max(read_text(folder / "cpu.max")) for folder in _v2_folders(base, member)]
    found += [_v1_cpus(folder) for folder in _v1_folders(base, member, "cpu")]
    return [quota for quota in found if quota is not None]


def _memories(base: Path, member: dict[str, str]) -> list[tuple[int, int]]:
    found = [_memory(folder, "memory.max", "memory.current") for folder in _v2_folders(base, member)]
    v1 = _v1_folders(base, member, "memory")
    found += [_memory(folder, "memory.limit_in_bytes", "memory.usage_in_bytes") for folder in v1]
    return [pair for pair in found if pair is not None]


def _v1_cpus(folder: Path) -> float | None:
    return cpus_of_quota(read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us"))


def _memory(folder: Path, limit_name: str, usage_name: str) -> tuple[int, int] | None:
    """(limit, available) in bytes of one group, or None without a limit."""
    limit = parse_bytes(read_text(folder / limit_name))
    if limit is None:
        return None
    usage = parse_bytes(read_text(folder / usage_name)) or 0
    reclaimable = parse_reclaimable(read_text(folder / "memory.stat"))
    return limit, max(0, min(limit, limit - usage + reclaimable))
