"""Does it help to train the embedding row that unseen values share, and which `min_count` should recipes have?

    python benchmarks/unseen.py kuairand=../shared/data/kuairand census=../shared/data/census merrec_time

Values of the test rows that no training row has share id 1. With min_count = 1 no training row has that id, so its
embedding stays as it was initialised; with min_count = 2 values that occur once train it; or a share of the training
ids, drawn at random, is replaced by it. Each variant is trained with several seeds and measured on all test
rows, and on those that hold an id that min_count = 1 leaves unseen: the same rows for every variant. Tables for which
the recipe names a min_count or hash_rows keep it. Start the command again and it goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import table
import tomli_w
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.config import tomllib
from recmtl.data.prepare.content import ContentDigests
from recmtl.data.recipe import load_recipe
from recmtl.schema import FIRST, ROW_GROUP_ROWS, UNSEEN, Dataset

SUBSTITUTION_SEED = 0
Results = dict[str, Any]


@dataclass
class Options:
    """What to train on which data."""

    data: tyro.conf.Positional[tuple[str, ...]] = ("merrec_time",)
    """Recipes, each with its raw folder: RECIPE=FOLDER; without a folder: synthetic MerRec events."""
    preset: str = "mmoe"
    """What to train."""
    events: int = 500_000
    """Number of synthetic events."""
    seeds: int = 2
    """Runs of each variant, with seeds 100, 101, …"""
    work: Path = table.WORK / "unseen"
    """Folder for data and runs; what it holds already is not made again."""
    out: Path = RESULTS
    """Folder for the results."""


@dataclass(frozen=True)
class Variant:
    """How the row of unseen values is trained."""

    min_count: int
    substituted: float = 0.0
    """Share of the training ids that are replaced by the id of unseen values."""

    @property
    def label(self) -> str:
        """What tables and folders call it."""
        share = f", {self.substituted:.0%} substituted" if self.substituted else ""
        return f"min_count {self.min_count}{share}"


VARIANTS = (Variant(1), Variant(2), Variant(5), Variant(1, 0.01), Variant(1, 0.05))


class Case:
    """One recipe with its raw folder."""

    def __init__(self, named: str, options: Options) -> None:
        self.options = options
        self.recipe, _, raw = named.partition("=")
        self.folder = options.work / (self.recipe if raw else f"{self.recipe}-{options.events}")
        self.raw = Path(raw) if raw else self.folder / "raw"
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = tomllib.loads(load_recipe(self.recipe).toml)
        declared = {entry["name"]: entry for entry in keys.get("table", [])}
        kept = [name for name, entry in declared.items() if {"min_count", "hash_rows"} & entry.keys()]
        self.keys, self.declared = keys, declared
        self.tables = [spec.name for spec in load_recipe(self.recipe).tables if spec.name not in kept]
        """Tables whose min_count the recipe leaves to the default."""

    def data(self, variant: Variant) -> Path:
        """The prepared folder of a variant, made where it is not there."""
        data = self.folder / variant.label
        if (data / "dataset.json").exists():
            return data
        if not self.raw.exists():
            table.recmtl("synth", "merrec", self.raw, "--events", self.options.events)
        if variant.substituted:
            substitute(self.data(replace(variant, substituted=0.0)), data, variant.substituted, self.tables)
            return data
        entries = [{**self.declared.get(name, {"name": name}), "min_count": variant.min_count} for name in self.tables]
        entries += [entry for name, entry in self.declared.items() if name not in self.tables]
        recipe = self.folder / f"{variant.label}.toml"
        recipe.write_text(tomli_w.dumps({**self.keys, "table": entries}))
        table.recmtl("prepare", recipe, self.raw, data)
        return data

    def unseen_rows(self, variant: Variant) -> Path:
        """A prepared folder of the same encoding with nothing but the test rows that hold an unseen value."""
        subset = self.folder / f"{variant.label}, unseen"
        if not (subset / "dataset.json").exists():
            unseen = holds_unseen(self.data(VARIANTS[0]), self.tables)
            data = self.data(variant)
            test = read(data, "test").filter(pa.array(unseen))
            (subset / "test").mkdir(parents=True)
            write(test, subset / "test" / "part-00000.parquet")
            described = Dataset.load(data)
            rows = {"train": 0, "val": 0, "test": test.num_rows}
            save(replace(described, rows=rows), {"test": test}, subset)
        return subset

    def measure(self, variant: Variant, seed: int) -> dict[str, Results]:
        """What one run reaches on all test rows, and on those with an unseen value where there are any."""
        data, run = self.data(variant), self.folder / "runs" / f"{self.options.preset} {variant.label} {seed}"
        if not (run / "results.json").exists():
            table.recmtl("train", self.options.preset, "--data", data, "--run", run, "--training.seed", seed)
        on_all = {"all": json.loads((run / "results.json").read_text())}
        if not holds_unseen(self.data(VARIANTS[0]), self.tables).any():
            return on_all
        subset = self.unseen_rows(variant)
        measured = run / "evaluations" / f"{Dataset.load(subset).data_fingerprint}-test.json"
        if not measured.exists():
            table.recmtl("evaluate", run, "--data", subset, "--split", "test")
        return {**on_all, "unseen": json.loads(measured.read_text())}


def read(data: Path, split: str) -> pa.Table:
    """All rows of a split."""
    return pa.concat_tables([pq.read_table(path) for path in Dataset.load(data).files(data, split)])


def write(rows: pa.Table, path: Path) -> None:
    """In the layout that the reader is tuned for."""
    pq.write_table(rows, path, row_group_size=ROW_GROUP_ROWS, compression="none", use_dictionary=False)


def save(dataset: Dataset, rows: dict[str, pa.Table], folder: Path) -> None:
    """Write ``dataset.json`` with the digests of some splits' rows."""
    content = ContentDigests()
    for split, of_split in rows.items():
        content.add(split, of_split)
    replace(dataset, content={**dataset.content, **content.hexdigests()}).save(folder)


def columns_of_ids(rows: pa.Table, dataset: Dataset, tables: list[str]) -> Iterator[tuple[int, pa.Array, np.ndarray]]:
    """Of each feature of these tables: the column's number, the column, and all its ids."""
    for feature in dataset.sparse_features:
        if feature.table in tables:
            column = rows.column(feature.name).combine_chunks()
            is_list = pa.types.is_list(column.type)
            yield rows.column_names.index(feature.name), column, (column.flatten() if is_list else column).to_numpy()


def holds_unseen(data: Path, tables: list[str]) -> np.ndarray:
    """Which test rows hold the id of unseen values, bool [rows]."""
    rows = read(data, "test")
    found = np.zeros(rows.num_rows, bool)
    for _, column, ids in columns_of_ids(rows, Dataset.load(data), tables):
        of_values = np.arange(rows.num_rows)
        if pa.types.is_list(column.type):
            of_values = np.repeat(of_values, np.diff(column.offsets.to_numpy()))
        found[of_values[ids == UNSEEN]] = True
    return found


def substitute(data: Path, out: Path, share: float, tables: list[str]) -> None:
    """Copy a prepared folder and replace a share of the training ids by that of unseen values."""
    shutil.copytree(data, out, ignore=shutil.ignore_patterns("train", "dataset.json"))
    dataset, rows = Dataset.load(data), read(data, "train")
    generator = np.random.default_rng(SUBSTITUTION_SEED)
    for number, column, ids in list(columns_of_ids(rows, dataset, tables)):
        drawn = (generator.random(len(ids)) < share) & (ids >= FIRST)
        replaced = pa.array(np.where(drawn, UNSEEN, ids), pa.int32())
        if pa.types.is_list(column.type):
            replaced = pa.ListArray.from_arrays(column.offsets, replaced, type=column.type)
        rows = rows.set_column(number, rows.schema.field(number), replaced)
    (out / "train").mkdir()
    write(rows, out / "train" / "part-00000.parquet")
    save(dataset, {"train": rows}, out)


def check_same_rows(case: Case) -> None:
    """Raise AssertionError unless the test rows of every variant are the same, in the same order."""
    first = case.data(VARIANTS[0])
    labels = [name for name in read(first, "test").column_names if name.startswith("label_")]
    for variant in VARIANTS:
        assert read(case.data(variant), "test").select(labels).equals(read(first, "test").select(labels)), variant.label


def lines_of(case: Case, found: dict[Variant, list[dict[str, Results]]]) -> Iterator[list[str]]:
    """Lines of the table: a variant on some rows. Changes are to the first variant, seed by seed."""
    for rows in found[VARIANTS[0]][0]:
        first = [run[rows]["logloss_sum"] for run in found[VARIANTS[0]]]
        for variant, runs in found.items():
            measured = [run[rows] for run in runs]
            losses = [run["logloss_sum"] for run in measured]
            change = [loss - base for loss, base in zip(losses, first, strict=True)]
            ids = sum(of_table.rows for of_table in Dataset.load(case.data(variant)).tables)
            yield [
                case.recipe,
                rows,
                variant.label,
                f"{ids:,}",
                table.show(losses, ".4f"),
                table.show(change, "+.4f"),
                *(of_tasks(measured, measure, form) for measure, form in (("auc", ".4f"), ("calibration", ".3f"))),
            ]


def of_tasks(runs: list[Results], measure: str, form: str) -> str:
    """A measure's mean over runs, task by task."""
    values = {task: [run["test"][task][measure] for run in runs] for task in runs[0]["test"]}
    return " / ".join("–" if None in of_task else f"{fmean(of_task):{form}}" for of_task in values.values())


def main(options: Options) -> None:
    """Train, print and write."""
    place = machine()
    lines: list[list[str]] = []
    notes, measured = [], {}
    for named in options.data:
        case = Case(named, options)
        check_same_rows(case)
        seeds = range(table.FIRST_SEED, table.FIRST_SEED + options.seeds)
        found: dict[Variant, list[dict[str, Results]]] = {variant: [] for variant in VARIANTS}
        for seed in seeds:
            for variant in VARIANTS:
                found[variant].append(case.measure(variant, seed))
        lines += lines_of(case, found)
        unseen = holds_unseen(case.data(VARIANTS[0]), case.tables)
        tasks = " / ".join(found[VARIANTS[0]][0]["all"]["test"])
        notes.append(f"{case.recipe}: {tasks}; {unseen.sum():,} of {len(unseen):,} test rows hold an unseen value.")
        measured[case.recipe] = {
            variant.label: [{rows: table.slim(results) for rows, results in run.items()} for run in runs]
            for variant, runs in found.items()
        }
    header = ("data", "test rows", "variant", "ids", "log loss", "change", "AUC", "calibration")
    seeded = f"`{options.preset}`, {options.seeds} seeds from {table.FIRST_SEED}. Log losses are sums over tasks."
    body = "\n\n".join([markdown_table(header, lines), seeded, "\n".join(f"- {note}" for note in notes)])
    write_results(options.out, "unseen", options.preset, {"machine": place, "runs": measured}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
