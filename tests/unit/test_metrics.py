"""Metrics against their definitions, written out the slow way."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import auc, measure
from torchmetrics.functional.classification import binary_auroc

from recmtl.distributed.context import DistContext, process_group
from recmtl.metrics.calibration import BINS
from recmtl.metrics.collect import Metrics
from recmtl.metrics.entropy import entropy
from recmtl.metrics.gauc import grouped_auc
from recmtl.metrics.ranges import keys_of
from recmtl.metrics.rows import BLOCK
from recmtl.objectives.losses import task_losses
from recmtl.schema import Task

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


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with process_group("cpu") as context:
        yield context


def measured(logits, labels, oracle=None, group=None, **chosen) -> dict:
    group = None if group is None else np.unique(group, return_inverse=True)[1]
    return measure(logits, labels, oracle, group, **chosen)[0]


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


def test_auc_is_exact_past_the_integers_that_float32_knows():
    """2^24 and more rows; positives score 1 … n, negatives 0 … n − 1."""
    n = 2**23 + 1
    scores = np.concatenate([np.arange(1, n + 1, dtype=np.float32), np.arange(n, dtype=np.float32)])
    labels = np.arange(2 * n) < n
    wins = (n - 1) * n / 2 + n  # of positive s over the s negatives below it
    ties = n - 1
    assert auc(scores, labels) == (wins + ties / 2) / n**2


@pytest.mark.parametrize("base_rate", [0.01, 0.9])
def test_equal_groups_have_the_auc_of_one(base_rate):
    """Scores of either sign, some of them −0."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=1000).round(1).astype(np.float32)
    labels = rng.random(1000) < base_rate
    assert (scores == 0).any()
    assert np.signbit(scores[scores == 0]).any()
    area, rows = grouped_auc(np.arange(3).repeat(1000), keys_of(np.tile(scores, 3), np.tile(labels, 3)), None)
    assert area.tolist() == [auc(scores, labels)] * 3
    assert rows.tolist() == [1000] * 3


def test_grouped_auc_counts_the_groups_it_measures():
    scores, labels = np.array([0.1, 0.9, 0.5, 0.5, 0.3, 0.2, 0.1], np.float32), np.array([0, 1, 1, 0, 1, 1, 0])
    users = np.array([2, 2, 0, 0, 1, 1, -(2**62)])  # the last two have one class
    area, rows = grouped_auc(users, keys_of(scores, labels), None)
    assert area.tolist() == [1.0, 0.5]
    assert rows.tolist() == [2, 2]


def test_logloss_ne_and_calibration_against_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, 1000).astype(np.float32).astype(float)
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
    labels = np.array([0, 1, 1, 0, 1])
    oracle = np.array([0.1, 0.8, np.nan, np.nan, 0.05])
    assert measured(np.zeros(5), labels, oracle)["oracle_auc"] == auc_by_pairs(oracle[[0, 1, 4]], labels[[0, 1, 4]])
    assert measured(np.zeros(5), labels, np.full(5, np.nan))["oracle_auc"] is None


def test_rows_beyond_a_block_are_measured_alike():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=1000), rng.random(1000) < 0.3
    times = 2 * BLOCK // 1000 + 1
    found, bins = measure(np.tile(logits, times).astype(np.float32), np.tile(labels, times))
    one, one_bins = measure(logits.astype(np.float32), labels)
    assert found["rows"] == times * one["rows"]
    for name in ("auc", "logloss", "ne", "calibration", "base_rate"):
        assert found[name] == pytest.approx(one[name], rel=1e-9)
    assert bins["prediction"] == pytest.approx(one_bins["prediction"], rel=1e-9)
    for name in ("rows", "positives"):
        assert bins[name] == [times * count for count in one_bins[name]]


def calibration_by_hand(logits, labels) -> list[tuple[int, float, int]]:
    """Rows by rising prediction, cut into equal parts, but never between equal predictions."""
    rows = sorted(zip(logits, labels, strict=True))
    cuts = [0]
    for part in range(1, BINS):
        cut = part * len(rows) // BINS
        while cut and rows[cut - 1][0] == rows[cut][0]:
            cut -= 1
        cuts.append(cut)
    parts = [rows[low:high] for low, high in zip(cuts, [*cuts[1:], len(rows)], strict=True)]
    return [
        (len(part), sum(1 / (1 + math.exp(-x)) for x, _ in part) / len(part), sum(y for _, y in part))
        for part in parts
        if part
    ]


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_calibration_bins_equal_their_definition(rows):
    logits, labels, _ = zip(*rows, strict=True)
    _, bins = measure(np.array(logits, np.float32), np.array(labels, bool))
    wanted = calibration_by_hand(logits, labels)
    assert bins["rows"] == [count for count, _, _ in wanted]
    assert bins["prediction"] == pytest.approx([prediction for _, prediction, _ in wanted])
    assert bins["positives"] == [positives for _, _, positives in wanted]
    assert bins["label"] == pytest.approx([positives / count for count, _, positives in wanted])


def test_calibration_bins_are_equally_full():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4000).astype(np.float32)
    labels = rng.random(4000) < 1 / (1 + np.exp(-logits))
    metrics, bins = measure(logits, labels)
    assert bins["rows"] == [4000 // BINS] * BINS
    assert bins["prediction"] == sorted(bins["prediction"])
    assert sum(bins["positives"]) == labels.sum()
    assert np.average(bins["prediction"], weights=bins["rows"]) / labels.mean() == pytest.approx(metrics["calibration"])
    observed = np.array(bins["positives"]) / bins["rows"]
    assert np.abs(observed - bins["prediction"]).max() < 0.15  # four deviations of 200 coin tosses


def batch(rows: int, tasks: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, tasks, generator=generator),
        torch.randint(0, 2, (rows, tasks), generator=generator).float(),
        torch.rand(rows, tasks, generator=generator),
        torch.randint(0, 5, (rows,), generator=generator),
    )


def test_every_task_is_measured_on_real_rows_alone(context):
    logits, labels, oracle, group = batch(50, 2)
    metrics = Metrics([Task("a"), Task("b")], context)
    metrics.update(logits[:20], labels[:20], 20, oracle=oracle[:20], group=group[:20] - 2**40)
    metrics.update(logits[20:], labels[20:], 15, oracle=oracle[20:], group=group[20:] - 2**40)
    metrics.update(logits, labels, 0, oracle=oracle, group=group)  # all padding
    found, bins, _ = metrics.compute()
    assert list(found) == list(bins) == ["a", "b"]
    for i, name in enumerate(found):
        assert found[name] == measured(logits[:35, i], labels[:35, i], oracle[:35, i], group[:35], blocks=1)
        assert found[name]["rows"] == sum(bins[name]["rows"]) == 35


def test_rows_without_a_user_count_in_no_gauc(context):
    """Their group is −1. They count in all else."""
    logits, labels, _, group = batch(50, 1)
    known = group != 0
    metrics = Metrics([Task("a")], context)
    metrics.update(logits, labels, 50, group=torch.where(known, group, -1))
    found = metrics.compute().metrics
    wanted = measured(logits[known, 0], labels[known, 0], group=group[known])["gauc"]
    assert found["a"]["gauc"] == pytest.approx(wanted, abs=1e-12)
    assert found["a"]["auc"] == measured(logits[:, 0], labels[:, 0])["auc"]
    nobody = Metrics([Task("a")], context)
    nobody.update(logits, labels, 50, group=torch.full_like(group, -1))
    assert nobody.compute().metrics["a"]["gauc"] is None


def test_only_what_is_asked_for_is_measured(context):
    logits, labels, oracle, group = batch(50, 1)
    metrics = Metrics([Task("a")], context, include={"auc", "calibration"})
    metrics.update(logits, labels, 50, oracle=oracle, group=group, row_number=torch.arange(50) % 2)
    found = metrics.compute().metrics["a"]
    known = {name for name, value in found.items() if value is not None}
    losses = {"logloss", "logloss_se"}  # by which a model that diverged is told
    assert known == {"auc", "auc_se", "auc_folds", "calibration", "base_rate", "positives", "rows"} | losses


def test_results_are_plain_numbers(context):
    """Which JSON knows."""
    logits, labels, oracle, group = batch(50, 1)
    metrics = Metrics([Task("a")], context)
    metrics.update(logits, labels, 50, oracle=oracle, group=group, row_number=torch.arange(50))
    found, bins, _ = metrics.compute()
    folds = found["a"].pop("auc_folds")
    assert {type(value) for value in folds} == {float, type(None)}  # 50 rows leave folds without any
    assert {type(value) for value in found["a"].values()} == {float, int}
    assert [{type(value) for value in values} for values in bins["a"].values()] == [{int}, {float}, {int}, {float}]


def test_loss_is_the_weighted_cross_entropy_of_every_task():
    logits, labels, _, _ = batch(6, 3)
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.25, 0.0])
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    y = labels.numpy()
    wanted = -(weights.numpy()[:, None] * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum(0)
    found = task_losses(logits, labels, weights.unsqueeze(1), (Task("a"), Task("b")))
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
