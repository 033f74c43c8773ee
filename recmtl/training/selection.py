"""Which metrics a run measures, by what, and which of them say which epoch is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recmtl.config import MetricsConfig
from recmtl.errors import UserError, nearest
from recmtl.metrics.names import ALL, LOSS, METRICS, SIGNS, Values
from recmtl.schema import Dataset, Task
from recmtl.training.evaluation import validation_loss
from recmtl.training.segments import check_segments


@dataclass(frozen=True)
class Monitored:
    """One metric of what is monitored."""

    task: str
    metric: str
    weight: float

    @property
    def name(self) -> str:
        """As the configuration has it."""
        return f"{self.task}.{self.metric}"


class Monitor:
    """What early stopping and the best epoch look at: Σ w · metric over metrics of the validation rows.

    Each counts by its own direction: where lower is better it is subtracted. Without any, it is the tasks' losses,
    summed by the recipe's weights, so that a task of weight 0 has no say.

    Args:
        tasks: those that are trained.
        metrics: what is monitored; none: the losses.
    """

    def __init__(self, tasks: tuple[Task, ...], metrics: tuple[Monitored, ...] = ()) -> None:
        self.tasks, self.metrics = tasks, metrics

    @classmethod
    def from_config(cls, chosen: Mapping[str, float], dataset: Dataset, tasks: tuple[Task, ...]) -> Monitor:
        """Of ``metrics.monitor``.

        Raises:
            UserError: a task or a metric does not exist, or has no value on the validation rows.
        """
        by_name = {task.name: task for task in tasks}
        metrics = []
        for name, weight in chosen.items():
            where = f"metrics.monitor: {name!r}"
            of, _, metric = name.rpartition(".")
            if not of:
                raise UserError(f"{where}: write TASK.METRIC, such as {tasks[0].name}.{LOSS[tasks[0].kind]}")
            if of not in by_name:
                raise UserError(f"{where}: no task {of!r} is trained; {nearest(of, by_name)}")
            known = [other for other in METRICS[by_name[of].kind] if other in SIGNS]
            if metric not in known:
                raise UserError(
                    f"{where}: {metric!r} is no metric of a {by_name[of].kind} task that has a better direction; "
                    f"{nearest(metric, known)}"
                )
            if lack := _lack(dataset, by_name[of], metric):
                raise UserError(f"{where}: has no value, for {lack}; monitor another metric")
            metrics.append(Monitored(of, metric, weight))
        return cls(tasks, tuple(metrics))

    def cost(self, metrics: Mapping[str, Values]) -> float | None:
        """What is to be as low as possible; None: nothing that counts has a label.

        Raises:
            UserError: a metric that is monitored has no value.
        """
        if not self.metrics:
            known = [task for task in self.tasks if metrics[task.name][LOSS[task.kind]] is not None]
            return validation_loss(self.tasks, metrics) if any(task.weight for task in known) else None
        total = 0.0
        for one in self.metrics:
            value = metrics[one.task][one.metric]
            if value is None:
                raise UserError(
                    f"metrics.monitor: {one.name!r} has no value on the validation rows; monitor another metric"
                )
            total -= one.weight * SIGNS[one.metric] * value
        return total

    def describe(self, metrics: Mapping[str, Values]) -> dict[str, float]:
        """What is monitored, by name, and its value."""
        return {one.name: metrics[one.task][one.metric] for one in self.metrics}


def _lack(dataset: Dataset, task: Task, metric: str) -> str:
    """Why a metric has no value on the validation rows, as far as the data tells beforehand; empty: nothing says so."""
    rows = dataset.rows.get("val", 0)
    if not rows:
        return f"{dataset.name!r} has no validation rows"
    if not task.observed.get("val", rows):
        return f"no validation row has a label of {task.name!r}"
    if task.kind == "binary" and metric != "logloss" and task.base_rate.get("val") in (0.0, 1.0):
        return f"all labels of {task.name!r} in the validation rows are the same"
    if metric == "gauc" and not dataset.group:
        return "the recipe names no user (group)"
    return ""


@dataclass(frozen=True)
class Selection:
    """What the `metrics` section asks for."""

    include: frozenset[str]
    """Names of the metrics to measure."""
    by: tuple[str, ...]
    """Columns to measure the test rows by."""
    monitor: Monitor

    @classmethod
    def from_config(
        cls, config: MetricsConfig, dataset: Dataset, tasks: tuple[Task, ...], *, trains: bool
    ) -> Selection:
        """Of a run on some data; one that only measures monitors nothing.

        Raises:
            UserError: a metric, a segment or what is monitored does not exist.
        """
        for name in config.include:
            if name not in ALL:
                raise UserError(f"metrics.include: no metric {name!r}; {nearest(name, sorted(ALL))}")
        check_segments(dataset, config.by)
        monitor = Monitor.from_config(config.monitor if trains else {}, dataset, tasks)
        monitored = {one.metric for one in monitor.metrics}
        include = frozenset(config.include) | monitored if config.include else ALL
        return cls(include, tuple(config.by), monitor)
