"""Errors of predictions of numbers: sums over the rows of all ranks."""

from __future__ import annotations

import math

import numpy as np
import torch

from recmtl.metrics.jackknife import FOLDS, means_without, numbers, standard_error
from recmtl.metrics.names import Values
from recmtl.metrics.rows import RowMetric, Rows
from recmtl.objectives.losses import row_losses


class Errors(RowMetric):
    """The errors of a regression or duration task, e = prediction − label. With weights every mean is weighted.

    Values:
        loss: mean of what training minimises.
        mae: mean of |e|. rmse: root of the mean of e². Both in the label's unit.
        r2: 1 − Σ e² / Σ (label − mean label)²; null where all labels are equal.
        mae_se, rmse_se, r2_se: their standard errors (`recmtl.metrics.jackknife`).
        bias: mean prediction over mean label; null where the latter is 0.
        mean_label: in its unit. rows: rows measured, a count whatever the weights.

    Without rows all are null, rows 0.
    """

    def measure(self, rows: Rows) -> Values:
        """Exchanges the sum of the labels, whose mean the squares are about, then sums by fold."""
        if not rows.count:
            return {"rows": 0}
        low, high = rows.label_limits()
        labelled = sum((block.labels.astype(np.float64) * block.mass()).sum() for block in rows.blocks)
        mean_label = rows.context.sum_on_host(np.array([labelled], np.float64)).item() / rows.mass()
        sums = np.zeros((7, FOLDS))
        for block in rows.blocks:
            mass = block.mass()
            predicted = block.predictions(self.task)
            losses = row_losses(torch.from_numpy(block.logits), torch.from_numpy(block.labels), self.task).numpy()
            p, y = predicted.astype(np.float64), block.labels.astype(np.float64)
            # Squares of numbers that lie far from 0 and close to each other would cancel.
            columns = (
                np.ones(len(block)),
                losses,
                p,
                abs(p - y),
                np.square(p - y),
                y - mean_label,
                np.square(y - mean_label),
            )
            folds = block.folds_or_one()
            sums += [np.bincount(folds, column * mass, minlength=FOLDS) for column in columns]
        masses, losses, predicted, absolute, squared, deviations, squares = sums = rows.context.sum_on_host(sums)
        _, loss, prediction, mae, mse, deviation, spread = (sums.sum(1) / masses.sum()).tolist()
        spread -= deviation**2
        squared_without = means_without(squared, masses)
        spread_without = means_without(squares, masses) - means_without(deviations, masses) ** 2
        # Told by the labels themselves, for sums of their squares are seldom exactly 0.
        varies_without = np.array([np.delete(low, fold).min() < np.delete(high, fold).max() for fold in range(FOLDS)])
        has_spread = varies_without & (spread_without > 0)  # NaN, of a fold without rows, is not
        r2_without = 1 - np.divide(squared_without, spread_without, out=np.full(FOLDS, np.nan), where=has_spread)
        varies = low.min() < high.max()
        all_vary = varies and (has_spread | np.isnan(spread_without)).all()
        return {
            "loss": loss,
            "mae": mae,
            "mae_se": standard_error(numbers(means_without(absolute, masses))),
            "rmse": math.sqrt(mse),
            "rmse_se": standard_error(numbers(np.sqrt(squared_without))),
            "r2": 1 - mse / spread if varies else None,
            "r2_se": standard_error(numbers(r2_without)) if all_vary else None,
            "bias": prediction / mean_label if mean_label else None,
            "mean_label": mean_label,
            "rows": rows.count,
        }
