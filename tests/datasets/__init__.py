"""Tests of `repsim_utils.datasets`."""
