"""Tests of `repsim_utils.experiments`."""
