"""Files of a split that are open: few at a time, however many the split has."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.read.footers import damaged, row_counts
from recmtl.errors import UserError
from recmtl.runtime.ranges import Ahead
from recmtl.runtime.storage import expect, open_source


class OpenFiles:
    """Opens files when a row group of theirs is to be decoded, and closes the one that was used longest ago.

    An open file holds its footer, about 1 kB for every column of every row group, so a split's files are not all kept.
    Several threads may use files at the same time; each has a file to itself, so that two threads in one file open it
    twice.

    Args:
        paths: the files.
        counts: the rows of each row group, by file, as they were when the run began.
        most: files that may be open at a time, at least the number of threads.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[np.ndarray], most: int) -> None:
        self._paths, self._counts, self.most = paths, counts, most
        self._lock = threading.Lock()
        self._idle: list[tuple[int, pq.ParquetFile]] = []
        """Open files that no thread uses, the one that was used last at the end."""
        self._ahead = Ahead()
        self._used = 0
        """Files that threads use."""

    @contextmanager
    def file(self, number: int) -> Iterator[pq.ParquetFile]:
        """File `number`, for the time of the block and the calling thread alone.

        Raises:
            UserError: the file is gone or damaged, or has other row groups than when the run began.
        """
        file = self._reserve(number)
        try:
            if file is None:
                file = self._open(number)
            yield file
        except BaseException:
            if file is not None:
                file.close()
            file = None
            raise
        finally:
            with self._lock:
                self._used -= 1
                if file is not None:
                    self._idle.append((number, file))

    def expect(self, number: int, start: int, stop: int) -> None:
        """Say that these bytes of file `number` will be read soon."""
        expect(self._ahead, self._paths[number], start, stop)

    def close(self) -> None:
        """Close the files that no thread uses."""
        self._ahead.close()
        with self._lock:
            idle, self._idle = self._idle, []
        for _, file in idle:
            file.close()

    def _reserve(self, number: int) -> pq.ParquetFile | None:
        """The file where it is open and idle; else none, and there is room to open it."""
        with self._lock:
            self._used += 1
            for place in reversed(range(len(self._idle))):
                if self._idle[place][0] == number:
                    return self._idle.pop(place)[1]
            assert self._used <= self.most
            if self._used + len(self._idle) > self.most:
                self._idle.pop(0)[1].close()
            return None

    def _open(self, number: int) -> pq.ParquetFile:
        path = self._paths[number]
        try:
            # Not mapped into memory: there, a file that is cut short while it is read ends the process.
            file = pq.ParquetFile(open_source(path, self._ahead))
        except (OSError, pa.ArrowException) as error:
            raise damaged(path, error) from None
        if row_counts(file.metadata) != self._counts[number].tolist():
            file.close()
            raise UserError(f"{path}: changed since the run began; prepare the data again")
        return file
