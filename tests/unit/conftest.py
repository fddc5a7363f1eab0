"""Fixtures of the unit tests."""

from tests.unit.command import labkit

__all__ = ["labkit"]
