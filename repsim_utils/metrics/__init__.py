"""Similarity of two representations of the same probe. Depends on nothing else of this package."""

from repsim_utils.metrics.kernel import cka
from repsim_utils.metrics.suite import METRICS, PAPER, similarity

__all__ = ["METRICS", "PAPER", "cka", "similarity"]
