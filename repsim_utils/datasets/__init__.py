"""Data sets of the book."""
