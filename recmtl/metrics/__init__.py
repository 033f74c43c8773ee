"""Metrics of every task over every row once, exact on any number of ranks; reports read entropy and jackknife too."""
