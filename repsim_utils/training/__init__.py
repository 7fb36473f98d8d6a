"""Training loops, one for each family of models."""
