"""What prepared data look like: base rates, shares of missing and unseen values, how tables grew, as text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from recmtl.schema import SPLITS, Dataset, Feature

MUCH, HARDLY_ANY = 0.2, 0.01
"""A share in test rows that is worth a note where training rows have less than the other share."""

WIDE = 1000
"""Characters of a line in a file or a pipe; tables take what they need of them."""


def notes(dataset: Dataset) -> Iterator[str]:
    """What a user should know of the data, a line each.

    Rows that were left out; features whose values are often missing or unseen in test rows but not in training rows.
    """
    if dataset.unlabelled:
        yield f"{dataset.unlabelled:,} rows were left out: no task has a label in them"
    for feature in dataset.features:
        for what, shares in (("missing", feature.missing), ("unseen or rare", feature.unseen)):
            train, test = shares.get("train", 0.0), shares.get("test", 0.0)
            if test >= MUCH and train <= HARDLY_ANY:
                shares_told = f"{test:.1%} {what} in test rows, {train:.1%} in training rows"
                yield f"[[feature]] {feature.name!r}: {shares_told}; a model learns little of them from training"


def print_summary(dataset: Dataset) -> None:
    """Print base rates by task and split, then the shares of missing and unseen values by feature and split, and of
    data that extend others how the ids of their tables changed.

    Of a task that is a number the base rate is its mean. How many rows have labels is told where not all have.
    """
    splits = [split for split in SPLITS if dataset.rows[split]]
    partial = any(map(dataset.is_partial, dataset.tasks))
    rates = _table("base rate", [*splits, *(f"labels {split}" for split in splits if partial)])
    for task in dataset.tasks:
        counts = _cells(task.observed, splits, ",") if partial else []
        rates.add_row(task.name, *_cells(task.base_rate, splits, ".4f"), *counts)
    shares = _table("feature", [f"{what} {split}" for what in ("missing", "unseen") for split in splits])
    for feature in dataset.features:
        shares.add_row(feature.name, *_shares(feature, splits))
    # Where nobody looks at a screen, no line is cut to the width of one.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    for table in (rates, shares, *([_growth(dataset)] if dataset.growth else [])):
        console.print(table)


def _growth(dataset: Dataset) -> Table:
    table = _table("table", ["ids", "new", "retired", "waiting"])
    for name, counts in dataset.growth.items():
        numbers = (dataset.table(name).rows, counts.new, counts.retired, counts.waiting)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _table(first: str, columns: Iterable[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _shares(feature: Feature, splits: list[str]) -> list[str]:
    return [*_cells(feature.missing, splits, ".2%"), *_cells(feature.unseen, splits, ".2%")]


def _cells(values: Mapping[str, float], splits: list[str], style: str) -> list[str]:
    return [format(values[split], style) if split in values else "–" for split in splits]
