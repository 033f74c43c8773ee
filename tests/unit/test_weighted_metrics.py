"""Weighted metrics: a row of weight 2 is that row twice, and every sum against one written out the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import measure

from recmtl.metrics.gauc import grouped_auc
from recmtl.metrics.jackknife import FOLDS, folds_of, standard_error
from recmtl.metrics.ranges import keys_of

ROWS = st.lists(  # score on a coarse grid (many ties), label, user, fold, whole weight
    st.tuples(
        st.integers(-4, 4).map(lambda x: x / 2),
        st.booleans(),
        st.integers(-1, 3),
        st.integers(0, 5),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=60,
)
COUNTS = ("rows", "positives")


def same(value, rel=1e-9):
    """What equals a number as far as rounding allows, and None exactly."""
    return None if value is None else pytest.approx(value, rel=rel, abs=1e-12)


def columns_of(rows):
    scores, labels, users, folds, weights = (np.array(column) for column in zip(*rows, strict=True))
    return scores.astype(np.float32), labels, users, folds.astype(np.uint8), weights.astype(np.float32)


def auc_by_pairs(scores, labels, weights) -> float | None:
    wins = pairs = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(~labels):
            mass = float(weights[i]) * float(weights[j])
            pairs += mass
            wins += mass * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
    return wins / pairs if pairs else None


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_weight_2_is_the_row_twice(rows):
    scores, labels, users, folds, weights = columns_of(rows)
    oracle = np.where(folds == 0, np.nan, scores / 8 + 0.5).astype(np.float32)
    times = weights.astype(int)
    found, bins = measure(scores, labels, oracle, users, folds, weights)
    wanted, wanted_bins = measure(*(column.repeat(times) for column in (scores, labels, oracle, users, folds)))
    assert {name: found[name] for name in COUNTS} == {"rows": len(labels), "positives": labels.sum()}
    assert (found.pop("auc_folds") is None) == (wanted.pop("auc_folds") is None)
    for name in found.keys() - set(COUNTS):
        assert found[name] == same(wanted[name]), name
    for name in ("prediction", "label"):
        assert bins[name] == pytest.approx(wanted_bins[name], rel=1e-9)
    assert sum(bins["rows"]) == len(labels)
    assert sum(bins["positives"]) == labels.sum()


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(0, 2**32))
def test_weighted_aucs_equal_their_definitions(rows, seed):
    scores, labels, users, folds, _ = columns_of(rows)
    weights = np.random.default_rng(seed).uniform(0.01, 5, len(rows)).astype(np.float32)
    found, _ = measure(scores, labels, None, users, folds, weights)
    assert found["auc"] == same(auc_by_pairs(scores, labels, weights))
    by_user = []
    for user in set(users.tolist()) - {-1}:
        inside = users == user
        area = auc_by_pairs(scores[inside], labels[inside], weights[inside])
        if area is not None:
            by_user.append((area, weights[inside].sum(dtype=float)))
    gauc = sum(area * mass for area, mass in by_user) / sum(mass for _, mass in by_user) if by_user else None
    assert found["gauc"] == same(gauc)
    known = {g for g in range(FOLDS) if (folds == g).any()}
    without = {g: auc_by_pairs(*(column[folds != g] for column in (scores, labels, weights))) for g in known}
    if len(known) < 2 or None in without.values():
        assert found["auc_folds"] is None
    else:
        assert {g for g, value in enumerate(found["auc_folds"]) if value is not None} == known
        assert [found["auc_folds"][g] for g in known] == pytest.approx([without[g] for g in known], rel=1e-9, abs=1e-12)


def test_weighted_means_against_numpy():
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(-1, 2, 3000).astype(np.float32), rng.uniform(0.1, 9, 3000).astype(np.float32)
    labels = rng.random(3000) < 0.2
    folds = folds_of(np.arange(3000))
    p, w = 1 / (1 + np.exp(-logits.astype(float))), weights.astype(float)
    losses = -np.where(labels, np.log(p), np.log(1 - p))
    rate, logloss = np.average(labels, weights=w), np.average(losses, weights=w)
    found, _ = measure(logits, labels, folds=folds, weights=weights)
    assert found["base_rate"] == pytest.approx(rate, rel=1e-12)
    assert found["logloss"] == pytest.approx(logloss, rel=1e-12)
    assert found["ne"] == pytest.approx(logloss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)), rel=1e-12)
    assert found["calibration"] == pytest.approx(np.average(p, weights=w) / rate, rel=1e-12)
    without = [np.average(losses[folds != g], weights=w[folds != g]) for g in range(FOLDS)]
    assert found["logloss_se"] == pytest.approx(standard_error(without), rel=1e-9)
    aucs = [measure(*(c[folds != g] for c in (logits, labels)), weights=weights[folds != g])[0]["auc"] for g in (0, 7)]
    assert [found["auc_folds"][g] for g in (0, 7)] == pytest.approx(aucs, rel=1e-12)
    assert found["auc_se"] == pytest.approx(standard_error(found["auc_folds"]), rel=1e-12)


def test_weights_of_kept_negatives_give_back_what_all_rows_say():
    """A tenth of the negatives at ten times their weight: the means are those of all rows, as far as chance allows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 1, 200_000).astype(np.float32)
    labels = rng.random(200_000) < 1 / (1 + np.exp(-logits))
    kept = labels | (rng.random(200_000) < 0.1)
    weights = np.where(labels, 1, 10).astype(np.float32)[kept]
    folds = folds_of(np.arange(200_000))
    full, _ = measure(logits, labels, folds=folds)
    found, _ = measure(logits[kept], labels[kept], folds=folds[kept], weights=weights)
    assert found["auc"] == pytest.approx(full["auc"], abs=4 * full["auc_se"])
    assert found["logloss"] == pytest.approx(full["logloss"], abs=4 * found["logloss_se"])
    assert found["calibration"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("labels", [[True] * 3, [False] * 3])
def test_one_class_is_null(labels):
    scores, weights = np.arange(3, dtype=np.float32), np.array([1, 2, 0.5], np.float32)
    found, _ = measure(scores, np.array(labels), None, np.zeros(3, int), np.arange(3, dtype=np.uint8), weights)
    assert (found["auc"], found["auc_folds"], found["gauc"], found["ne"]) == (None, None, None, None)


def test_a_fold_with_all_of_a_class_has_no_error():
    scores, weights = np.arange(4, dtype=np.float32), np.array([0.1, 0.2, 0.3, 0.7], np.float32)
    labels = np.array([True, True, False, False])
    for folds in ([0, 0, 1, 2], [0, 0, 0, 0]):
        found, _ = measure(scores, labels, folds=np.array(folds), weights=weights)
        assert (found["auc"], found["auc_se"], found["auc_folds"]) == (0.0, None, None)


def test_groups_of_one_class_are_left_out():
    scores, weights = np.array([1, 0, 3, 2], np.float32), np.array([1, 2, 3, 4], np.float32)
    users = np.array([5, 5, 7, 7])
    area, mass = grouped_auc(users, keys_of(scores, np.array([1, 0, 1, 1])), weights)
    assert (area.tolist(), mass.tolist()) == ([1.0], [3.0])
    area, mass = grouped_auc(users, keys_of(scores), weights)
    assert (area.tolist(), mass.tolist()) == ([], [])
