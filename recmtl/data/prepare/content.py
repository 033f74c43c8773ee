"""A digest of every column that is written, by which two prepared folders are told apart.

BLAKE2b (RFC 7693) of 16 bytes over a column's values in row order, each value little-endian in the column's own width.
A list column has two digests: ``NAME`` over the ids of all its lists, one after the other, and ``NAME.lengths`` over
their lengths as int32. A text stands as its hash of 64 bits (`recmtl.encoding.hashing`), null as 0. Neither the batches
that rows come in, nor threads, nor the version of Arrow or Parquet change a digest.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from recmtl.encoding.hashing import hash_texts

DIGEST_BYTES = 16


class ContentDigests:
    """Digests of the rows of every split, fed with them in their order."""

    def __init__(self) -> None:
        self._digests: dict[str, dict[str, hashlib.blake2b]] = defaultdict(dict)

    def add(self, split: str, rows: pa.Table) -> None:
        """Take in the next rows of a split."""
        digests = self._digests[split]
        for name, values in _streams(rows):
            if name not in digests:
                digests[name] = hashlib.blake2b(digest_size=DIGEST_BYTES)
            digests[name].update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)

    def hexdigests(self) -> dict[str, dict[str, str]]:
        """{split: {column: digest}} of what was taken in."""
        return {
            split: {name: digest.hexdigest() for name, digest in digests.items()}
            for split, digests in self._digests.items()
        }


def _streams(rows: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """The values of every column, chunk by chunk, without copying them.

    Of the prepared columns only labels and segments, which are text, hold nulls. A null label counts as the number -128
    or NaN, which no label is.
    """
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        for chunk in column.chunks:
            if pa.types.is_string(chunk.type):
                known = chunk.is_valid().to_numpy(zero_copy_only=False)
                yield name, np.where(known, hash_texts(chunk.fill_null("")), np.uint64(0))
                continue
            if chunk.null_count:
                chunk = chunk.fill_null(-128 if pa.types.is_integer(chunk.type) else math.nan)
            if pa.types.is_list(chunk.type):
                yield f"{name}.lengths", np.diff(chunk.offsets.to_numpy())
            yield name, (chunk.flatten() if pa.types.is_nested(chunk.type) else chunk).to_numpy()
