"""Measure how alike models come to represent the world, and what that costs."""

import os

# Before torch is loaded: threads that wait for one another spin only briefly, then sleep. Where two trainings share the
# cores, long spinning can stall both (benchmarks/waiting.py).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"


class RepsimError(Exception):
    """Something failed for a reason that the message states in full: the command shows it without a traceback."""


def reason(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
