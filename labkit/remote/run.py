"""`labkit run --ray ADDRESS`: the plan is made for the cluster's strongest node, and each lab goes where it fits."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from labkit.labs import LABS, Lab
from labkit.plan import make_plan
from labkit.remote.cluster import join
from labkit.remote.nodes import RAY_ADDRESS
from labkit.runner import RunResult, opening_lines, run_labs


def run_on_cluster(
    address: str,
    names: Sequence[str] = (),
    *,
    profile: str | None = None,
    out_dir: Path | None = None,
    resume: bool = False,
    settings: Sequence[str] = (),
    labs: Mapping[str, Lab] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """As `make_plan` and `run_labs`, on the Ray cluster whose head is at `address` (HOST:PORT, or "auto").

    UsageError, before any lab starts: no cluster there, no right to it, no node that fits, another course on all nodes.
    """
    labs = labs or LABS
    with join(address, say=say) as cluster:
        strongest = cluster.strongest
        plan = make_plan(
            names,
            profile=profile,
            out_dir=out_dir,
            resume=resume,
            settings=[*_addresses(cluster.address, labs), *settings],
            labs=labs,
            machine=strongest.machine,
            versions=strongest.versions,
            models=lambda _: None,  # the nodes that run the labs fetch them, each into its own cache
        )
        executor = cluster.executor(plan)
        say("\n".join(opening_lines(plan)))
        return run_labs(plan, executor=executor)


def _addresses(address: str, labs: Mapping[str, Lab]) -> list[str]:
    """A lab that deploys into a cluster gets this one, unless the user's own settings, which come later, say other."""
    return [f"all.{RAY_ADDRESS}={address}"] if any(RAY_ADDRESS in lab.parameters for lab in labs.values()) else []
