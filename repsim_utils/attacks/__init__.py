"""Attacks on models, and what becomes of them on other models."""
