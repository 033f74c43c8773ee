"""Metrics of tasks whose labels are numbers, against their definitions."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import NUMBER, auc, measure
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from recmtl.metrics.calibration import BINS
from recmtl.metrics.jackknife import FOLDS, folds_of, standard_error
from recmtl.metrics.rows import BLOCK
from recmtl.metrics.xauc import xauc

ROWS = st.lists(  # prediction and label on coarse grids (many ties), fold, whole weight
    st.tuples(st.integers(-4, 4).map(lambda x: x / 2), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3)),
    min_size=1,
    max_size=50,
)


def measure_numbers(predictions, labels, folds=None, weights=None, **chosen):
    """The metrics of a task that predicts its logits and minimises the squared error."""
    return measure(predictions, labels, folds=folds, weights=weights, task=NUMBER, **chosen)


def same(value, rel=1e-9):
    """What equals a number as far as rounding allows, and None exactly."""
    return None if value is None else pytest.approx(value, rel=rel, abs=1e-12)


def columns_of(rows):
    predictions, labels, folds, weights = (np.array(column) for column in zip(*rows, strict=True))
    return predictions.astype(np.float32), labels.astype(np.float32), folds.astype(np.uint8), weights.astype(np.float32)


def xauc_by_pairs(predictions, labels, weights) -> float | None:
    alike = pairs = 0.0
    for i, j in combinations(range(len(labels)), 2):
        if labels[i] != labels[j]:
            mass, product = float(weights[i]) * float(weights[j]), predictions[i] - predictions[j]
            pairs += mass
            alike += mass * (0.5 if product == 0 else float((product > 0) == (labels[i] > labels[j])))
    return alike / pairs if pairs else None


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(0, 2**32))
def test_xauc_equals_its_definition(rows, seed):
    predictions, labels, _, _ = columns_of(rows)
    weights = np.random.default_rng(seed).uniform(0.01, 5, len(rows)).astype(np.float32)
    assert xauc(predictions, labels) == xauc_by_pairs(predictions, labels, np.ones(len(rows)))
    found, _ = measure_numbers(predictions, labels, weights=weights, include=("xauc",))
    assert found["xauc"] == same(xauc_by_pairs(predictions, labels, weights))


@pytest.mark.parametrize("rows", [1, 2, 3, 4096, 4097, 100_003])
def test_xauc_of_labels_0_and_1_is_the_auc(rows):
    rng = np.random.default_rng(rows)
    scores, labels = rng.normal(size=rows).round(2).astype(np.float32), rng.random(rows) < 0.3
    weights = rng.uniform(0.1, 3, rows).astype(np.float32)
    assert xauc(scores, labels) == measure_numbers(scores, labels)[0]["xauc"] == auc(scores, labels)
    value = auc(scores, labels, weights)
    assert measure_numbers(scores, labels, weights=weights)[0]["xauc"] == (value and pytest.approx(value, rel=1e-12))


def test_xauc_of_many_rows_is_exact():
    """One pair of 5·10^11 is told from none."""
    rows = 2**20 + 3
    rising = np.arange(rows, dtype=np.float64)
    assert xauc(rising, rising) == 1
    assert xauc(-rising, rising) == 0
    swapped = rising.copy()
    swapped[:2] = swapped[1::-1]
    pairs = rows * (rows - 1) // 2
    assert xauc(swapped, rising) == (pairs - 1) / pairs


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_weight_2_is_the_row_twice(rows):
    predictions, labels, folds, weights = columns_of(rows)
    found, bins = measure_numbers(predictions, labels, folds, weights)
    repeated = (column.repeat(weights.astype(int)) for column in (predictions, labels, folds))
    wanted, wanted_bins = measure_numbers(*repeated)
    assert found["rows"] == sum(bins["rows"]) == len(labels)
    for name in found.keys() - {"rows"}:
        assert found[name] == same(wanted[name]), name
    for name in ("prediction", "label"):
        assert bins[name] == pytest.approx(wanted_bins[name], rel=1e-9, abs=1e-12)


def by_hand(predictions, labels, weights) -> dict[str, float]:
    p, y = predictions.astype(float), labels.astype(float)
    mse = np.average((p - y) ** 2, weights=weights)
    return {
        "mae": np.average(abs(p - y), weights=weights),
        "rmse": math.sqrt(mse),
        "r2": 1 - mse / np.average((y - np.average(y, weights=weights)) ** 2, weights=weights),
        "bias": np.average(p, weights=weights) / np.average(y, weights=weights),
        "mean_label": np.average(y, weights=weights),
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shift", [0, 1e4])
def test_metrics_and_errors_against_numpy(weighted, shift):
    rng = np.random.default_rng(0)
    labels = (shift + rng.gamma(2, 20, 4000)).astype(np.float32)
    predictions = (labels + rng.normal(3, 15, 4000)).astype(np.float32)
    weights = rng.uniform(0.1, 5, 4000).astype(np.float32) if weighted else None
    w = np.ones(4000) if weights is None else weights.astype(float)
    folds = folds_of(np.arange(4000))
    losses = np.square(predictions - labels)
    found, _ = measure_numbers(predictions, labels, folds, weights)
    for name, value in by_hand(predictions, labels, w).items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    assert found["loss"] == pytest.approx(np.average(losses.astype(float), weights=w), rel=1e-12)
    left = [folds != g for g in range(FOLDS)]
    without = [by_hand(predictions[kept], labels[kept], w[kept]) for kept in left]
    for name in ("mae", "rmse", "r2"):
        assert found[f"{name}_se"] == pytest.approx(standard_error([one[name] for one in without]), rel=1e-6), name


def test_metrics_equal_torchmetrics():
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(5000, generator=generator)
    predictions = labels + torch.randn(5000, generator=generator)
    found, _ = measure_numbers(predictions.numpy(), labels.numpy())
    assert found["mae"] == pytest.approx(mean_absolute_error(predictions, labels).item(), rel=1e-5)
    assert found["rmse"] == pytest.approx(mean_squared_error(predictions, labels, squared=False).item(), rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(predictions, labels).item(), rel=1e-4)


def test_the_mean_label_is_no_better_than_itself():
    labels = np.array([1, 2, 6], np.float32)
    found, bins = measure_numbers(np.full(3, 3, np.float32), labels)
    assert found["r2"] == pytest.approx(0, abs=1e-12)
    assert (found["bias"], found["xauc"], found["mean_label"]) == (1, 0.5, 3)
    assert bins == {"rows": [3], "prediction": [3.0], "label": [3.0]}
    assert found["loss"] == 14 / 3
    assert found["mae_se"] is None  # of a single fold there is none


def test_what_is_undefined_is_null():
    constant, _ = measure_numbers(np.arange(4, dtype=np.float32), np.zeros(4, np.float32))
    assert (constant["r2"], constant["r2_se"], constant["xauc"], constant["bias"]) == (None, None, None, None)
    assert constant["mae"] == 1.5
    # Without fold 0 all labels are equal.
    folds = np.array([0, 1, 1, 2], np.uint8)
    found, _ = measure_numbers(np.arange(4, dtype=np.float32), np.array([1, 0, 0, 0], np.float32), folds)
    assert found["r2"] is not None
    assert found["r2_se"] is None
    assert found["rmse_se"] > 0
    none, bins = measure_numbers(np.zeros(0, np.float32), np.zeros(0, np.float32))
    assert none.pop("rows") == 0
    assert set(none.values()) == {None}
    assert bins == {"rows": [], "prediction": [], "label": []}


def test_bins_are_equally_full_and_rows_beyond_a_block_are_measured_alike():
    rng = np.random.default_rng(0)
    labels = rng.gamma(2, 20, 2000).astype(np.float32)
    predictions = (labels * rng.uniform(0.5, 1.5, 2000)).astype(np.float32)
    one, bins = measure_numbers(predictions, labels)
    assert bins["rows"] == [2000 // BINS] * BINS
    order = np.argsort(predictions).reshape(BINS, -1)
    assert bins["prediction"] == pytest.approx(predictions[order].mean(axis=1, dtype=float))
    assert bins["label"] == pytest.approx(labels[order].mean(axis=1, dtype=float))
    times = BLOCK // 2000 + 2
    many, _ = measure_numbers(np.tile(predictions, times), np.tile(labels, times))
    assert many.pop("rows") == times * one.pop("rows")
    for name, value in one.items():
        assert many[name] == same(value), name


def test_only_what_is_asked_for_is_measured():
    labels = np.arange(200, dtype=np.float32)
    folds = folds_of(np.arange(200))
    found, _ = measure_numbers(labels + 1, labels, folds, include=("rmse",))
    known = {name for name, value in found.items() if value is not None}
    assert known == {"loss", "rmse", "rmse_se", "mean_label", "rows"}
