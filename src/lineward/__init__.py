"""Lineward watches a production line and says, for every part, pass, fail or review."""

from importlib.metadata import version

__version__ = version("lineward")
