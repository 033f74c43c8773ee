"""TensorBoard's event files, written in the calling thread: where the disk refuses, the caller learns of it.

PyTorch's SummaryWriter leaves the writing to a thread, which dies of such an error with a traceback and may leave its
caller waiting forever.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from recmtl.runtime.storage import discard, make_folder, open_write, publish


class Events:
    """One file of events in a folder.

    Args:
        folder: made where it is missing; other processes' files in it stay.
        step: the step that the run starts from; TensorBoard hides what these files say of later ones.

    Raises:
        OSError: it cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, step: int) -> None:
        make_folder(folder)
        self.path = folder / f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open_write(self.path)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A point of every curve."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=points))

    def add_text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard's page of texts, which reads it as Markdown."""
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        value = Summary.Value(tag=name, metadata=create_summary_metadata(name, None), tensor=tensor)
        self._write(step=step, summary=Summary(value=[value]))

    def publish(self) -> None:
        """Let others see what was written so far."""
        publish(self._file)

    def discard(self) -> None:
        """Close the file without that."""
        discard(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()
