"""The values that have ids of their own: sorted keys and their ids, mapped into memory.

Ids: 0 is missing, 1 is unseen or too rare, 2 … are values by falling count. A look-up is a binary search of the
distinct values of a batch; there is nothing to load, and processes of one machine share the pages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.encoding.decode import decode, read_values
from recmtl.encoding.hashing import hash_texts
from recmtl.encoding.values import canonical, keys
from recmtl.errors import UserError
from recmtl.runtime.storage import local_path, open_write
from recmtl.schema import FIRST, UNSEEN

BATCH_ROWS = 2**18
SMALL = 4096
"""Vocabularies of so many keys lie in a near cache: to sort what is sought takes longer than it saves."""


class Vocabulary:
    """Keys (uint64, rising) and the id of each (int32).

    Args:
        keys: [n].
        ids: [n], from `FIRST` on.
    """

    def __init__(self, keys: np.ndarray, ids: np.ndarray) -> None:
        self.keys, self.ids = keys, ids

    @property
    def rows(self) -> int:
        """Ids that there are, `MISSING` and `UNSEEN` among them."""
        return len(self.ids) + FIRST

    def look_up(self, wanted: np.ndarray) -> np.ndarray:
        """The ids of keys, int32 [n]; `UNSEEN` where there is none."""
        if not len(self.keys):
            return np.full(len(wanted), UNSEEN, np.int32)
        if len(self.keys) <= SMALL or len(wanted) == 1:
            return self._search(wanted)
        # Searches in order find their way through memory that the one before has brought.
        order = np.argsort(wanted)
        ids = np.empty(len(wanted), np.int32)
        ids[order] = self._search(wanted[order])
        return ids

    def _search(self, wanted: np.ndarray) -> np.ndarray:
        """As `look_up`, in the order given."""
        places = self.keys.searchsorted(wanted)
        places[places == len(self.keys)] = 0
        return np.where(self.keys[places] == wanted, self.ids[places], np.int32(UNSEEN))

    @classmethod
    def build(cls, path: Path, kind: str) -> Vocabulary:
        """From a Parquet file with the columns value and id, batch by batch.

        Raises:
            UserError: two values have one key; names both.
        """
        done = 0
        with pq.ParquetFile(local_path(path)) as file:
            rows = file.metadata.num_rows
            all_keys, ids = np.empty(rows, np.uint64), np.empty(rows, np.int32)
            for batch in file.iter_batches(BATCH_ROWS):
                values, _ = canonical(batch.column(0), kind)
                some = slice(done, done + batch.num_rows)
                all_keys[some], ids[some] = keys(values), batch.column(1).to_numpy()
                done += batch.num_rows
        order = np.argsort(all_keys)
        all_keys, ids = all_keys[order], ids[order]
        equal = np.flatnonzero(all_keys[1:] == all_keys[:-1])
        if len(equal):
            first, second = decode(read_values(path.parent, path.stem), ids[equal[0] : equal[0] + 2]).to_pylist()
            raise UserError(f"table '{path.stem}': {first!r} and {second!r} have one hash; change one of them in sql")
        return cls(all_keys, ids)

    def save(self, path: Path) -> None:
        """Write ``PATH.keys.npy`` and ``PATH.ids.npy``."""
        for part, values in (("keys", self.keys), ("ids", self.ids)):
            with open_write(_file(path, part)) as file:
                np.save(file, values)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Map what `save` wrote.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            parts = [np.load(local_path(_file(path, part)), mmap_mode="r") for part in ("keys", "ids")]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the vocabulary cannot be read ({error}); prepare the data again") from None
        # As plain arrays of the same memory: NumPy's class for mapped ones costs microseconds an access.
        return cls(*(part.view(np.ndarray) for part in parts))


class Hashed:
    """In place of a vocabulary: every value has one of a fixed number of ids, 2 + hash(key) modulo (rows − 2).

    Args:
        rows: ids that there are.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def look_up(self, wanted: np.ndarray) -> np.ndarray:
        """The ids of keys, int32 [n]."""
        # Keys of whole numbers are not spread over the 64 bits; their hashes are.
        spread = hash_texts(pa.Array.from_buffers(pa.binary(8), len(wanted), [None, pa.py_buffer(wanted.tobytes())]))
        return (FIRST + spread % np.uint64(self.rows - FIRST)).astype(np.int32)


def _file(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name}.{part}.npy")
