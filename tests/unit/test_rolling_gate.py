"""The quality gate: bounds as users write them, and which models they let pass."""

from __future__ import annotations

import pytest

from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.rolling.gate import Bound, judge

TODAY = {"like": {"auc": 0.7, "logloss": 0.4, "gauc": None}, "view": {"auc": 0.9}}
YESTERDAY = {"like": {"auc": 0.72, "logloss": 0.38, "gauc": 0.7}}


def bound(text: str, tasks: tuple[str, ...] = ()) -> Bound:
    return Bound.parse(text, load_recipe("merrec_time"), tasks)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("like.auc >= 0.7", None),
        ("like.auc>=.7", None),
        ("like.auc > 0.7", "like.auc is 0.7000, not > 0.7"),
        ("like.logloss <= 4e-1", None),
        ("like.logloss < 0.4", "like.logloss is 0.4000, not < 0.4"),
        ("like.auc >= yesterday - 0.05", None),
        ("like.auc >= yesterday-0.01", "like.auc is 0.7000, not >= yesterday-0.01, which had 0.7200"),
        ("like.auc >= yesterday", "like.auc is 0.7000, not >= yesterday, which had 0.7200"),
        ("like.logloss <= yesterday + 0.03", None),
        ("like.gauc >= 0.1", "like.gauc has no value on the day's test rows, and is to be >= 0.1"),
        ("view.auc >= yesterday", "view.auc of yesterday's model has no value on the day's test rows"),
    ],
)
def test_a_bound_says_why_it_is_missed(text, reason):
    assert bound(text).missed(TODAY, YESTERDAY) == reason


def test_all_bounds_must_hold_and_each_that_does_not_is_said():
    bounds = [bound("like.auc >= 0.8"), bound("view.auc >= 0.8"), bound("like.logloss < 0.1")]
    gate = judge(bounds, TODAY, YESTERDAY)
    assert not gate.accepted
    assert [reason.split()[0] for reason in gate.reasons] == ["like.auc", "like.logloss"]
    assert judge([bounds[1]], TODAY, YESTERDAY).accepted
    assert judge([], None, {}).accepted


def test_a_first_day_has_no_yesterday_to_fall_behind():
    assert judge([bound("like.auc >= yesterday")], TODAY, {}).accepted


def test_without_test_rows_nothing_shows_that_a_model_is_good():
    assert judge([bound("like.auc >= 0.1")], None, {}).reasons == ("the day has no test rows to judge its model by",)


@pytest.mark.parametrize(
    ("text", "tasks", "line"),
    [
        ("like.auc = 0.7", (), "'like.auc = 0.7' is no bound; write TASK.METRIC >= NUMBER"),
        ("like.auc >= much", (), "is no bound"),
        ("like.auc >= 0.7.7", (), "is no bound"),
        ("auc >= 0.7", (), "is no bound"),
        ("like.auc >= today", (), "is no bound"),
        ("lik.auc >= 0.7", (), "no task 'lik' is trained; did you mean 'like'?"),
        ("like.auc >= 0.7", ("view",), "no task 'like' is trained; choose one of view"),
        ("like.acu >= 0.7", (), "a binary task has no 'acu'; choose one of auc, gauc"),
        ("like.rmse <= 1", (), "a binary task has no 'rmse'"),
    ],
)
def test_a_bound_that_is_none_is_one_line(text, tasks, line):
    with pytest.raises(UserError, match="--gate: ") as refused:
        bound(text, tasks)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
