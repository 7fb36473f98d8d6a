"""Measure how alike models come to represent the world, and what that costs."""

__version__ = "0.1.0"


class RepsimError(Exception):
    """Something failed for a reason that the message states in full: the command shows it without a traceback."""
