"""The quality gate: whether a day's model may take over from yesterday's."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from recmtl.data.recipe import Recipe
from recmtl.errors import UserError, nearest
from recmtl.metrics.names import METRICS
from recmtl.rolling.record import Gate, Metrics

COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = re.compile(r"\s*(\S+)\.(\w+)\s*(>=|<=|>|<)\s*(?:(yesterday)\s*(?:([+-])\s*([\d.]+\S*))?|([+-]?[\d.]+\S*))\s*")
WANTED = "write TASK.METRIC >= NUMBER, such as 'like.auc >= 0.7', or 'like.auc >= yesterday - 0.01'"


@dataclass(frozen=True)
class Bound:
    """What a metric of the new model on the day's test rows must be."""

    text: str
    """As the user wrote it."""
    task: str
    metric: str
    sign: str
    number: float
    relative: bool
    """The number is added to what yesterday's model has on the same rows; a day without such a model passes."""

    @staticmethod
    def parse(text: str, recipe: Recipe, tasks: tuple[str, ...]) -> Bound:
        """A bound that a user wrote.

        Args:
            text: such as ``like.auc >= 0.7`` or ``like.auc >= yesterday - 0.01``.
            recipe: with its tasks.
            tasks: those that are trained; empty: all.

        Raises:
            UserError: it is none, or there is no such task or metric.
        """
        found = FORM.fullmatch(text)
        try:
            if not found:
                raise ValueError
            task, metric, sign, relative, plus, difference, number = found.groups()
            value = float(number) if number else float(f"{plus}{difference}") if plus else 0.0
        except ValueError:
            raise UserError(f"--gate: {text!r} is no bound; {WANTED}") from None
        kinds = {spec.name: spec.kind for spec in recipe.tasks if not tasks or spec.name in tasks}
        if task not in kinds:
            raise UserError(f"--gate: {text!r}: no task {task!r} is trained; {nearest(task, kinds)}")
        if metric not in METRICS[kinds[task]]:
            known = METRICS[kinds[task]]
            raise UserError(f"--gate: {text!r}: a {kinds[task]} task has no {metric!r}; {nearest(metric, known)}")
        return Bound(" ".join(text.split()), task, metric, sign, value, relative is not None)

    def missed(self, today: Metrics, yesterday: Metrics) -> str | None:
        """Why a model misses the bound; None: it does not.

        Args:
            today: of the model, on the day's test rows.
            yesterday: of yesterday's model, on the same rows; empty: there is none.
        """
        name = f"{self.task}.{self.metric}"
        value = _value(today, self.task, self.metric)
        if value is None:
            return f"{name} has no value on the day's test rows, and is to be {self._wanted}"
        limit, shown = self.number, ""
        if self.relative:
            if not yesterday:
                return None
            before = _value(yesterday, self.task, self.metric)
            if before is None:
                return f"{name} of yesterday's model has no value on the day's test rows"
            limit, shown = before + self.number, f", which had {before:.4f}"
        return None if COMPARE[self.sign](value, limit) else f"{name} is {value:.4f}, not {self._wanted}{shown}"

    @property
    def _wanted(self) -> str:
        return self.text[self.text.index(self.sign) :]


def judge(bounds: Iterable[Bound], today: Metrics | None, yesterday: Metrics) -> Gate:
    """Whether a model takes over.

    Args:
        bounds: all must hold.
        today: of the model, on the day's test rows; None: the day has none.
        yesterday: of yesterday's model, on the same rows; empty: there is none.
    """
    bounds = tuple(bounds)
    if bounds and today is None:
        return Gate(False, ("the day has no test rows to judge its model by",))
    missed = [bound.missed(today or {}, yesterday) for bound in bounds]
    reasons = tuple(reason for reason in missed if reason is not None)
    return Gate(not reasons, reasons)


def _value(metrics: Mapping[str, Mapping[str, float | None]], task: str, metric: str) -> float | None:
    return metrics.get(task, {}).get(metric)
