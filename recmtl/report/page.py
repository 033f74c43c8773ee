"""The page: table, plots, bars, configurations and versions in one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib import resources
from itertools import groupby

from recmtl import __version__
from recmtl.report import bars, figures
from recmtl.report.calibration import calibration_plots
from recmtl.report.cost import cost_plots
from recmtl.report.curves import curve_plots
from recmtl.report.data_section import data_section
from recmtl.report.numbers import NOTHING
from recmtl.report.rows import Row, tasks
from recmtl.report.runs import Plan, Run
from recmtl.report.segments import segments_section
from recmtl.report.table import Cell, Column, Line, Table, notes, show_gap

WIDE = 14
"""Columns from which on a table is set closer."""


def page(datasets: dict[str, list[Row]], tables: dict[str, Table], others: str = "") -> str:
    """The whole page.

    Args:
        datasets: the rows of every dataset, by its heading.
        tables: their tables.
        others: the section of runs without results; empty where there are none.
    """
    names = ", ".join(datasets)
    sections = "\n".join(_section(name, rows, tables[name]) for name, rows in datasets.items())
    every = [run for rows in datasets.values() for row in rows for run in row.runs]
    return whole_page(names, f"{sections}\n{others}\n{_versions(every)}")


def whole_page(title: str, body: str) -> str:
    """A page that loads nothing."""
    style = resources.files("recmtl.report").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark">
<title>recmtl: {escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
<footer>recmtl {escape(__version__)}</footer>
</main>
</body>
</html>"""


def _section(heading: str, rows: list[Row], table: Table) -> str:
    runs = [run for row in rows for run in row.runs]
    models = {run.model for run in runs}
    settings = f" in {_count(len(rows), 'setting')}" if len(rows) > len(models) else ""
    count = f"{_count(len(runs), 'run')} of {_count(len(models), 'model')}{settings}"
    tested = f", {runs[0].test_rows:,} test rows" if runs[0].test_rows else ""
    return f"""<section>
<header><h1>{escape(heading)}</h1><p>{count}, {_devices(runs)}{tested}</p></header>
{_tiles(table)}
{_table(table)}
{_differences(table)}
{_plots(rows)}
{segments_section(rows)}
{data_section(rows)}
<h2>Where the time went</h2>
{bars.time_bars(rows)}{_missing(rows, lambda run: bool(run.seconds), "times by part in results.json")}
{plans(rows)}
{_configurations(rows)}
</section>"""


def _devices(runs: list[Run]) -> str:
    kinds = sorted({(run.world_size, run.device) for run in runs})
    return " and ".join(f"{_count(size, 'rank')} on {device.upper()}" for size, device in kinds)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _tiles(table: Table) -> str:
    """The best of every column where there is a choice."""
    tiles = []
    for number, column in enumerate(table.columns):
        best = next((line for line in table.lines if line.cells[number].best), None)
        if best and column.headline:
            number_text = _number(best.cells[number])
            tiles.append(f"<li><h3>{_superlative(column)}</h3><strong>{number_text}</strong>{escape(best.label)}</li>")
    return f"<ul class=tiles>{''.join(tiles)}</ul>" if tiles else ""


def _superlative(column: Column) -> str:
    return f"{'highest' if column.best is max else 'lowest'} {escape(column.title)}"


def _table(table: Table) -> str:
    starts = _starts(table.columns)
    body = "".join(_line(line, starts) for line in table.lines)
    known = any(line.label == "oracle" for line in table.lines)
    oracle = " The oracle ranks by the true probabilities." if known else ""
    said = "".join(f" {escape(note)}" for note in notes(table))
    size = " class=wide" if len(table.columns) >= WIDE else ""
    return f"""<div class=scroll><table{size}><thead>{_head(table.columns)}</thead><tbody>{body}</tbody></table></div>
<p class=note>Test split, best epoch. Best in bold. The base rate predicts the same for every row.{oracle}{said}
Log loss in nats. Memory is the peak of the rank that needed most.</p>"""


def _head(columns: list[Column]) -> str:
    """Two lines: a task's name stands above its metrics."""
    above, below = ["<th rowspan=2>model"], []
    for task, group in groupby(columns, key=lambda column: column.task):
        found = list(group)
        if task:
            above.append(f"<th class=task colspan={len(found)}>{escape(task)}")
            below += [f"<th{_start(i == 0)}>{escape(column.short)}" for i, column in enumerate(found)]
        else:
            above += [f"<th rowspan=2{_start(i == 0)}>{escape(column.title)}" for i, column in enumerate(found)]
    return f"<tr>{''.join(above)}<tr>{''.join(below)}"


def _starts(columns: list[Column]) -> list[bool]:
    """Whether a column is the first of its task, or of those that belong to none."""
    return [i == 0 or column.task != columns[i - 1].task for i, column in enumerate(columns)]


def _start(first: bool) -> str:
    return " class=start" if first else ""


def _line(line: Line, starts: list[bool]) -> str:
    cells = "".join(f"<td{_start(first)}>{_shown(cell)}" for cell, first in zip(line.cells, starts, strict=True))
    runs = f" <small>{line.runs} runs</small>" if line.runs > 1 else ""
    return f"<tr{'' if line.runs else ' class=reference'}><th>{_name(line.label)}{runs}{cells}"


def _name(label: str) -> str:
    """A name that may be broken where it has underscores."""
    return escape(label).replace("_", "_<wbr>")


def _shown(cell: Cell) -> str:
    return f"<strong>{_number(cell)}</strong>" if cell.best else _number(cell)


def _number(cell: Cell) -> str:
    """The mean with its unit; small below it the spread, and whether it counts as equal to the best."""
    mean, _, rest = cell.text.partition(" ± ")
    spread, _, unit = rest.partition(" ")
    # ± .0012, as there may be many columns.
    small = f"± {spread[1:] if spread.startswith('0.') else spread}" if spread else ""
    mark = "≈ " if cell.equal else ""
    return f"{mean} {unit}".rstrip() + (f"<small>{mark}{small}</small>" if mark or small else "")


def _differences(table: Table) -> str:
    """Every model's AUC less the best, by task."""
    differences = table.differences()
    if not differences:
        return ""
    texts = {task: {line.name: show_gap(cell) for line, cell in cells} for task, cells in differences.items()}
    lines = "".join(
        f"<tr><th>{_name(line.label)}{''.join(f'<td>{texts[task].get(line.name, NOTHING)}' for task in texts)}"
        for line in table.lines
        if any(line.name in found for found in texts.values())
    )
    head = "".join(f"<th>{escape(task)}" for task in texts)
    return f"""<h2>AUC less the best</h2>
<p class=note>± is the standard error of the difference of two models on the same test rows, smaller than those of the
two by themselves. It says how far the difference would move with other test rows, not how far with other seeds.</p>
<div class=scroll><table class=fit><thead><tr><th>model{head}</thead><tbody>{lines}</tbody></table></div>"""


def _plots(rows: list[Row]) -> str:
    names = tasks(rows)
    legend = figures.legend([row.label for row in rows])
    parts = [
        figures_section(
            "Accuracy against cost",
            cost_plots(rows),
            "Filled: on the Pareto front (the line), where no other is better in one and as good in the other. "
            "Bars: standard deviation over seeds; of a single run's AUC its standard error.",
            legend,
        )
        if len(rows) > 1
        else "",
        figures_section(
            "Training",
            {title: plot for task in names for title, plot in curve_plots(rows, task).items()},
            "A line a run. The vertical axis leaves the first steps out.",
            legend,
        ),
        _missing(rows, lambda run: bool(run.history), "metrics.jsonl"),
        figures_section(
            "Calibration",
            {title: plot for task in names for title, plot in calibration_plots(rows, task).items()},
            "Test rows in bins of rising prediction, as full as each other. Grey, of binary tasks: where 95 % of the "
            "bins of a model lie whose predictions are true. Logarithmic axes leave out bins without positives.",
            legend,
        ),
        _missing(rows, lambda run: bool(run.bins), "calibration bins in results.json"),
    ]
    return "\n".join(parts)


def figures_section(title: str, plots: dict[str, str], note: str, legend: str) -> str:
    if not plots:
        return f"<h2>{title}</h2>"
    found = "\n".join(f"<figure><figcaption>{escape(name)}</figcaption>{plot}</figure>" for name, plot in plots.items())
    return f"<h2>{title}</h2>\n<p class=note>{note}</p>\n{legend}\n<div class=figures>\n{found}\n</div>"


def _missing(rows: list[Row], there: Callable[[Run], bool], what: str) -> str:
    """A word on the rows that have no run with something."""
    without = [row.label for row in rows if not any(there(run) for run in row.runs)]
    return f"<p class=note>No {what}: {escape(', '.join(without))}.</p>" if without else ""


def plans(rows: list[Row]) -> str:
    """The sharding plans; rows with the same one together."""
    labels: dict[Plan, list[str]] = {}
    for row in rows:
        for plan in [run.plan for run in row.runs if run.plan is not None][:1]:
            labels.setdefault(plan, []).append(row.label)
    plans = [f"<h3>{escape(', '.join(names))}</h3>{bars.plan_bars(plan)}" for plan, names in labels.items()]
    return f"""<h2>Sharding plan</h2>
<p class=note>Tables on each rank by the planner's estimate of bytes: weights, optimiser state, inputs and outputs.</p>
{"".join(plans)}{_missing(rows, lambda run: run.plan is not None, "plan.json")}"""


def _configurations(rows: list[Row]) -> str:
    details = []
    for row in rows:
        seeds = ", ".join(str(run.seed) for run in row.runs)
        texts = [run.config_text for run in row.runs if run.config_text]
        if texts:
            summary = f"{escape(row.label)} <small>{'seed' if len(row.runs) == 1 else 'seeds'} {seeds}</small>"
            details.append(f"<details><summary>{summary}</summary><pre>{escape(texts[0])}</pre></details>")
    missing = _missing(rows, lambda run: bool(run.config_text), "config.toml")
    return f"<h2>Configuration</h2>\n{''.join(details)}{missing}"


def _versions(runs: list[Run]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.versions)
    lines = [
        f"<tr><th>{escape(name)}<td>{escape(', '.join(sorted({run.versions.get(name, '–') for run in runs})))}"
        for name in names
    ]
    return f"<section><h2>Versions</h2><div class=scroll><table class=plain>{''.join(lines)}</table></div></section>"
