"""A batch run on a Ray cluster: each lab on a node of its own, its record, notebook and log brought home.

    run_on_cluster("10.0.0.1:6379", ["01", "02"])

`nodes` knows what a node is and which lab fits it, `dispatch` who runs where and what happens when a node is lost;
neither knows Ray. `cluster` is Ray's side of it; `room` and `lab_process` run on the node.
"""

from labkit.remote.run import run_on_cluster

__all__ = ["run_on_cluster"]
