"""The model of the moment: where the export's path leads elsewhere, the model there takes over once it is proven."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recmtl.errors import UserError
from recmtl.inference.exported import ExportedModel
from recmtl.inference.inputs import Collator, Inputs
from recmtl.runtime.storage import real_path
from recmtl.serving.joint import JointScorer

WARM_ROWS = (1, 2, 200)
"""Rows of the batches that a new model scores before it takes over: the first calls are slow."""

log = logging.getLogger("recmtl.serving")


class CurrentModel:
    """Opens an export, and watches whether its path leads to another one.

    Args:
        export: a folder, or a link that is replaced by one to another folder.
        every: seconds between two looks.
        observe: called with what the model reads of every batch.
        swapped: called with the version that took over.
        refused: called with what is wrong with an export that did not.

    Raises:
        UserError: the export cannot be opened.
    """

    def __init__(
        self,
        export: Path,
        every: float,
        observe: Callable[[Inputs, Collator], None],
        swapped: Callable[[str], None],
        refused: Callable[[str], None],
    ) -> None:
        self._export, self._every = export, every
        self._observe, self._swapped, self._refused = observe, swapped, refused
        self._seen = real_path(export)
        self.scorer = open_scorer(self._seen, observe)
        swapped(self.scorer.model.version)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="swap", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            target = real_path(self._export)
            if target == self._seen:
                continue
            self._seen = target  # a model that is refused is not tried again and again
            try:
                scorer = open_scorer(target, self._observe)
                _check_columns(self.scorer.model, scorer.model)
            except UserError as error:
                log.error("export refused: %s; %s goes on", error, self.scorer.model.version)
                self._refused(str(error))
                continue
            # One assignment: a batch has the old model or the new one.
            self.scorer = scorer
            log.info("export taken over: %s, version %s", target, scorer.model.version)
            self._swapped(scorer.model.version)


def open_scorer(folder: Path, observe: Callable[[Inputs, Collator], None]) -> JointScorer:
    """Open an export, every byte checked, and let it score some rows.

    Raises:
        UserError: it is damaged.
    """
    model = ExportedModel(folder)
    for rows in WARM_ROWS:
        scores = model.score(missing_rows(model, rows))
        if not np.isfinite(scores).all():
            raise UserError(f"{folder}: its probabilities are no numbers")
    return JointScorer(model, observe)


def missing_rows(model: ExportedModel, rows: int) -> Inputs:
    """Rows in which everything is missing."""
    inputs = model.collator
    ids = np.zeros((len(inputs.categorical), rows), np.int32)
    numeric = np.zeros((rows, sum(dense.width for dense in inputs.dense)), np.float32)
    lists = [(np.zeros(0, np.int32), np.zeros(rows, np.int32)) for _ in inputs.lists]
    return Inputs(ids, numeric, lists, inputs.sequence_places)


def _check_columns(old: ExportedModel, new: ExportedModel) -> None:
    """Raise UserError if clients of the old model would be refused by the new one."""
    if lacking := [name for name in new.features if name not in old.features]:
        raise UserError(f"{new.folder}: it reads column {lacking[0]!r}, which clients of the model before do not send")
    if lacking := [task for task in old.tasks if task not in new.tasks]:
        raise UserError(f"{new.folder}: it does not predict {lacking[0]!r}, which the model before does")
