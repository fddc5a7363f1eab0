"""Serving Lab's small package: what surrounds the engines, never what hides them."""

__version__ = "0.1.0"
