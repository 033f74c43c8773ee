"""Decoding the row groups of a prepared split, with every value checked before a kernel sees it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from recmtl.data.read.footers import FooterChecks, RowGroup, damaged
from recmtl.data.read.open_files import OpenFiles
from recmtl.data.read.rows import Lists, Rows
from recmtl.encoding.histories import Misaligned, check_aligned
from recmtl.errors import UserError
from recmtl.features import FeatureKinds, TableKind
from recmtl.schema import (
    GROUP_COLUMN,
    UNSEEN,
    WEIGHT_COLUMN,
    WHOLE,
    Dataset,
    Task,
    label_column,
    label_type,
    oracle_column,
    weight_column,
)

Gather = Callable[[Callable[[], dict[int, list[RowGroup]]]], list[dict[int, list[RowGroup]]]]
"""Calls a function on every rank and gives all of them what it gave on each."""

LABELS = {"binary": (0, 1), "regression": (-math.inf, math.inf), "duration": (0, math.inf)}
"""What labels lie between, by the kind of the task."""
CACHE_BYTES = 256 * 2**20
"""Decoded row groups that are kept: a dataset that fits is decoded once, a larger one loses little."""


class ParquetSplit:
    """The row groups of one split, by number; several threads may read them.

    Args:
        folder: the prepared folder.
        dataset: what ``dataset.json`` says of it.
        split: train, val, test or `WHOLE`.
        tasks: the tasks whose labels to read, in order.
        evaluation: also read true probabilities and groups, and number the rows.
        share: rank, number of ranks and how to gather: every rank looks at its share of the files. None: at all.
        later: by table, whether an id [rows] is to be read as `UNSEEN`, as a model that does not know it reads it.
        open_files: files that may be open at a time, at least the number of threads that read.

    Raises:
        UserError: files are missing, cut short, lack a column or have one of another type.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        split: str,
        tasks: tuple[Task, ...],
        evaluation: bool,
        share: tuple[int, int, Gather] | None = None,
        later: Mapping[str, np.ndarray] | None = None,
        open_files: int = 1,
    ) -> None:
        self.dataset, self.tasks, self.later = dataset, tasks, later or {}
        kinds = FeatureKinds(dataset.features)
        self.categorical, self.lists, self.dense = kinds.categorical, kinds.lists, kinds.dense
        self.keys = [kind.feature.name for kind in (*kinds.categorical, *kinds.lists)]
        """Names of the features with ids, in the order of batches."""
        self.width = sum(kind.width for kind in self.dense)
        """Numbers of a row."""
        self.with_oracle = evaluation and any(task.oracle for task in tasks)
        self.with_group = evaluation and dataset.group
        self.with_row_number = evaluation
        self.types = {kind.feature.name: kind.prepared_type for kind in kinds.all}
        """Column → its Arrow type."""
        self.types |= {label_column(task.name): pa.type_for_alias(label_type(task)) for task in tasks}
        self.partial = {label_column(task.name) for task in tasks if dataset.is_partial(task)}
        """Columns with labels that some rows lack."""
        self.weight_columns = {weight_column(task.name): [i] for i, task in enumerate(tasks) if task.row_weight}
        """Columns with weights, and the places of the tasks that they are for."""
        if dataset.row_weight:
            self.weight_columns[WEIGHT_COLUMN] = list(range(len(tasks)))
        self.types |= dict.fromkeys(self.weight_columns, pa.float32())
        if self.with_oracle:
            self.types |= {oracle_column(task.name): pa.float32() for task in tasks if task.oracle}
        if self.with_group:
            self.types[GROUP_COLUMN] = pa.int64()

        self.files = dataset.files(folder, split)
        rank, world_size, gather = share or (0, 1, lambda check: [check()])
        mine = range(rank, len(self.files), world_size)
        checks = FooterChecks(self.types, self._limits(), self.partial)
        found = gather(lambda: dict(zip(mine, checks.row_groups([self.files[i] for i in mine]), strict=True)))
        by_file = {number: groups for part in found for number, groups in part.items()}
        groups = [np.array(by_file[number], np.int64).reshape(-1, 3) for number in range(len(self.files))]
        counts = [of_file[:, 0] for of_file in groups]
        self._bounds = np.concatenate([np.empty((0, 2), np.int64), *(of_file[:, 1:] for of_file in groups)])
        """[G, 2]: where in its file each row group begins and ends."""
        self.starts = np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64)
        """[G + 1]: row number at which each row group starts."""
        self._first_groups = np.cumsum([0, *map(len, counts)])
        """[F + 1]: number of each file's first row group."""
        self.rows = int(self.starts[-1])
        if self.rows != dataset.count(split):
            where = folder if split == WHOLE else folder / split
            raise UserError(
                f"{where}: {self.rows} rows, but dataset.json says {dataset.count(split)}; "
                "files are missing or were added, prepare the data again"
            )
        self.open_files = OpenFiles(self.files, counts, open_files)
        self._cache: dict[int, Rows] = {}
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()

    def _limits(self) -> dict[str, tuple[float, float]]:
        """The least and the greatest value of columns that have them."""
        limits: dict[str, tuple[float, float]] = {
            f.name: (0, self.dataset.table(str(f.table)).rows - 1) for f in self.dataset.sparse_features
        }
        limits |= {label_column(task.name): LABELS[task.kind] for task in self.tasks}
        return limits | dict.fromkeys(self.weight_columns, LABELS["duration"])

    def expect(self, number: int) -> None:
        """Say that row group `number` will be read soon."""
        with self._cache_lock:
            if number in self._cache:
                return
        file = int(np.searchsorted(self._first_groups, number, side="right")) - 1
        start, stop = self._bounds[number].tolist()
        self.open_files.expect(file, start, stop)

    def read(self, number: int) -> Rows:
        """Row group `number`, decoded and checked.

        Raises:
            UserError: the file is gone or damaged, or a value is null or out of range; names file, column and row.
        """
        with self._cache_lock:
            if number in self._cache:
                return self._cache[number]
        rows = self._decode(number)
        with self._cache_lock:
            if number not in self._cache:
                while self._cache and self._cached_bytes + rows.nbytes > CACHE_BYTES:
                    self._cached_bytes -= self._cache.pop(next(iter(self._cache))).nbytes
                self._cache[number] = rows
                self._cached_bytes += rows.nbytes
        return rows

    def _decode(self, number: int) -> Rows:
        file = int(np.searchsorted(self._first_groups, number, side="right")) - 1
        path, first = self.files[file], int(self._first_groups[file])
        with self.open_files.file(file) as opened:
            try:
                table = opened.read_row_group(number - first, columns=list(self.types), use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise damaged(path, error) from None
        return Decoder(self, path, table, int(self.starts[number]), int(self.starts[first])).rows()


class Decoder:
    """Turns one row group's Arrow table into `Rows`.

    Args:
        split: what to read.
        path: of the file, for messages.
        table: the row group.
        start: the row group's first row, counted in the split.
        file_start: the file's first row, counted in the split.
    """

    def __init__(self, split: ParquetSplit, path: Path, table: pa.Table, start: int, file_start: int) -> None:
        self.split, self.path, self.table, self.start = split, path, table, start
        self.first_row = start - file_start

    def rows(self) -> Rows:
        split, n = self.split, self.table.num_rows
        ids = np.empty((len(split.categorical), n), np.int32)
        for row, kind in zip(ids, split.categorical, strict=True):
            row[:] = self._ids(kind)[1]
        numeric = np.empty((n, split.width), np.float32)
        start = 0
        for dense in split.dense:
            name = dense.feature.name
            numbers = numeric[:, start : start + dense.width]
            numbers[:] = dense.read(self._array(name))
            shown = numbers[:, 0] if dense.width == 1 else numbers
            self._check(np.asarray(np.isfinite(numbers).all(axis=1)), name, shown, "must be a finite number")
            start += dense.width
        labels = np.empty((n, len(split.tasks)), np.float32)
        for i, task in enumerate(split.tasks):
            labels[:, i] = self._labels(task)
        return Rows(ids, self._lists(), numeric, labels, *self._extras(n))

    def _labels(self, task: Task) -> np.ndarray:
        """float32 [n], NaN where there is none."""
        name = label_column(task.name)
        column = self.table.column(name)
        if not column.null_count or name not in self.split.partial:
            values = known = self._column(name)
        else:
            values = column.cast(pa.float32()).to_numpy()
            known = np.where(column.is_valid().to_numpy(), values, 0)
        good, rule = (known == 0) | (known == 1), "must be 0 or 1"
        if task.kind != "binary":
            good, rule = np.isfinite(known) & (known >= LABELS[task.kind][0]), "is no label of the task"
        self._check(good, name, values, rule)
        return values

    def _weights(self, n: int) -> np.ndarray | None:
        """float32 [n, T]: the products of all weights of a row for a task."""
        if not self.split.weight_columns:
            return None
        weights = np.ones((n, len(self.split.tasks)), np.float32)
        for name, places in self.split.weight_columns.items():
            values = self._column(name)
            self._check(np.isfinite(values) & (values >= 0), name, values, "must be a finite number of 0 or more")
            weights[:, places] *= values[:, None]
        return weights

    def _lists(self) -> Lists:
        found = [self._ids(kind) for kind in self.split.lists]
        lengths = np.empty((len(found), self.table.num_rows), np.int32)
        for row, (mine, _) in zip(lengths, found, strict=True):
            row[:] = mine
        places = {kind.feature.name: place for place, kind in enumerate(self.split.lists)}
        sequences = [kind for kind in self.split.lists if kind.is_sequence]
        try:
            check_aligned(sequences, lambda feature: lengths[places[feature.name]], self.first_row)
        except Misaligned as error:
            raise UserError(f"{self.path}: {error}; prepare the data again") from None
        return Lists.packed(lengths, np.concatenate([np.empty(0, np.int32), *(ids for _, ids in found)]))

    def _extras(self, n: int) -> tuple[np.ndarray | None, ...]:
        """`Rows.extras`."""
        oracle = group = None
        if self.split.with_oracle:
            oracle = np.full((n, len(self.split.tasks)), np.nan, np.float32)
            for i, task in enumerate(self.split.tasks):
                if task.oracle:
                    oracle[:, i] = self._column(oracle_column(task.name))
        if self.split.with_group:
            group = self._column(GROUP_COLUMN)
        row_number = np.arange(self.start, self.start + n) if self.split.with_row_number else None
        return oracle, self._weights(n), group, row_number

    def _array(self, name: str) -> pa.Array:
        column = self.table.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise UserError(f"{self.path}: column '{name}', row {self.first_row + row}: null; prepare the data again")
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)

    def _column(self, name: str) -> np.ndarray:
        return self._array(name).to_numpy(zero_copy_only=False)

    def _ids(self, kind: TableKind) -> tuple[np.ndarray | None, np.ndarray]:
        """Lengths and ids of a feature with a table."""
        name = kind.feature.name
        column = self._array(name)
        if kind.is_list and column.values.null_count:
            raise UserError(f"{self.path}: column '{name}': a list holds a null; prepare the data again")
        lengths, ids = kind.read(column)
        self._check_ids(ids, name, kind.feature.table)
        later = self.split.later.get(str(kind.feature.table))
        return lengths, ids if later is None else np.where(later[ids], np.int32(UNSEEN), ids)

    def _check_ids(self, ids: np.ndarray, name: str, table: str | None) -> None:
        if len(ids) == 0:
            return
        assert table is not None
        limit = self.split.dataset.table(table).rows
        if ids.min() >= 0 and ids.max() < limit:
            return
        bad = ids[(ids < 0) | (ids >= limit)][0]
        place = f"outside table '{table}' (0 to {limit - 1})"
        raise UserError(f"{self.path}: column '{name}' holds id {bad}, {place}; prepare the data again")

    def _check(self, good: np.ndarray, name: str, values: np.ndarray, rule: str) -> None:
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            place = f"column '{name}', row {self.first_row + row}"
            raise UserError(f"{self.path}: {place}: {values[row]} {rule}; prepare the data again")
