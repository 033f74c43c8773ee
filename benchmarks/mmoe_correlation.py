"""MMoE's synthetic experiment (Ma et al., KDD 2018, sections 3.2 and 5.1): does it gain where tasks are less alike?

Two regression tasks on x ~ N(0, I), D numbers. With orthogonal unit vectors u1, u2 and a correlation p,

    w1 = c·u1,  w2 = c·(p·u1 + √(1 − p²)·u2),
    y_k = w_k·x + Σ_i sin(α_i·(w_k·x) + β_i) + ε,  ε ~ N(0, 0.01).

α, β ~ N(0, 1) are drawn once a seed, for both tasks. Sizes are the paper's: D = 100, 8 experts of 16 units, towers of 8
(the baselines are widened until they have as many parameters as MMoE with its gates). For every seed and correlation
all models see the same batches, fresh ones at every step, and are measured on the same test rows: mean squared error,
the mean of both tasks. Every learning rate is tried for every model and correlation; the best one on average counts.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
import torch
import tyro
from common import RESULTS, machine, markdown_table, write_results
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from recmtl.config import MODELS
from recmtl.models import Inputs, Model
from recmtl.models.base import SHARED
from recmtl.schema import Task

SIZES: dict[str, dict[str, Any]] = {
    "shared_bottom": {"bottom": (127,), "tower": (8,)},
    "omoe": {"experts": 8, "expert_widths": (17,), "tower": (8,)},
    "mmoe": {"experts": 8, "expert_widths": (16,), "tower": (8,)},
}
NOISE = 0.01
"""Variance of ε, the least error possible."""


@dataclass
class Options:
    """How long and how often."""

    correlations: tuple[float, ...] = (1.0, 0.9, 0.75, 0.5)
    """p, the cosine between the two weight vectors."""
    seeds: int = 10
    """Runs of each model, with seeds 0, 1, …"""
    steps: int = 3000
    """Training steps of a run."""
    batch_size: int = 128
    """Rows in a batch."""
    learning_rates: tuple[float, ...] = (1e-3, 1e-2)
    """Of Adam."""
    dimension: int = 100
    """D."""
    sines: int = 10
    """Number of sines in a label."""
    scale: float = 1.0
    """c."""
    test_rows: int = 20_000
    """Rows that a run is measured on."""
    out: Path = RESULTS
    """Folder for the results."""


class World:
    """The labels of every seed at one correlation, and their rows. S seeds are S independent worlds side by side."""

    def __init__(self, options: Options, correlation: float) -> None:
        self.options = options
        draw = torch.Generator().manual_seed(0)
        u = torch.linalg.qr(torch.randn(options.seeds, options.dimension, 2, generator=draw)).Q  # [S, D, 2]
        second = correlation * u[..., 0] + (1 - correlation**2) ** 0.5 * u[..., 1]
        self.w = options.scale * torch.stack([u[..., 0], second], dim=-1)
        self.alpha, self.beta = torch.randn(2, options.seeds, 1, 1, options.sines, generator=draw)

    def sample(self, rows: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows x [S, rows, D] and their labels y [S, rows, 2]."""
        x = torch.randn(self.options.seeds, rows, self.options.dimension, generator=draw)
        s = x @ self.w
        waves = torch.sin(s.unsqueeze(-1) * self.alpha + self.beta).sum(-1)
        return x, s + waves + NOISE**0.5 * torch.randn(s.shape, generator=draw)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches, the same ones for every model."""
        draw = torch.Generator().manual_seed(1)
        return (self.sample(self.options.batch_size, draw) for _ in range(self.options.steps))

    def test(self) -> tuple[Tensor, Tensor]:
        """The test rows."""
        return self.sample(self.options.test_rows, torch.Generator().manual_seed(2))


def build(name: str, dimension: int) -> Model:
    """One of recmtl's models for two tasks on `dimension` numbers; its logits are the predictions."""
    entry = MODELS[name]
    return entry.load()(entry.config(**SIZES[name]), Inputs((Task("y1"), Task("y2")), dimension, {}))


def final_losses(options: Options, name: str, correlation: float, lr: float) -> list[float]:
    """Mean squared error after training, the mean of both tasks, for every seed.

    The models of all seeds train side by side as one batched network: Adam works number by number, so each goes the
    way it would go alone.
    """
    world = World(options, correlation)
    torch.manual_seed(3)
    models = [build(name, options.dimension) for _ in range(options.seeds)]
    parameters, buffers = stack_module_state(models)
    shape = build(name, options.dimension).to("meta")
    predict = vmap(lambda parameters, buffers, x: functional_call(shape, (parameters, buffers), ({SHARED: x},)))
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)

    def errors(x: Tensor, y: Tensor) -> Tensor:
        return (predict(parameters, buffers, x) - y).square().mean(dim=(1, 2))  # [S]

    for x, y in world.batches():
        optimizer.zero_grad()
        errors(x, y).sum().backward()
        optimizer.step()
    with torch.no_grad():
        losses: list[float] = errors(*world.test()).tolist()
        return losses


def measure(options: Options) -> dict[str, dict[float, dict[float, list[float]]]]:
    """losses[model][correlation][learning rate], one a seed."""
    cases = list(itertools.product(SIZES, options.correlations, options.learning_rates))
    losses: dict[str, dict[float, dict[float, list[float]]]] = {}
    began = time.monotonic()
    for done, (name, p, lr) in enumerate(cases, 1):
        losses.setdefault(name, {}).setdefault(p, {})[lr] = final_losses(options, name, p, lr)
        left = (time.monotonic() - began) / done * (len(cases) - done)
        print(f"{done} of {len(cases)} done, about {left / 60:.1f} min left", file=sys.stderr, flush=True)
    return losses


def plot(options: Options, best: dict[str, dict[float, list[float]]], path: Path) -> None:
    """Final loss against correlation: a point a seed, a line through the means."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, (name, by_correlation) in enumerate(best.items()):
        xs = range(len(options.correlations))
        axes.plot(xs, [fmean(by_correlation[p]) for p in options.correlations], marker="o", color=f"C{i}", label=name)
        for x, p in zip(xs, options.correlations, strict=True):
            values = by_correlation[p]
            axes.scatter([x + 0.06 * (i - 1)] * len(values), values, s=10, alpha=0.4, color=f"C{i}")
    axes.axhline(NOISE, color="grey", linestyle=":", label="noise")
    axes.set_xticks(range(len(options.correlations)), [f"{p:g}" for p in options.correlations])
    axes.set(xlabel="task correlation", ylabel="mean squared error", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    losses = measure(options)
    best = {
        name: {p: min(by_rate.values(), key=fmean) for p, by_rate in by_correlation.items()}
        for name, by_correlation in losses.items()
    }
    parameters = {name: sum(p.numel() for p in build(name, options.dimension).parameters()) for name in SIZES}
    header = ["correlation", *(f"{name} ({parameters[name]:,})" for name in SIZES)]
    header += [f"{name} − mmoe" for name in SIZES if name != "mmoe"]
    lines = []
    for p in options.correlations:
        gaps = [
            [a - b for a, b in zip(best[name][p], best["mmoe"][p], strict=True)] for name in SIZES if name != "mmoe"
        ]
        lines.append([f"{p:g}", *(show(best[name][p]) for name in SIZES), *(show(gap) for gap in gaps)])
    body = (
        f"Mean squared error ± deviation over {options.seeds} seeds (parameters in brackets), {NOISE:g} of it noise. "
        f"The last columns are differences within a seed.\n\n{markdown_table(header, lines)}"
    )
    results = {
        "machine": place,
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        "parameters": parameters,
        "losses": losses,
    }
    path = write_results(options.out, "mmoe_correlation", "mmoe", results, body)
    plot(options, best, path.with_name(path.name + ".svg"))


def show(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
