"""The rows of a recipe's query that have a label, put on disk."""

from __future__ import annotations

from collections.abc import Iterable

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.data.prepare.examples import ROW
from recmtl.data.prepare.factorized import FactorizedRows
from recmtl.data.prepare.labels import without_labels
from recmtl.data.prepare.misaligned import misaligned
from recmtl.data.recipe import Recipe
from recmtl.encoding.histories import Misaligned


def store_rows(
    recipe: Recipe,
    batches: Iterable[pa.RecordBatch],
    rows: FactorizedRows,
    db: duckdb.DuckDBPyConnection | None = None,
) -> int:
    """Store the rows that have a label of any task.

    Args:
        recipe: names the labels.
        batches: what `SELECTED` yields.
        rows: where they go.
        db: with the views of the sources, in which a row that is refused is looked for; None: they are out of reach.

    Returns:
        The number of the others.

    Raises:
        UserError: the columns of a history differ in length in a row.
    """
    left_out = 0
    with rows.writer() as write:
        for batch in batches:
            if (none := without_labels(recipe, batch)) is not None:
                left_out += int(pc.sum(none).as_py())
                batch = batch.filter(pc.invert(none))
            number = pa.array(np.arange(rows.rows, rows.rows + batch.num_rows))
            names = [*batch.schema.names, ROW.strip('"')]
            try:
                write(pa.RecordBatch.from_arrays([*batch.columns, number], names=names))
            except Misaligned as error:
                raise misaligned(recipe, batch, error, db) from None
    return left_out
