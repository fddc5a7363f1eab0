"""How a wait is told of."""

from labkit.runs.runner import now_and_then


def test_a_wait_is_told_of_now_and_then() -> None:
    """Told of every quarter of a second for half a minute, a wait shows its first text and one every ten seconds."""
    clock, said = [0.0], list[str]()
    tell = now_and_then(said.append, every_s=10, now=lambda: clock[0])
    for quarter in range(120):
        clock[0] = quarter / 4
        tell(f"{clock[0]:g} s")
    assert said == ["0 s", "10 s", "20 s"]
