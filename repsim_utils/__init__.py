"""Measure how alike models come to represent the world, and what that costs."""

__version__ = "0.1.0"
