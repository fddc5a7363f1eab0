"""What holds for all tests."""

import pytest
from hypothesis import settings

# No test is judged by its time: a busy machine may take a while over an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A server or a browser that answered late once may answer in time the next: a second try, which the summary tells.
# Whatever else is raised, and a second failure, counts at once.
SECOND_TRY = pytest.mark.flaky(reruns=1, only_rerun=["AssertionError", "TimeoutError"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives tests on a real engine or browser their second try; the course's run brings its own, lab by lab."""
    for item in items:
        real = item.get_closest_marker("engine") or item.get_closest_marker("browser")
        if real and not item.get_closest_marker("notebook"):
            item.add_marker(SECOND_TRY)
