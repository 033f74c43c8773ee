"""Synthetic logs whose true probabilities are known."""
