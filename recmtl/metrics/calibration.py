"""Calibration bins: mean prediction and mean label of the rows between quantiles of the prediction."""

from __future__ import annotations

import numpy as np
import torch

from recmtl.metrics.names import Values
from recmtl.metrics.ranges import SortedRows, from_ordered_bits, keys_of
from recmtl.metrics.rows import Block, RowMetric, Rows

BINS = 20
"""Bins of a calibration plot, of equal weight where predictions differ."""


class CalibrationBins(RowMetric):
    """Bins cut at quantiles of the predictions; equal ones share a bin.

    Values:
        bins: by rising prediction, ``rows``, mean ``prediction``, mean ``label`` and of a binary task ``positives`` of
            each bin (`recmtl.metrics.names.Bins`). With weights the bins are of equal weight and means weighted.
    """

    def measure(self, rows: Rows) -> Values:
        """Exchanges counts for the quantiles, then sums by bin."""
        names = ["rows", "prediction", *(["positives"] if self.task.kind == "binary" else []), "label"]
        if not rows.count:
            return {"bins": {name: [] for name in names}}
        keys = ((keys_of(self._scores(block)), block.weights) for block in rows.blocks)
        ordered = SortedRows(rows.context, keys, weighted=rows.weighted)
        targets = np.arange(1, BINS) * rows.mass() / BINS if rows.weighted else np.arange(1, BINS) * rows.count // BINS
        at = ordered.quantiles(targets, by_mass=rows.weighted)
        del ordered
        edges = np.unique(from_ordered_bits(at.astype(np.uint32)))
        sums = np.zeros((5, len(edges) + 1))
        for block in rows.blocks:
            scores = self._scores(block)
            bins = np.searchsorted(edges, scores, "right")
            z = torch.from_numpy(scores).double()
            p, y = (z.sigmoid() if self.task.kind == "binary" else z).numpy(), block.labels.astype(np.float64)
            mass = block.mass()
            columns = (None, mass, p * mass, y * mass, y)
            sums += [np.bincount(bins, column, minlength=sums.shape[1]) for column in columns]
        sums = rows.context.sum_on_host(sums)
        counts, masses, predicted, labelled, positives = sums[:, sums[0] > 0]
        found = {
            "rows": counts.astype(int).tolist(),
            "prediction": (predicted / masses).tolist(),
            "positives": positives.astype(int).tolist(),
            "label": (labelled / masses).tolist(),
        }
        return {"bins": {name: found[name] for name in names}}

    def _scores(self, block: Block) -> np.ndarray:
        """What rows are put in order by, float32 [n]: the logit, or the prediction in the label's unit."""
        return block.logits if self.task.kind == "binary" else block.predictions(self.task)
