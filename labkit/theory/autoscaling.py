"""How many replicas a load asks for, by the rule that Ray Serve scales by.

Rule (Ray Serve 2.60, ray/serve/autoscaling_policy.py): ongoing requests over the target for each, rounded up, within
the limits. Ongoing requests = rate x duration (J. D. C. Little, "A Proof for the Queuing Formula L = lambda W", 1961).
"""


def desired_replicas(
    rate: float, duration_s: float, target_ongoing: float, min_replicas: int, max_replicas: int
) -> int:
    """The replicas that `rate` requests per second of `duration_s` each ask for, while no queue has built up."""
    needed = int(-(-rate * duration_s // target_ongoing))  # // rounds down; of the negative number, up
    return min(max(needed, min_replicas), max_replicas)
