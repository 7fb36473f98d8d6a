"""Tests of repsim_utils.attacks."""
