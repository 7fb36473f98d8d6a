"""Networks with a named representation."""
