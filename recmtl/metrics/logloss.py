"""Log loss and what it is compared with, and mean predictions against base rates: sums over the rows of all ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from recmtl.metrics.entropy import entropy
from recmtl.metrics.jackknife import FOLDS, means_without, numbers, standard_error
from recmtl.metrics.names import Values
from recmtl.metrics.rows import RowMetric, Rows


class LogLoss(RowMetric):
    """Mean binary cross entropy and mean prediction. With weights every mean is a weighted one.

    Values:
        logloss: in nats. logloss_se: its standard error (`recmtl.metrics.jackknife`).
        ne: normalised entropy, logloss over the entropy of the base rate (He et al., ADKDD 2014, section 3); null where
            a class is missing.
        calibration: mean prediction over the base rate; null without positives.
        base_rate: fraction of positive labels.
        positives: their number. rows: rows measured. Both are counts, whatever the weights.

    Without rows all are null, counts 0.
    """

    higher_is_better = False

    def measure(self, rows: Rows) -> Values:
        """Exchanges sums by fold."""
        if not rows.count:
            return {"positives": 0, "rows": 0}
        of_folds = np.zeros((2, FOLDS))  # losses, weights
        sums = np.zeros(3)  # predictions, labels by weight, positives
        for block in rows.blocks:
            x, y = torch.from_numpy(block.logits).double(), torch.from_numpy(block.labels).double()
            losses = F.binary_cross_entropy_with_logits(x, y, reduction="none").numpy()
            mass = block.mass()
            folds = block.folds_or_one()
            of_folds += [np.bincount(folds, values, minlength=FOLDS) for values in (losses * mass, mass)]
            sums += (x.sigmoid().numpy() * mass).sum(), (y.numpy() * mass).sum(), y.sum().item()
        of_folds = rows.context.sum_on_host(of_folds)
        predicted, labelled, positives = rows.context.sum_on_host(sums).tolist()
        loss_of_fold, mass_of_fold = of_folds
        mass_of_all = mass_of_fold.sum().item()
        base_rate, logloss = labelled / mass_of_all, loss_of_fold.sum().item() / mass_of_all
        base_entropy = entropy(base_rate)
        return {
            "logloss": logloss,
            "logloss_se": standard_error(numbers(means_without(loss_of_fold, mass_of_fold))),
            "ne": logloss / base_entropy if base_entropy else None,
            "calibration": predicted / mass_of_all / base_rate if base_rate else None,
            "base_rate": base_rate,
            "positives": int(positives),
            "rows": rows.count,
        }
