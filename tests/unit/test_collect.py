"""What is collected of a split: labels that are missing, weights, tasks of several kinds, segments."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import measure

from recmtl.distributed.context import DistContext, process_group
from recmtl.metrics.collect import Metrics
from recmtl.metrics.segments import MOST_SEGMENTS, SegmentColumn
from recmtl.models.predictions import predictions
from recmtl.objectives.losses import task_losses
from recmtl.schema import Task

CLICK, LIKE = Task("click"), Task("like")
TIME = Task("time", kind="duration", mean=20.0)
RATING = Task("rating", kind="regression", mean=3.0, std=1.5, loss="huber")
TASKS = (CLICK, TIME, LIKE, RATING)


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with process_group("cpu") as context:
        yield context


def rows_of(rows: int, tasks: tuple[Task, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that have to do with them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, len(tasks))).astype(np.float32)
    labels = np.empty_like(logits)
    for i, task in enumerate(tasks):
        z = logits[:, i] + rng.normal(size=rows)
        labels[:, i] = {"binary": z > 0.5, "duration": 20 * np.exp(z), "regression": 3 + 1.5 * z}[task.kind]
    return torch.from_numpy(logits), torch.from_numpy(labels)


def measured(context: DistContext, tasks, logits, labels, weights=None, **columns):
    metrics = Metrics(tasks, context)
    metrics.update(logits, labels, len(labels), weights=weights, **columns)
    return metrics.compute()


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_of_a_half_masked_task_are_those_of_its_observed_rows(context, weighted):
    logits, labels = rows_of(600, TASKS)
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(0, 20, (600,), generator=generator)
    weights = torch.rand(600, 4, generator=generator) + 0.1 if weighted else None
    observed = torch.rand(600, 4, generator=generator) < 0.5
    masked = labels.where(observed, torch.nan)
    found = measured(context, TASKS, logits, masked, weights, group=group)
    for i, task in enumerate(TASKS):
        kept = observed[:, i]
        of_task = None if weights is None else weights[kept, i : i + 1]
        columns = logits[kept, i : i + 1], labels[kept, i : i + 1]
        alone = measured(context, [task], *columns, of_task, group=group[kept])
        for name, value in alone.metrics[task.name].items():
            same = pytest.approx(value, rel=1e-12) if weighted and value is not None else value
            assert found.metrics[task.name][name] == same
        assert found.bins[task.name] == alone.bins[task.name]
        assert found.metrics[task.name]["rows"] == kept.sum()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_a_row_counts_as_often_as_it_weighs_and_unobserved_ones_never(context, rows):
    clicked, seen, times = (np.array(column) for column in zip(*rows, strict=True))
    logits, _ = rows_of(len(rows), (CLICK,))
    labels = torch.from_numpy(np.where(seen, clicked, np.nan)[:, None]).float()
    found = measured(context, [CLICK], logits, labels, torch.from_numpy(times)[:, None].float())
    repeats = torch.from_numpy(times * seen)
    wanted = measured(
        context, [CLICK], logits.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats, 0)
    ).metrics["click"]
    assert found.metrics["click"]["rows"] == ((times > 0) & seen).sum()
    for name in ("auc", "logloss", "ne", "calibration", "base_rate"):
        value = wanted[name]
        assert found.metrics["click"][name] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12))


@pytest.mark.parametrize("tasks", [TASKS, (CLICK, LIKE)])
def test_a_task_without_a_label_is_null(context, tasks):
    logits, labels = rows_of(50, tasks)
    labels[:] = torch.nan
    found = measured(context, tasks, logits, labels, row_number=torch.arange(50), group=torch.zeros(50).long())
    for task in tasks:
        counts = {"rows": 0} | ({"positives": 0} if task.kind == "binary" else {})
        assert found.metrics[task.name] == dict.fromkeys(found.metrics[task.name]) | counts
        assert not any(found.bins[task.name].values())


def test_weights_that_are_all_the_same_say_nothing(context):
    """So that AUC is counted in integers, and metrics keep every bit."""
    logits, labels = rows_of(500, TASKS)
    plain = measured(context, TASKS, logits, labels, row_number=torch.arange(500))
    weights = torch.tensor([1.0, 3.0, 0.1, 7.0]).repeat(500, 1)
    assert measured(context, TASKS, logits, labels, weights, row_number=torch.arange(500)) == plain
    weights[0] = 0
    labels[0] = torch.nan
    without = measured(context, TASKS, logits, labels)
    assert measured(context, TASKS, logits, labels, weights) == without


def test_tasks_are_measured_in_the_unit_of_their_labels_and_their_loss_is_that_of_training(context):
    logits, labels = rows_of(300, TASKS)
    weights = torch.rand(300, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    found = measured(context, TASKS, logits, labels, weights).metrics
    losses = task_losses(logits, labels, weights / weights.sum(0), TASKS).tolist()
    assert [found[task.name].get("loss", found[task.name].get("logloss")) for task in TASKS] == pytest.approx(losses)
    p = predictions(logits, TASKS)
    for i in (1, 3):
        mae = np.average((p[:, i] - labels[:, i]).abs(), weights=weights[:, i])
        assert found[TASKS[i].name]["mae"] == pytest.approx(mae, rel=1e-5)
    assert found["click"] == measure(logits[:, 0], labels[:, 0], weights=weights[:, 0], blocks=1)[0]


def test_segments_hold_the_metrics_of_their_rows(context):
    logits, labels = rows_of(400, TASKS)
    labels[::3, 0] = torch.nan
    numbers = torch.from_numpy(np.random.default_rng(0).permutation(400))
    codes = np.arange(400) % 5 - 1  # by place in the split; −1: left out
    column = SegmentColumn(codes.astype(np.int8), ["a", "missing", "c", "never"], 7)
    metrics = Metrics(TASKS, context, segments={"tab": column})
    metrics.update(logits, labels, 400, row_number=numbers)
    found = metrics.compute().segments["tab"]
    assert (found["left_out"], found["left_out_rows"]) == (7, 80)
    assert [value["value"] for value in found["values"]] == ["a", "missing", "c", "never"]
    assert [value["rows"] for value in found["values"]] == [80, 80, 80, 80]
    for code, value in enumerate(found["values"]):
        inside = torch.from_numpy(codes)[numbers] == code
        known = inside & ~labels[:, 0].isnan()
        alone, _ = measure(logits[known, 0], labels[known, 0])
        assert value["tasks"]["click"]["rows"] == known.sum()
        for name in ("auc", "logloss", "calibration", "positives"):
            assert value["tasks"]["click"][name] == pytest.approx(alone[name], rel=1e-12)
        assert "ne" not in value["tasks"]["click"]
        alone, _ = measure(logits[inside, 1], labels[inside, 1], task=TIME)
        for name in ("mae", "rmse", "bias"):
            assert value["tasks"]["time"][name] == pytest.approx(alone[name], rel=1e-12)


def test_a_segment_without_rows_of_a_task_is_null(context):
    logits, labels = rows_of(10, (CLICK,))
    labels[5:] = torch.nan
    column = SegmentColumn((np.arange(10) >= 5).astype(np.int8), ["0", "1"], 0)
    metrics = Metrics([CLICK], context, segments={"half": column})
    metrics.update(logits, labels, 10, row_number=torch.arange(10))
    _, empty = metrics.compute().segments["half"]["values"]
    assert empty["rows"] == 5
    assert (empty["tasks"]["click"]["auc"], empty["tasks"]["click"]["rows"]) == (None, 0)


def test_the_values_with_most_rows_are_kept():
    counts = np.array([3, 0, 5, 5, *[1] * 30])
    numbers = np.repeat(np.arange(len(counts)), counts)
    kept, code_of, left_out = SegmentColumn.largest(counts)
    codes = code_of[numbers]
    assert kept[:4].tolist() == [2, 3, 0, 4]
    assert len(kept) == MOST_SEGMENTS
    assert left_out == 33 - MOST_SEGMENTS
    assert codes[:4].tolist() == [2, 2, 2, 0]
    assert (codes == -1).sum() == left_out
