"""Serving Lab's library: what surrounds the engines, without hiding them."""

__version__ = "0.1.0"
