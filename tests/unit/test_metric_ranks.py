"""Metrics of rows that are spread over several ranks, against float64 sums and pairs written out the slow way.

Ranks are threads, so that hypothesis looks for the rows; ranges hold a few rows, so that there are many of them and
turns to exchange them. The last tests are on real processes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from measured import ALONE, CLICK, NUMBER, measure, on_ranks
from torchmetrics.functional.classification import binary_auroc

from recmtl.distributed.context import DistContext, process_group
from recmtl.metrics import gauc, ranges
from recmtl.metrics.auc import AUC
from recmtl.metrics.calibration import BINS
from recmtl.metrics.collect import Measured, Metrics
from recmtl.metrics.jackknife import FOLDS, standard_error
from recmtl.metrics.ranges import END, SortedRows, from_ordered_bits, high_bits, keys_of, ordered_bits
from recmtl.metrics.segments import SegmentColumn
from recmtl.schema import NO_USER, Task

RANKS = st.sampled_from([1, 2, 4])
SCORES = st.one_of(st.just(0.5), st.integers(-4, 4).map(lambda x: x / 2), st.floats(-8, 8, width=32))
ROWS = st.lists(  # score (many ties, or none), label (−1: missing), user (−1: none), fold, weight, rank
    st.tuples(
        SCORES,
        st.sampled_from([0, 1, 1, 0, -1]),
        st.sampled_from([NO_USER, 0, 0, 0, 1, 2**40, -(2**50)]),
        st.integers(0, 4),
        st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.25, 3.3]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=50,
)
KINDS = st.sampled_from(["unweighted", "weighted", "constant scores", "one class"])


@pytest.fixture(autouse=True, scope="module")
def few_rows_in_a_range():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGE", 3)
        patch.setattr(gauc, "RANGE", 3)
        yield


def close(value):
    """What equals a float as far as rounding allows, and anything else exactly."""
    if isinstance(value, list):
        return [close(one) for one in value]
    return pytest.approx(value, rel=1e-12, abs=1e-12) if isinstance(value, float) else value


def auc_by_pairs(scores, labels, weights) -> float | None:
    wins = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            wins += weights[i] * weights[j] * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
            pairs += weights[i] * weights[j]
    return wins / pairs if pairs else None


def xauc_by_pairs(predictions, labels, weights) -> float | None:
    alike = pairs = 0.0
    for i in range(len(labels)):
        for j in range(i):
            if labels[i] != labels[j]:
                mass, product = weights[i] * weights[j], predictions[i] - predictions[j]
                pairs += mass
                alike += mass * (0.5 if product == 0 else float((product > 0) == (labels[i] > labels[j])))
    return alike / pairs if pairs else None


def without_each_fold(value, folds, *columns) -> list[float | None] | None:
    """A value without the rows of each fold, None for a fold without rows; None where one of them is undefined."""
    filled = set(folds.tolist())
    found = [value(*(column[folds != fold] for column in columns)) if fold in filled else None for fold in range(FOLDS)]
    return None if len(filled) < 2 or any(found[fold] is None for fold in filled) else found


def bins_by_hand(scores, predictions, labels, weights) -> dict[str, list[float]]:
    """Cuts are the smallest scores such that more than a share of the weight has them or smaller ones."""
    order = np.argsort(scores, kind="stable")
    edges = set()
    for part in range(1, BINS):
        target = part * weights.sum() / BINS if len(set(weights.tolist())) > 1 else part * len(scores) // BINS
        passed = 0.0
        for place in order:
            passed += weights[place] if len(set(weights.tolist())) > 1 else 1
            if passed > target:
                edges.add(scores[place])
                break
    bins = np.array([sum(score >= edge for edge in edges) for score in scores])
    inside = [bins == number for number in sorted(set(bins.tolist()))]
    return {
        "rows": [int(rows.sum()) for rows in inside],
        "prediction": [np.average(predictions[rows], weights=weights[rows]).item() for rows in inside],
        "label": [np.average(labels[rows], weights=weights[rows]).item() for rows in inside],
    }


def columns_of(rows, kind: str):
    scores, labels, users, folds, weights, ranks = (np.array(column) for column in zip(*rows, strict=True))
    scores, labels = scores.astype(np.float32), labels.astype(np.float32)
    labels[labels < 0] = np.nan
    if kind == "constant scores":
        scores[:] = 0.5
    if kind == "one class":
        labels[labels == 1] = 0
    weights = weights.astype(np.float32) if kind == "weighted" else None
    return scores, labels, users.astype(np.int64), folds.astype(np.uint8), weights, ranks


def spread(ranks: int, of_rank: np.ndarray, task: Task, *columns):
    """The metrics of rows that lie on several ranks: on all of them the same."""

    def run(context: DistContext):
        here = of_rank % ranks == context.rank
        return measure(*(None if c is None else c[here] for c in columns), task=task, context=context, blocks=2)

    found = on_ranks(ranks, run)
    assert all(one == found[0] for one in found)
    return found[0]


def expected(rows, kind: str):
    """The rows that count: with a label and a weight above 0; and their weights in float64."""
    scores, labels, users, folds, weights, _ = columns_of(rows, kind)
    known = ~np.isnan(labels) & (True if weights is None else weights > 0)
    mass = np.ones(len(scores)) if weights is None else weights.astype(float)
    return tuple(column[known] for column in (scores.astype(float), labels.astype(float), users, folds, mass))


@settings(max_examples=120, deadline=None)
@given(ROWS, KINDS, RANKS)
@example([(0.5, 1, 0, 0, 1.0, 3), (1.0, 0, 0, 1, 2.0, 3)], "weighted", 4)  # three ranks without rows
@example([(x / 2, x % 2, 0, x % 3, 1.0, x) for x in range(9)], "unweighted", 4)  # one user on all ranks
def test_a_binary_task_equals_its_definitions_on_any_number_of_ranks(rows, kind, ranks):
    scores, labels, users, folds, weights, of_rank = columns_of(rows, kind)
    oracle = np.where(folds == 0, np.nan, 1 / (1 + np.exp(-scores))).astype(np.float32)
    found, bins = spread(ranks, of_rank, CLICK, scores, labels, oracle, users, folds, weights)
    s, y, u, g, w = expected(rows, kind)
    assert (found["rows"], found["positives"]) == (len(y), (y == 1).sum())
    if not len(y):
        assert set(found.values()) == {None, 0}
        return
    area = auc_by_pairs(s, y, w)
    # Pairs are counted in integers: the value is exact.
    assert found["auc"] == (area if weights is None else close(area))
    without = without_each_fold(auc_by_pairs, g, s, y, w)
    assert found["auc_folds"] == (without if weights is None else close(without))
    assert found["auc_se"] == (None if without is None else pytest.approx(standard_error(without), abs=1e-12))
    by_user = [(auc_by_pairs(s[u == one], y[u == one], w[u == one]), w[u == one].sum()) for one in set(u) - {NO_USER}]
    by_user = [(area, mass) for area, mass in by_user if area is not None]
    total = sum(mass for _, mass in by_user)
    assert found["gauc"] == (close(float(sum(area * mass for area, mass in by_user) / total)) if by_user else None)
    known = g != 0
    p32 = 1 / (1 + np.exp(-s.astype(np.float32)))
    assert found["oracle_auc"] == close(auc_by_pairs(p32[known], y[known], w[known]))
    p = 1 / (1 + np.exp(-s))
    losses = -np.where(y == 1, np.log(p), np.log1p(-p))
    assert found["logloss"] == pytest.approx(np.average(losses, weights=w), rel=1e-12)
    rate = np.average(y, weights=w)
    assert found["base_rate"] == pytest.approx(rate, rel=1e-12)
    assert found["calibration"] == (None if rate == 0 else pytest.approx(np.average(p, weights=w) / rate, rel=1e-12))
    wanted = bins_by_hand(s, p, y, w)
    assert bins["rows"] == wanted["rows"]
    for name in ("prediction", "label"):
        assert bins[name] == close(wanted[name])
    assert sum(bins["positives"]) == found["positives"]


@settings(max_examples=120, deadline=None)
@given(ROWS, KINDS, RANKS, st.floats(0.125, 50, width=32))
def test_a_number_equals_its_definitions_on_any_number_of_ranks(rows, kind, ranks, unit):
    """Labels are 0, 1 or 1 more than a score, so that there are many ties."""
    scores, labels, _, folds, weights, of_rank = columns_of(rows, kind)
    labels = np.where(labels == 1, np.abs(scores) + 1, labels * unit).astype(np.float32)
    found, bins = spread(ranks, of_rank, NUMBER, scores, labels, None, None, folds, weights)
    known = ~np.isnan(labels) & (True if weights is None else weights > 0)
    p, y, g = scores[known].astype(float), labels[known].astype(float), folds[known]
    w = np.ones(len(y)) if weights is None else weights[known].astype(float)
    assert found["rows"] == len(y)
    if not len(y):
        assert set(found.values()) == {None, 0}
        return
    value = xauc_by_pairs(p, y, w)
    assert found["xauc"] == (value if weights is None else close(value))
    mae, mse, mean = (np.average(values, weights=w) for values in (abs(p - y), (p - y) ** 2, y))
    assert found["mae"] == pytest.approx(mae, rel=1e-12)
    assert found["rmse"] == pytest.approx(math.sqrt(mse), rel=1e-12)
    assert found["loss"] == pytest.approx(mse, rel=1e-6)  # as training has it, in float32
    assert found["mean_label"] == pytest.approx(mean, rel=1e-12)
    assert found["bias"] == (pytest.approx(np.average(p, weights=w) / mean, rel=1e-12, abs=1e-12) if mean else None)
    spread_of_labels = np.average((y - mean) ** 2, weights=w)
    varies = len(set(y.tolist())) > 1
    assert found["r2"] == (pytest.approx(1 - mse / spread_of_labels, rel=1e-9, abs=1e-12) if varies else None)
    without = without_each_fold(lambda p, y, w: np.average(abs(p - y), weights=w) if len(y) else None, g, p, y, w)
    if without is not None:
        assert found["mae_se"] == pytest.approx(standard_error(without), rel=1e-9, abs=1e-12)
    wanted = bins_by_hand(p, p, y, w)
    assert bins["rows"] == wanted["rows"]
    for name in ("prediction", "label"):
        assert bins[name] == close(wanted[name])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SCORES, st.integers(0, 3)), min_size=1, max_size=60), RANKS)
def test_ranges_hold_few_rows_and_every_row_is_in_one(rows, ranks):
    """However often a value is repeated."""
    scores, of_rank = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores.astype(np.float32)

    def run(context: DistContext):
        here = np.array_split(scores[of_rank % ranks == context.rank], 2)
        ordered = SortedRows(context, [(keys_of(part, 1), None) for part in here], weighted=False)
        cuts = ordered.cuts(len(scores))
        counted = [(place, high_bits(keys).tolist()) for place, keys, _ in ordered.exchange(cuts)]
        return cuts, ordered.tally(cuts, 2), counted, ordered.quantiles(np.arange(len(scores)))

    found = on_ranks(ranks, run)
    cuts, tally, _, quantiles = found[0]
    assert quantiles.tolist() == np.sort(ordered_bits(scores)).tolist()
    counts = np.bincount(cuts.range_of(ordered_bits(scores)), minlength=len(cuts))
    assert tally.tolist() == [[0, count] for count in counts]
    at_most = -(-len(scores) // (-(-len(scores) // (3 * ranks)) * ranks))
    assert (counts[~cuts.single] <= at_most).all()
    rows_of = {place: bits for _, _, counted, _ in found for place, bits in counted}
    assert sorted(rows_of) == np.flatnonzero(~cuts.single).tolist()
    for place, bits in rows_of.items():
        assert bits == sorted(bits)
        assert len(bits) == counts[place]
    assert sum(map(len, rows_of.values())) + counts[cuts.single].sum() == len(scores)


def test_ordered_bits_keep_the_order_and_lead_back():
    values = np.array([-np.inf, -3.4e38, -1.5, -1e-45, 0.0, 1e-45, 2.0, np.inf], np.float32)
    assert (np.diff(ordered_bits(values).astype(np.int64)) > 0).all()
    assert from_ordered_bits(ordered_bits(values)).tolist() == values.tolist()
    assert ordered_bits(np.float32([-0.0])) == ordered_bits(np.float32([0.0]))
    assert ordered_bits(values).max() < END


def test_a_diverged_model_has_a_log_loss_that_is_no_number():
    """Which ends the run; and nothing fails before."""
    scores = np.array([np.nan, 1.0, -np.nan, 0.5], np.float32)
    labels = np.array([0, 1, 1, 0])
    found = on_ranks(2, lambda context: measure(scores[context.rank :: 2], labels[context.rank :: 2], context=context))
    assert [math.isnan(values["logloss"]) for values, _ in found] == [True, True]


def test_a_metric_alone_is_a_metric_of_torchmetrics():
    metric = AUC(CLICK, ALONE)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2000, generator=generator).round(decimals=2)
    labels = (torch.rand(2000, generator=generator) < scores).float()
    for part in range(4):
        metric.update(scores[part::4], labels[part::4])
    assert metric.compute()["auc"] == pytest.approx(binary_auroc(scores, labels.int()).item(), abs=1e-6)
    metric.reset()
    metric.update(scores[:3], torch.tensor([0.0, 1.0, torch.nan]))
    assert metric.compute()["auc"] == float(scores[1] > scores[0]) + float(scores[1] == scores[0]) / 2


TASKS = (CLICK, Task("time", kind="duration", mean=20.0), Task("rating", kind="regression", mean=3.0, std=1.5))


def collected(context: DistContext, weighted: bool, users: int) -> Measured:
    """The metrics of 3,000 rows, of which the ranks have uneven shares and the last none."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3)).round(1).astype(np.float32)
    z = logits + rng.normal(size=logits.shape)
    labels = np.stack([z[:, 0] > 0.5, 20 * np.exp(z[:, 1]), np.round(3 + 1.5 * z[:, 2])], axis=1).astype(np.float32)
    labels[rng.random(labels.shape) < 0.2] = np.nan
    weights = rng.choice([0, 0.5, 1, 7], labels.shape).astype(np.float32) if weighted else None
    columns = {
        "weights": weights,
        "oracle": 1 / (1 + np.exp(-logits)),
        "group": rng.integers(-1, users, 3000),
        "row_number": np.arange(3000),
    }
    segments = {"tab": SegmentColumn((np.arange(3000) % 5 - 1).astype(np.int8), ["a", "b", "c", "never"], 3)}
    metrics = Metrics(TASKS, context, segments=segments)
    busy = max(1, context.world_size - 1)
    mine = np.flatnonzero(np.sqrt(rng.random(3000)) * busy // 1 == context.rank)
    for part in np.array_split(mine, 5) if len(mine) else []:
        given = {name: torch.from_numpy(column[part]) for name, column in columns.items() if column is not None}
        metrics.update(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]), len(part), **given)
    return metrics.compute()


def compare(rank: int, ranks: int, folder: Path) -> None:
    """In a process of its own: metrics over gloo against those of one rank."""
    ranges.RANGE = gauc.RANGE = 100
    environment = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "localhost")
        patch.setenv("MASTER_PORT", (folder / "port").read_text())
        with process_group("cpu") as context:
            for weighted in (False, True):
                for users in (500, 50):
                    same(collected(context, weighted, users), collected(ALONE, weighted, users))
            total = context.sum_on_host(np.array([2**60, rank]))
            assert total.tolist() == [ranks * 2**60, sum(range(ranks))]
            sent = [np.full(rank + to, 10 * rank + to, np.uint64) for to in range(ranks)]
            wanted = [10 * source + rank for source in range(ranks) for _ in range(source + rank)]
            assert context.exchange(sent).tolist() == wanted
            nothing = Metrics(TASKS, context).compute()
            assert nothing == Measured({}, {}, {})


def same(found, wanted, name: str = "") -> None:
    """Floats up to rounding, the loss of training up to float32's, all else exactly."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            same(found[key], wanted[key], key)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, name)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-7 if name == "loss" else 1e-11, abs=1e-12), name
    else:
        assert found == wanted, name


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_measure_what_one_does(tmp_path, ranks):
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    torch.multiprocessing.spawn(compare, (ranks, tmp_path), nprocs=ranks)
