"""What holds for all tests."""

from hypothesis import settings

# No test is judged by its time: a busy machine may take a while over an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
