"""Tables and plot of benchmarks/rolling.py, from what it found: by way and by day, metrics and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from common import markdown_table

from recmtl.metrics.jackknife import difference, standard_error

Found = dict[str, dict[int, dict[str, Any]]]
"""By way and day: "tasks", metrics of the day's model on the next day, where it was measured; "prepare" and "train",
what these steps took; "data_bytes", "run_bytes"; "table_rows" by table."""
LATE = 10
"""The first of the days over which differences are averaged in a series of two weeks."""
LAST = 5
"""How many measured days at the end are averaged in a longer one."""
GROWTH: dict[str, Callable[[dict[str, Any]], float]] = {
    "rows of tables": lambda day: sum(day["table_rows"].values()),
    "data MB": lambda day: day["data_bytes"] / 1e6,
    "run MB": lambda day: day["run_bytes"] / 1e6,
    "prepare CPU s": lambda day: day["prepare"]["cpu_seconds"],
    "train CPU s": lambda day: day["train"]["cpu_seconds"],
    "prepare peak MB": lambda day: day["prepare"]["peak_bytes"] / 1e6,
    "train peak MB": lambda day: day["train"]["peak_bytes"] / 1e6,
}
"""What may grow from day to day, by its name in the table."""
PLOTTED = ("rows of tables", "data MB", "prepare CPU s", "train CPU s")
"""Of `GROWTH`."""


def compare(found: Found) -> str:
    """Markdown of ways that have models of other quality: AUC and log loss of every day, and CPU time."""
    parts = []
    for task in tasks_of(found):
        header = ["day", "next day's rows", "oracle", *found, *(f"{way} − retrained" for way in others(found))]
        header += [f"log loss: {way}" for way in found]
        lines = [quality(found, task, day) for day in measured(found)]
        late = [day for day in measured(found) if day >= LATE]
        parts.append(f"{task}, AUC ± its standard error over the rows\n\n{markdown_table(header, lines)}")
        if late:
            changes = (
                f"{way} − retrained {show(mean_change(found, task, late, way, 'retrained'))}" for way in others(found)
            )
            parts.append(f"{task}, mean of days {', '.join(map(str, late))}: {', '.join(changes)}.")
    header = ["day", *(f"{way}: {step}" for way in trained(found) for step in ("prepare", "train"))]
    header += [f"{way} / retrained" for way in trained(found) if way != "retrained"]
    parts.append(f"CPU seconds of a day's steps\n\n{markdown_table(header, costs(found))}")
    return "\n\n".join(parts)


def bounded(found: Found) -> str:
    """Markdown of the two ways whose tables grow and stay: quality, sizes, memory and time by day."""
    days = measured(found)
    parts = []
    for task in tasks_of(found):
        header = ["day", "oracle", *found, "bounded − unbounded"]
        lines = [
            [
                str(day),
                oracle(found, task, day),
                *(auc_of(found[way][day], task) for way in found),
                show(change(found, task, day, "bounded", "unbounded")),
            ]
            for day in days
        ]
        last = days[-LAST:]
        mean = show(mean_change(found, task, last, "bounded", "unbounded"))
        parts += [f"{task}, AUC\n\n{markdown_table(header, lines)}"]
        parts += [f"{task}, mean of days {', '.join(map(str, last))}: bounded − unbounded {mean}."]
    header = ["day", *(f"{name}: {way}" for name in GROWTH for way in found)]
    lines = [
        [str(day), *(amount(of(found[way][day])) for of in GROWTH.values() for way in found)]
        for day in days
        if day > min(days)
    ]
    parts.append(f"What a day takes\n\n{markdown_table(header, lines)}")
    return "\n\n".join(parts)


def amount(value: float) -> str:
    """A number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tasks_of(found: Found) -> list[str]:
    """The tasks, in their order."""
    return list(next(day["tasks"] for day in next(iter(found.values())).values() if "tasks" in day))


def measured(found: Found) -> list[int]:
    """Days whose models were measured."""
    return [day for day, what in next(iter(found.values())).items() if "tasks" in what]


def others(found: Found) -> list[str]:
    """The ways that are compared with the retrained one."""
    return [way for way in found if way != "retrained"]


def trained(found: Found) -> list[str]:
    """The ways that learn every day."""
    return [way for way in found if "train" in found[way][max(found[way])]]


def learned(found: Found, way: str) -> list[int]:
    """The days for which it is known what a way's model took: not those of which a series measured more later on."""
    steps = ("prepare", "train")
    return [day for day, what in found[way].items() if all("cpu_seconds" in what.get(step, {}) for step in steps)]


def quality(found: Found, task: str, day: int) -> list[str]:
    """A line of a task's table."""
    some = next(iter(found.values()))[day]["tasks"][task]
    return [
        str(day),
        f"{some['rows']:,}",
        oracle(found, task, day),
        *(auc_of(found[way][day], task) for way in found),
        *(show(change(found, task, day, way, "retrained")) for way in others(found)),
        *(f"{found[way][day]['tasks'][task]['logloss']:.4f}" for way in found),
    ]


def oracle(found: Found, task: str, day: int) -> str:
    """The best possible AUC on the day after, where it is known."""
    best = next(iter(found.values()))[day]["tasks"][task].get("oracle_auc")
    return "–" if best is None else f"{best:.4f}"


def auc_of(day: dict[str, Any], task: str) -> str:
    """AUC ± its standard error."""
    metrics = day["tasks"][task]
    return f"{metrics['auc']:.4f} ± {metrics['auc_se']:.4f}"


def change(found: Found, task: str, day: int, way: str, reference: str) -> tuple[float, float]:
    """By how much a way's AUC is above another's on the rows after a day, and the standard error of that."""
    one, other = (found[name][day]["tasks"][task] for name in (way, reference))
    error = standard_error(difference(one["auc_folds"], other["auc_folds"]))
    return one["auc"] - other["auc"], error if error is not None else math.nan


def mean_change(found: Found, task: str, days: Sequence[int], way: str, reference: str) -> tuple[float, float]:
    """The mean over days, with the standard error of independent days."""
    changes, errors = zip(*(change(found, task, day, way, reference) for day in days), strict=True)
    return fmean(changes), math.sqrt(sum(error**2 for error in errors)) / len(days)


def show(change: tuple[float, float]) -> str:
    """A difference ± its standard error."""
    return f"{change[0]:+.4f} ± {change[1]:.4f}"


def cpu(day: dict[str, Any]) -> float:
    """CPU seconds that a day's model takes."""
    total: float = day["prepare"]["cpu_seconds"] + day["train"]["cpu_seconds"]
    return total


def costs(found: Found) -> list[list[str]]:
    """Lines of the table of CPU time, from the second day on: the first is the same for all."""
    lines = []
    known = set.intersection(*(set(learned(found, way)) for way in trained(found)))
    for day in sorted(known)[1:]:
        steps = [found[way][day][step]["cpu_seconds"] for way in trained(found) for step in ("prepare", "train")]
        shares = [cpu(found[way][day]) / cpu(found["retrained"][day]) for way in trained(found) if way != "retrained"]
        lines.append([str(day), *(f"{seconds:.1f}" for seconds in steps), *(f"{share:.2f}" for share in shares)])
    return lines


def slim(found: Found) -> Found:
    """What was found, without the folds behind the errors, which are most of its bytes."""
    return {
        way: {
            day: what
            | {
                "tasks": {
                    task: {name: value for name, value in metrics.items() if name != "auc_folds"}
                    for task, metrics in what.get("tasks", {}).items()
                }
            }
            for day, what in days.items()
        }
        for way, days in found.items()
    }


def plot(found: Found, path: Path) -> None:
    """By day: every task's AUC, below the best possible one where that is known, and what a day takes."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "recmtl"  # ids of the file's elements are the same in every run
    import matplotlib.pyplot as plt

    tasks, days = tasks_of(found), measured(found)
    amounts = {"CPU s a day": cpu} if "retrained" in found else {name: GROWTH[name] for name in PLOTTED}
    panels = len(tasks) + len(amounts)
    columns = min(panels, 3)
    rows = math.ceil(panels / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.6 * columns, 3 * rows), layout="constrained", squeeze=False)
    axes = list(grid.flat)
    for panel, task in zip(axes, tasks, strict=False):
        is_known = next(iter(found.values()))[days[0]]["tasks"][task].get("oracle_auc") is not None
        for way, of_day in found.items():
            metrics = [of_day[day]["tasks"][task] for day in days]
            values = [one["auc"] - (one["oracle_auc"] if is_known else 0) for one in metrics]
            panel.plot(days, values, marker="o", markersize=3, label=way, color=color(found, way))
        panel.set(xlabel="day of the model", ylabel=f"{task} AUC the day after" + (" − oracle" if is_known else ""))
    for panel, (name, of) in zip(axes[len(tasks) :], amounts.items(), strict=False):
        for way in trained(found):
            own = learned(found, way)[1:]
            panel.plot(own, [of(found[way][day]) for day in own], label=way, color=color(found, way))
        panel.set(xlabel="day", ylabel=name, ylim=(0, None))
    for panel in axes[panels:]:
        panel.remove()
    for panel in axes[:panels]:
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def color(found: Found, way: str) -> str:
    """A way has one colour in all panels."""
    return f"C{list(found).index(way)}"
