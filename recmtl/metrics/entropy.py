"""What predicting the base rate costs: the measure of every log loss."""

from __future__ import annotations

import math


def entropy(rate: float) -> float:
    """Log loss, in nats, of predicting the base rate for every row: −p ln p − (1 − p) ln(1 − p)."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)
