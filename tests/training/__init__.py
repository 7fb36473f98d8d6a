"""Tests of `repsim_utils.training`."""
