"""Metrics against their definitions, written out the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from recmtl.losses import task_losses
from recmtl.metrics import Metrics, TaskMetrics, entropy, grouped_auc

ROWS = st.lists(  # score on a coarse grid (many ties), label, group
    st.tuples(st.integers(-4, 4).map(lambda x: x / 2), st.integers(0, 1), st.integers(-2, 3)), min_size=1, max_size=60
)


def auc_by_pairs(scores, labels) -> float | None:
    """Probability that a positive scores above a negative, ties counted half: every pair looked at."""
    pairs = [
        (p > n) + (p == n) / 2
        for p, is_positive in zip(scores, labels, strict=True)
        for n, is_negative in zip(scores, 1 - labels, strict=True)
        if is_positive and is_negative
    ]
    return sum(pairs) / len(pairs) if pairs else None


def gauc_by_loop(scores, labels, groups) -> float | None:
    total, rows = 0.0, 0
    for group in np.unique(groups):
        inside = groups == group
        auc = auc_by_pairs(scores[inside], labels[inside])
        if auc is not None:
            total, rows = total + auc * inside.sum(), rows + inside.sum()
    return total / rows if rows else None


def measured(logits, labels, oracle=None, group=None) -> dict:
    metric = TaskMetrics()
    metric.update(*(None if a is None else torch.as_tensor(a) for a in (logits, labels, oracle, group)))
    return metric.compute()


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_auc_and_gauc_equal_their_definitions(rows):
    scores, labels, groups = (np.array(column) for column in zip(*rows, strict=True))
    found = measured(scores, labels, group=groups)
    wanted = auc_by_pairs(scores, labels), gauc_by_loop(scores, labels, groups)
    assert (found["auc"], found["gauc"]) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_auc_equals_torchmetrics(rows):
    scores, labels, _ = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = measured(scores, labels)["auc"]
    if len(labels.unique()) < 2:
        assert found is None
    else:
        # A sigmoid keeps the order; binary_auroc would take some logits for probabilities.
        assert found == pytest.approx(binary_auroc(scores.sigmoid(), labels).item(), abs=1e-6)


def test_auc_of_many_rows_equals_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20_000, generator=generator)
    labels = (torch.rand(20_000, generator=generator) < (scores - 3).sigmoid()).float()
    assert measured(scores, labels)["auc"] == pytest.approx(
        binary_auroc(scores.sigmoid(), labels.int()).item(), abs=1e-6
    )


def test_grouped_auc_counts_the_groups_it_measures():
    auc, positives, rows = grouped_auc(
        torch.tensor([0.1, 0.9, 0.5, 0.5, 0.3, 0.2]),
        torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]),
        torch.tensor([7, 7, -5, -5, 2, 2]),  # the last one has positives only
    )
    assert auc.tolist() == [0.5, 1.0]
    assert positives.tolist() == [1, 1]
    assert rows.tolist() == [2, 2]


def test_logloss_ne_and_calibration_against_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, 1000)
    labels = (rng.random(1000) < 0.2).astype(float)
    p = 1 / (1 + np.exp(-logits))
    logloss = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    rate = labels.mean()
    found = measured(logits, labels)
    assert found["logloss"] == pytest.approx(logloss, rel=1e-12)
    assert found["ne"] == pytest.approx(logloss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)), rel=1e-12)
    assert found["calibration"] == pytest.approx(p.mean() / rate, rel=1e-12)
    assert found["base_rate"] == pytest.approx(rate, rel=1e-12)
    assert found["rows"] == 1000
    assert found["oracle_auc"] is None
    assert found["gauc"] is None


def test_predicting_the_base_rate_has_normalised_entropy_1():
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    found = measured(torch.full((5,), math.log(0.2 / 0.8), dtype=torch.float64), labels)
    assert found["ne"] == pytest.approx(1, rel=1e-7)
    assert found["calibration"] == pytest.approx(1, rel=1e-7)
    assert found["auc"] == 0.5
    assert entropy(0.2) == pytest.approx(-0.2 * math.log(0.2) - 0.8 * math.log(0.8))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only_is_null_not_a_half(label):
    found = measured(torch.tensor([0.3, -2.0, 1.0]), torch.full((3,), label), group=torch.tensor([1, 1, 2]))
    assert found["auc"] is None
    assert found["gauc"] is None
    assert found["ne"] is None
    assert found["logloss"] > 0
    assert found["base_rate"] == label
    assert (found["calibration"] is None) == (label == 0)


def test_extreme_logits_stay_finite():
    found = measured(torch.tensor([1e4, -1e4, 0.0]), torch.tensor([0.0, 1.0, 1.0]))
    assert found["logloss"] == pytest.approx((2e4 + math.log(2)) / 3)


def test_oracle_auc_leaves_unknown_probabilities_out():
    labels = np.array([0, 1, 1, 0, 1.0])
    oracle = np.array([0.1, 0.8, np.nan, np.nan, 0.05])
    assert measured(np.zeros(5), labels, oracle)["oracle_auc"] == auc_by_pairs(oracle[[0, 1, 4]], labels[[0, 1, 4]])
    assert measured(np.zeros(5), labels, np.full(5, np.nan))["oracle_auc"] is None


@pytest.mark.parametrize("sizes", [[300], [1] * 300, [0, 100, 0, 199, 1, 0]])
def test_parts_combine_to_the_whole(sizes):
    rng = np.random.default_rng(1)
    columns = [
        torch.tensor(rng.normal(size=300)),
        torch.tensor(rng.integers(0, 2, 300), dtype=torch.float32),
        torch.tensor(rng.random(300)),
        torch.tensor(rng.integers(0, 20, 300)),
    ]
    metric = TaskMetrics()
    for parts in zip(*(column.split(sizes) for column in columns), strict=True):
        metric.update(*parts)
    assert metric.compute() == measured(*columns)


def batch(rows: int, tasks: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, tasks, generator=generator),
        torch.randint(0, 2, (rows, tasks), generator=generator).float(),
        torch.rand(rows, tasks, generator=generator),
        torch.randint(0, 5, (rows,), generator=generator),
    )


def test_every_task_is_measured_on_real_rows_alone():
    logits, labels, oracle, group = batch(50, 2)
    weights = torch.ones(50)
    weights[35:] = 0
    metrics = Metrics(["a", "b"], gauc=True, device=torch.device("cpu"))
    metrics.update(logits, labels, weights, oracle, group)
    metrics.update(logits, labels, torch.zeros(50), oracle, group)  # all padding
    found = metrics.compute()
    assert list(found) == ["a", "b"]
    for i, name in enumerate(found):
        assert found[name] == measured(logits[:35, i], labels[:35, i], oracle[:35, i], group[:35])
        assert found[name]["rows"] == 35


def test_gauc_can_be_switched_off():
    logits, labels, oracle, group = batch(50, 1)
    metrics = Metrics(["a"], gauc=False, device=torch.device("cpu"))
    metrics.update(logits, labels, torch.ones(50), oracle, group)
    assert metrics.compute()["a"]["gauc"] is None
    assert metrics.compute()["a"]["auc"] is not None


def test_loss_is_the_weighted_cross_entropy_of_every_task():
    logits, labels, _, _ = batch(6, 3)
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.25, 0.0])
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    y = labels.numpy()
    wanted = -(weights.numpy()[:, None] * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum(0)
    assert task_losses(logits, labels, weights).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
