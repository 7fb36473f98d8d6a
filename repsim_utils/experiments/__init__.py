"""Experiments of the book, one module each."""
