"""What the replicas of a Ray Serve deployment logged: the reasons that a client never sees."""

from pathlib import Path


def logged_errors(application: str, deployment: str) -> list[str]:
    """The last lines of the tracebacks in the logs of a deployment's replicas; none where they are on another node.

    A client is told 500 and no more; Ray Serve writes the reason into the replica's log.
    """
    return [line for text in _logs(application, deployment) for line in last_lines(text)]


def last_lines(log: str) -> list[str]:
    """What each traceback in a log ends with: "KeyError: 'app'". Chained ones count once, by their last."""
    endings, inside = [], False
    for line in log.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line and not line[0].isspace():
            name = line.split(":")[0]
            inside = False
            if name.replace(".", "").replace("_", "").isalnum():
                endings.append(line)
    return endings


def _logs(application: str, deployment: str) -> list[str]:
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    replicas = client.get_serve_details()["applications"][application]["deployments"][deployment]["replicas"]
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    paths = [folder / str(replica["log_file_path"]).lstrip("/") for replica in replicas if replica["log_file_path"]]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()]
