"""What scale.py finds out and scale_page.py shows."""

from __future__ import annotations

from dataclasses import dataclass

HIDDEN = ("ids", "all-reduce")
"""Parts that run beside the others."""


@dataclass(frozen=True)
class Estimate:
    """A workload on a number of GPUs; what is None does not fit."""

    gpus: int
    largest_dim: int
    """Widest embeddings that fit, in steps of 4; 0: none."""
    sharding: dict[str, str] | None = None
    """By table."""
    memory: dict[str, int] | None = None
    """Bytes of the fullest rank, by part."""
    memory_imbalance: float | None = None
    """Bytes of tables on the fullest rank over the mean of all."""
    time_imbalance: float | None = None
    """Lookup, outputs, gradients and update on the slowest rank over the mean of all."""
    step_ms: dict[str, float] | None = None
    """Of the slowest rank, by part."""
    plan_cpu_seconds: float | None = None

    def examples_per_second(self, batch_size: int) -> float:
        """By the longer of what runs one after the other and what runs beside it."""
        assert self.step_ms is not None
        hidden = max(self.step_ms[part] for part in HIDDEN)
        shown = sum(ms for part, ms in self.step_ms.items() if part not in HIDDEN)
        return 1000 * batch_size * self.gpus / max(hidden, shown)
