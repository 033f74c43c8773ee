"""The encoder: columns of a recipe's query in, columns of prepared data out.

    columns ──factorize──▶ distinct values of each table, and where they stand ──look_up──▶ ids ──assemble──▶ columns

`recmtl prepare` stores what the first half yields, counts it, and runs the second when the vocabularies are made;
predicting and serving run both at once. An encoder is saved with everything it needs: ``encoder.json`` and a
memory-mapped vocabulary a table.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.encoding.hashing import HASH_NAME
from recmtl.encoding.histories import check_aligned
from recmtl.encoding.values import arrow_type, canonical, fits, is_list, is_string, keys, nulls, without_views
from recmtl.encoding.vocabulary import Hashed, Vocabulary
from recmtl.errors import UserError
from recmtl.features import FeatureKinds
from recmtl.features.lists import ListKind
from recmtl.runtime.storage import make_folder, read_json, write_json
from recmtl.schema import MISSING, UNSEEN, Feature, Table

FORMAT = 1
FILE_NAME = "encoder.json"
FEW = 2048
"""Up to so many values a feature are looked up one by one."""
NO_VALUE = -1
"""In place of the number of a value: it is missing."""


@dataclass
class TableValues:
    """The distinct values that some rows have for one table."""

    values: pa.Array
    """Canonical, without nulls [d]."""
    refused: np.ndarray
    """bool [d]: the value is none that the table can hold; what stands in `values` for it does not count."""


@dataclass
class Factorized:
    """Rows between the two halves of the encoder."""

    tables: dict[str, TableValues]
    codes: dict[str, np.ndarray]
    """Of features with a table: int32, places in their table's distinct values, or `NO_VALUE`."""
    lengths: dict[str, np.ndarray]
    """Of lists: how many of the codes each row has, int64 [n]."""
    numbers: dict[str, np.ndarray]
    """Of dense features: float64 [n, width]."""


class Encoder:
    """Turns columns into ids and numbers.

    Args:
        features: with the statistics of the training rows.
        tables: what the features index.
        lookups: by table: its vocabulary, or its hash.
        schema: names and types of the columns of the query that features are made of.
    """

    def __init__(
        self,
        features: tuple[Feature, ...],
        tables: tuple[Table, ...],
        lookups: Mapping[str, Vocabulary | Hashed],
        schema: pa.Schema,
    ) -> None:
        self.features, self.tables, self.lookups, self.schema = features, tables, dict(lookups), schema
        kinds = FeatureKinds(features)
        self.table_kinds, self.dense_kinds, self.sequences = kinds.with_table, kinds.dense, kinds.sequences
        self._value_types = {table.name: table.value_type for table in tables}
        places = {table.name: place for place, table in enumerate(tables)}
        names = [(kind.feature.name, str(kind.feature.table)) for kind in self.table_kinds]
        self._by_table = sorted(names, key=lambda name: places[name[1]])
        """Features with a table, and that: table by table."""

    def encode(self, columns: Mapping[str, pa.Array], *, aligned: bool = False) -> dict[str, pa.Array]:
        """Prepared columns by feature, each as long as the column that it is made of.

        Args:
            columns: by name; those of `schema`, in types whose values can be of the types there.
            aligned: `check_aligned` has been asked already, as columns of several lengths need it.

        Raises:
            UserError: a column is absent or of a type that does not fit, or the sequences of a history differ in
                length; names it.
        """
        if not aligned:
            self.check_aligned(columns)
        values, found = self._flatten(columns)
        if sum(map(len, values.values())) <= FEW * len(values):
            return self.assemble(found, self._look_up_each(values))
        self._factorize_tables(values, found)
        return self.assemble(found, self.look_up(found))

    def check(self, schema: pa.Schema) -> None:
        """Raise UserError unless columns of these names and types can be encoded."""
        self.encode({name: schema.empty_table().column(name) for name in self.schema.names if name in schema.names})

    def factorize(self, columns: Mapping[str, pa.Array], first_row: int = 0) -> Factorized:
        """The first half: everything that does not need the vocabularies. Raises as `encode` does.

        Args:
            columns: as `encode` takes them.
            first_row: number of the first row, for messages.
        """
        self.check_aligned(columns, first_row)
        values, found = self._flatten(columns)
        self._factorize_tables(values, found)
        return found

    def check_aligned(self, columns: Mapping[str, pa.Array], first_row: int = 0) -> None:
        """Raise `Misaligned` where sequences of a history differ in length; a column of one row stands for all rows."""
        kinds = {kind.feature.name: kind for kind in self.sequences}

        def lengths(feature: Feature) -> np.ndarray:
            kind = kinds[feature.name]
            assert isinstance(kind, ListKind)
            return kind.items(self.column(columns, feature.column))[1]

        check_aligned(self.sequences, lengths, first_row)

    def _flatten(self, columns: Mapping[str, pa.Array]) -> tuple[dict[str, pa.Array], Factorized]:
        """The values of each feature with a table, all rows' one after the other; lengths of lists, and numbers."""
        values, found = {}, Factorized({}, {}, {}, {})
        for dense in self.dense_kinds:
            found.numbers[dense.feature.name] = dense.numbers(self.column(columns, dense.feature.column))
        for kind in self.table_kinds:
            flat, lengths = kind.flatten(self.column(columns, kind.feature.column))
            if lengths is not None:
                found.lengths[kind.feature.name] = lengths
            values[kind.feature.name] = flat.dictionary_decode() if pa.types.is_dictionary(flat.type) else flat
        return values, found

    def _factorize_tables(self, values: Mapping[str, pa.Array], found: Factorized) -> None:
        """Find the distinct values of each table, from what `_flatten` gave."""
        by_table: dict[str, dict[pa.DataType, list[str]]] = {table: {} for table in self._value_types}
        for kind in self.table_kinds:
            name = kind.feature.name
            by_table[str(kind.feature.table)].setdefault(values[name].type, []).append(name)
        for table, by_type in by_table.items():
            # Columns of one table may differ in type, as INTEGER and BIGINT do: a value is then there once for each.
            distinct, refused, start = [], [], 0
            for names in by_type.values():
                some, refusals, codes = _factorize([values[name] for name in names], self._value_types[table])
                codes[codes != NO_VALUE] += start
                start += len(some)
                distinct.append(some)
                refused.append(refusals)
                ends = np.cumsum([0, *(len(values[name]) for name in names)])
                for name, first, last in zip(names, ends, ends[1:], strict=False):
                    found.codes[name] = codes[first:last]
            if len(distinct) > 1:
                distinct, refused = [pa.concat_arrays(distinct)], [np.concatenate(refused)]
            found.tables[table] = TableValues(distinct[0], refused[0])

    def look_up(self, found: Factorized) -> dict[str, np.ndarray]:
        """The second half: by feature with a table, the id of every value, int32, in the order of its codes."""
        ids = {}
        for table, distinct in found.tables.items():
            of_values = self.lookups[table].look_up(keys(distinct.values))
            of_values[distinct.refused] = UNSEEN
            ids[table] = np.append(of_values, np.int32(MISSING))  # NO_VALUE is the last place
        tables = {kind.feature.name: str(kind.feature.table) for kind in self.table_kinds}
        return {name: ids[tables[name]][codes] for name, codes in found.codes.items()}

    def _look_up_each(self, values: Mapping[str, pa.Array]) -> dict[str, np.ndarray]:
        """The id of every value, int32, by feature: of few values this costs less than to find the distinct ones.

        Values of one type become keys together, whatever their table, as most of the time goes into calls.
        """
        by_type: dict[tuple[str, pa.DataType], list[tuple[str, str]]] = {}
        for name, table in self._by_table:
            by_type.setdefault((self._value_types[table], values[name].type), []).append((name, table))
        ids = {}
        for (kind, _), features in by_type.items():
            together, refused = canonical(_joined([values[name] for name, _ in features]), kind)
            missing, wanted = nulls(together), keys(together)
            found, start = np.empty(len(wanted), np.int32), 0
            for table, of_table in groupby(features, itemgetter(1)):
                stop = start
                for name, _ in of_table:
                    ids[name] = found[stop : stop + len(values[name])]
                    stop += len(values[name])
                found[start:stop] = self.lookups[table].look_up(wanted[start:stop])
                start = stop
            if missing is not None:
                found[missing] = MISSING
            if refused is not None:
                found[refused] = UNSEEN
        return ids

    def assemble(self, found: Factorized, ids: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
        """The prepared columns, in the order of the features, from what `factorize` and `look_up` gave."""
        columns = {}
        for kind in self.table_kinds:
            name = kind.feature.name
            columns[name] = kind.assemble(ids[name], found.lengths.get(name))
        for dense in self.dense_kinds:
            columns[dense.feature.name] = dense.assemble(found.numbers[dense.feature.name])
        return {feature.name: columns[feature.name] for feature in self.features}

    def column(self, columns: Mapping[str, pa.Array], name: str) -> pa.Array:
        """A column in its type at preparing time, or, where a value does not fit that, in its own.

        Raises:
            UserError: it is absent, or of a type that does not fit.
        """
        if name not in columns:
            raise UserError(f"no column '{name}'; the model needs {', '.join(self.schema.names)}")
        column, wanted = columns[name], self.schema.field(name).type
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        column = without_views(column)
        if column.type == wanted:
            return column
        if not self._fits(name, column.type, wanted):
            raise UserError(f"column '{name}' is {column.type}, and the model was trained on {wanted}; cast it")
        if pa.types.is_floating(column.type) and pa.types.is_decimal(wanted):
            return column  # the cast would round, and only where all values can be cast
        try:
            return column.cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return column

    def _fits(self, name: str, given: pa.DataType, wanted: pa.DataType) -> bool:
        """Whether values of one type may be values of a column; the number 7 is none of a column of texts."""
        if pa.types.is_dictionary(given):
            given = given.value_type
        if pa.types.is_null(given) or given == wanted:
            return True
        if is_list(given) or is_list(wanted):
            return is_list(given) and is_list(wanted) and self._fits(name, given.value_type, wanted.value_type)
        # Of what is kept as text, such as times of day, only the values of a text column must come as text.
        is_text = is_string(wanted) and all(
            self._value_types[str(kind.feature.table)] == "VARCHAR"
            for kind in self.table_kinds
            if kind.feature.column == name
        )
        return is_string(given) if is_text else fits(given, wanted)

    def save(self, folder: Path) -> None:
        """Write ``encoder.json`` and the vocabularies into a folder, made here."""
        make_folder(folder)
        fields = {
            "format": FORMAT,
            "hash": HASH_NAME,
            "features": [asdict(feature) for feature in self.features],
            "tables": [asdict(table) for table in self.tables],
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
        }
        write_json(folder / FILE_NAME, fields)
        for name, lookup in self.lookups.items():
            if isinstance(lookup, Vocabulary):
                lookup.save(folder / name)

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Open what `save` wrote.

        Raises:
            UserError: a file is missing, damaged or of another version.
        """
        path = folder / FILE_NAME
        try:
            fields: dict[str, Any] = read_json(path)
            if (fields["format"], fields["hash"]) != (FORMAT, HASH_NAME):
                raise UserError(f"{path}: written by another version of recmtl; prepare the data again")
            features = tuple(Feature(**feature) for feature in fields["features"])
            tables = tuple(Table(**table) for table in fields["tables"])
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(fields["schema"])))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the data again") from None
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(f"{path}: damaged ({error!r}); prepare the data again") from None
        lookups = {t.name: Hashed(t.rows) if t.hashed else Vocabulary.load(folder / t.name) for t in tables}
        return cls(features, tables, lookups, schema)


def _factorize(columns: list[pa.Array], kind: str) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """The distinct values of columns of one type, canonical; which of them no table has; and the codes of all rows."""
    together = _joined(columns)
    if pa.types.is_null(together.type):
        return pa.nulls(0, arrow_type(kind)), np.zeros(0, bool), np.full(len(together), NO_VALUE, np.int32)
    encoded = together.dictionary_encode()
    distinct, refused = canonical(encoded.dictionary, kind)
    indices = encoded.indices if encoded.null_count == 0 else pc.fill_null(encoded.indices, NO_VALUE)
    codes: np.ndarray = indices.to_numpy().copy()
    if refused is None:
        refused = np.zeros(len(distinct), bool)
    if distinct.null_count:  # NaN, or a value that the type cannot hold
        kept = distinct.is_valid().to_numpy(zero_copy_only=False) | refused
        renumbered = np.where(kept, np.cumsum(kept) - 1, NO_VALUE).astype(np.int32)
        codes = np.append(renumbered, np.int32(NO_VALUE))[codes]
        distinct, refused = distinct.filter(pa.array(kept)), refused[kept]
        distinct = pc.fill_null(distinct, _any_value(distinct.type))
    return distinct, refused, codes


def _joined(columns: list[pa.Array]) -> pa.Array:
    return columns[0] if len(columns) == 1 else pa.concat_arrays(columns)


def _any_value(kind: pa.DataType) -> pa.Scalar:
    """A value of a type, to stand where there is none."""
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return pa.scalar(b"", pa.large_binary()).cast(kind)
    return pa.scalar(0, pa.int64()).cast(kind) if not pa.types.is_date(kind) else pa.scalar(0, pa.int32()).cast(kind)
