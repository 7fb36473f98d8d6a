"""Tests of `repsim_utils.metrics`."""
