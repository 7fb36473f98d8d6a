"""Tests of `repsim_utils.models`."""
