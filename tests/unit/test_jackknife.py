"""Standard errors: against a brute-force jackknife, DeLong's formula and simulation; which rows share a fold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import auc, measure, on_ranks
from rows import reader, rows_of, write

from recmtl.distributed.context import DistContext, process_group
from recmtl.metrics.collect import Metrics
from recmtl.metrics.jackknife import FOLDS, average, difference, folds_of, standard_error
from recmtl.metrics.units import MIN_USERS, SamplingUnits
from recmtl.schema import NO_USER, Task

ROWS = st.lists(  # score on a coarse grid (many ties), label, fold
    st.tuples(st.integers(-4, 4).map(lambda x: x / 2), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=60
)


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with process_group("cpu") as context:
        yield context


def brute_force(scores, labels, folds) -> list[float | None] | None:
    """The AUC without each fold, sorted anew every time; None where one of them is undefined."""
    found = [auc(scores[folds != g], labels[folds != g]) if (folds == g).any() else None for g in range(FOLDS)]
    filled = [g for g in range(FOLDS) if (folds == g).any()]
    return None if len(filled) < 2 or any(found[g] is None for g in filled) else found


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_the_auc_without_each_fold_equals_brute_force(rows):
    scores, labels, folds = (np.array(column) for column in zip(*rows, strict=True))
    scores, labels, folds = scores.astype(np.float32), labels.astype(bool), folds.astype(np.uint8)
    found, _ = measure(scores, labels, folds=folds)
    assert found["auc"] == auc(scores, labels)
    # Counted in integers, so that they are the same to the last bit.
    assert found["auc_folds"] == brute_force(scores, labels, folds)


def test_many_rows_equal_brute_force():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=30_000).round(2).astype(np.float32), rng.random(30_000) < 0.02
    folds = folds_of(np.arange(30_000))
    found, _ = measure(scores, labels, folds=folds)
    wanted = brute_force(scores, labels, folds)
    assert found["auc_folds"] == wanted
    assert found["auc_se"] == pytest.approx(math.sqrt(99 / 100 * sum((x - np.mean(wanted)) ** 2 for x in wanted)))
    assert found["positives"] == labels.sum()


def test_logloss_error_equals_brute_force():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=5000).astype(np.float32), rng.random(5000) < 0.3
    folds = folds_of(np.arange(5000))
    without = [measure(logits[folds != g], labels[folds != g])[0]["logloss"] for g in range(FOLDS)]
    found, _ = measure(logits, labels, folds=folds)
    assert found["logloss_se"] == pytest.approx(standard_error(without), rel=1e-6)
    losses = np.logaddexp(0, np.where(labels, -logits, logits))
    assert found["logloss_se"] == pytest.approx(losses.std() / math.sqrt(5000), rel=0.25)


def delong(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every positive the share of negatives below it, of every negative that of positives above it."""
    beats = scores[labels][:, None] > scores[~labels]
    return beats.mean(axis=1), beats.mean(axis=0)


def delong_error(positive: np.ndarray, negative: np.ndarray) -> float:
    """DeLong, DeLong and Clarke-Pearson, Biometrics 1988."""
    return math.sqrt(positive.var(ddof=1) / len(positive) + negative.var(ddof=1) / len(negative))


def test_error_is_near_delongs_on_independent_rows():
    rng = np.random.default_rng(1)
    labels = rng.random(8000) < 0.15
    one = (labels + rng.normal(size=8000)).astype(np.float32)
    other = (one + 0.5 * rng.normal(size=8000)).astype(np.float32)
    folds = folds_of(np.arange(8000))
    (a, _), (b, _) = (measure(scores, labels, folds=folds) for scores in (one, other))
    parts = [delong(scores, labels) for scores in (one, other)]
    for found, part in zip((a, b), parts, strict=True):
        assert found["auc_se"] == pytest.approx(delong_error(*part), rel=0.25)  # of 100 folds it varies by 7 %
    paired = standard_error(difference(a["auc_folds"], b["auc_folds"]))
    assert paired == pytest.approx(delong_error(parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]), rel=0.25)
    assert paired < 0.7 * math.hypot(a["auc_se"], b["auc_se"])


def users_auc(rng: np.random.Generator, users: int, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and users of rows whose label and score follow their user's: rows of one are much alike."""
    user = np.arange(users).repeat(each)
    taste = rng.normal(size=users)[user]
    labels = rng.random(len(user)) < 1 / (1 + np.exp(-2 * taste))
    scores = taste + 2 * rng.normal(size=users)[user] + 0.1 * rng.normal(size=len(user))
    return scores.astype(np.float32), labels, user


def test_error_is_that_of_simulated_test_sets(context):
    """Of 150 users with 20 rows each; as if rows were independent it would be several times too small."""
    rng = np.random.default_rng(2)
    aucs, errors, by_rows = [], [], []
    for _ in range(150):
        scores, labels, user = users_auc(rng, 150, 20)
        metrics = Metrics([Task("a")], context, include={"auc"})
        columns = (torch.from_numpy(scores)[:, None], torch.from_numpy(labels).float()[:, None])
        metrics.update(*columns, len(user), group=torch.from_numpy(user) + 10**9, row_number=torch.arange(len(user)))
        found = metrics.compute().metrics
        aucs.append(found["a"]["auc"])
        errors.append(found["a"]["auc_se"])
        by_rows.append(measure(scores, labels, folds=folds_of(np.arange(len(user))))[0]["auc_se"])
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.2)
    assert np.mean(by_rows) < 0.5 * np.std(aucs)


def test_folds_are_those_of_the_fixed_hash():
    """splitmix64 of 0 and 1 (its first outputs for the seeds 0 and 1), whatever the version of NumPy."""
    units = np.array([0, 1, 2**62])
    assert folds_of(units)[:2].tolist() == [0xE220A8397B1DCDAF % 100, 0x910A2DEC89025CC1 % 100]
    counts = np.bincount(folds_of(np.arange(100_000)), minlength=FOLDS)
    assert len(counts) == FOLDS
    assert abs(counts - 1000).max() < 5 * math.sqrt(1000)
    assert units.tolist() == [0, 1, 2**62]


@pytest.mark.parametrize(
    "folds",
    [
        [0, 0, 0, 0],  # one fold
        [0, 1, 1, 1],  # the only positive is in fold 0
    ],
)
def test_an_error_that_is_undefined_is_null(folds):
    found, _ = measure(np.arange(4, dtype=np.float32), np.array([True, False, False, False]), folds=np.uint8(folds))
    assert found["auc"] == 0.0
    assert found["auc_se"] is None
    assert found["auc_folds"] is None


def test_one_class_has_no_error_of_the_auc():
    found, _ = measure(np.arange(9, dtype=np.float32), np.zeros(9, bool), folds=np.arange(9, dtype=np.uint8))
    assert (found["auc"], found["auc_se"], found["auc_folds"], found["positives"]) == (None, None, None, 0)
    assert found["logloss_se"] > 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_users_are_the_units_where_all_ranks_together_have_enough(ranks):
    numbers = np.arange(1000) + 7
    many, few = np.arange(1000) % MIN_USERS + 2**40, np.arange(1000) % (MIN_USERS - 1) + 2**40

    def decided(group, context):
        units = SamplingUnits(context)
        share = np.array_split(np.arange(1000), context.world_size)[context.rank][: 1000 // ranks - 5 * context.rank]
        by_row, by_user = units.folds(None if group is None else group[share], numbers[share])
        assert (by_row == folds_of(numbers[share])).all()
        assert (by_user == (by_row if group is None else folds_of(group[share]))).all()
        return units.are_users()

    assert on_ranks(ranks, lambda context: decided(many, context)) == [True] * ranks
    assert on_ranks(ranks, lambda context: decided(few, context)) == [False] * ranks
    assert on_ranks(ranks, lambda context: decided(None, context)) == [False] * ranks


def test_enough_users_of_all_ranks_need_not_be_enough_on_each():
    users = np.arange(MIN_USERS)

    def decided(context):
        units = SamplingUnits(context)
        units.folds(users[context.rank :: 4], users[context.rank :: 4])
        return units.are_users()

    assert on_ranks(4, decided) == [True] * 4
    users[0] = 1
    assert on_ranks(4, decided) == [False] * 4


def test_a_row_without_a_user_is_its_own_unit_and_in_no_gauc(context):
    numbers = np.arange(1000)
    group = np.where(numbers % 2, numbers, NO_USER)
    by_row, by_user = SamplingUnits(context).folds(group, numbers)
    assert (by_user == by_row).all()
    assert (by_row == folds_of(numbers)).all()
    group[1::2] = 5
    logits, labels = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)), torch.ones(1000, 1)
    labels[::3] = 0
    metrics = Metrics([Task("a")], context)
    metrics.update(logits, labels, 1000, group=torch.from_numpy(group), row_number=torch.from_numpy(numbers))
    found = metrics.compute().metrics
    assert found["a"]["gauc"] == auc(logits[1::2, 0], labels[1::2, 0])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_same_rows_have_the_same_numbers_on_any_number_of_ranks(tmp_path, world_size):
    write(tmp_path, 203, files=3)
    for rank in range(world_size):
        for batch in reader(tmp_path, rank=rank, world_size=world_size).batches():
            assert batch.row_number is not None
            assert batch.row_number[: batch.rows].tolist() == [row.number for row in rows_of(batch)]
    assert next(reader(tmp_path, evaluation=False).batches()).row_number is None


def test_means_and_differences_over_folds():
    assert average([[1.0, None, 3.0], [2.0, None, 5.0]]) == [1.5, None, 4.0]
    assert difference([1.0, None, 3.0], [0.5, None, 5.0]) == [0.5, None, -2.0]
    assert standard_error([1.0, None, 3.0]) == pytest.approx(math.sqrt(1 / 2 * 2))
    assert standard_error([1.0, None]) is None
