"""The page of a rolling job: metrics, rows, ids and cost day by day."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from recmtl.report import bars, figures
from recmtl.report.data_section import folded, grid
from recmtl.report.page import figures_section, whole_page
from recmtl.report.rolling.plots import SERIES, cost_plots, count_plots, metric_plots
from recmtl.report.rolling.table import NOTE, Measured, before, measured, refusals, summary, tabulate
from recmtl.rolling.record import STEPS, DayRecord
from recmtl.schema import SPLITS


def rolling_page(name: str, records: Sequence[DayRecord]) -> str:
    """The whole page.

    Args:
        name: of the job.
        records: of its days, in their order, one at least.
    """
    followed = measured(records)
    metrics = figures_section(
        "Metrics by day",
        metric_plots(records, followed),
        "Bars: standard error over the choice of rows. Hollow: the day's model was refused.",
        figures.legend([label for label, _ in SERIES]),
    )
    counts = figures_section(
        "Rows and ids by day",
        count_plots(records),
        "Ids of all tables: new ones stand above zero, retired ones below; without the first day, whose ids are all "
        "new.",
        _keys({"Rows": SPLITS, "Ids": ("new", "retired")}),
    )
    cost = figures_section(
        "Cost by day",
        cost_plots(records),
        "What each step took by the clock, and in CPU time of all its processes.",
        bars.legend((step, f"var(--series-{series})") for series, step in enumerate(STEPS)),
    )
    body = f"""<section>
<header><h1>{escape(name)}</h1><p>{escape(summary(records))}</p></header>
{_tiles(records, followed)}
{_refused(records)}
{metrics}
<h2>Days</h2>
{_table(records, followed)}
{counts}
{_tables(records)}
{cost}
</section>"""
    return whole_page(name, body)


def _keys(plots: dict[str, Sequence[str]]) -> str:
    """The colours of several plots."""
    keys = [
        (f"{plot}: {part}", f"var(--series-{series})")
        for plot, parts in plots.items()
        for series, part in enumerate(parts)
    ]
    return bars.legend(keys)


def _tiles(records: Sequence[DayRecord], followed: Sequence[Measured]) -> str:
    """What yesterday's model measured on the newest day."""
    last = records[-1]
    tiles = []
    for one in followed:
        text = one.show(before(last))
        value, _, error = text.partition(" ± ")
        small = f"<small>± {error}</small>" if error else ""
        where = f"yesterday's model on {escape(last.day)}"
        tiles.append(f"<li><h3>{escape(one.title)}</h3><strong>{value}{small}</strong>{where}</li>")
    return f"<ul class=tiles>{''.join(tiles)}</ul>"


def _refused(records: Sequence[DayRecord]) -> str:
    """Why days were refused."""
    lines = [f"<tr><th>{escape(day)}<td>{escape(reasons)}" for day, reasons in refusals(records).items()]
    table = f"<div class=scroll><table class=plain>{''.join(lines)}</table></div>"
    return f"<h2>Refused</h2>{table}" if lines else ""


def _table(records: Sequence[DayRecord], followed: Sequence[Measured]) -> str:
    head, lines = tabulate(records, followed)
    cells = [[_cell(text) for text in line] for line in lines]
    return f"{grid(head, cells)}<p class=note>{escape(NOTE)}</p>"


def _cell(text: str) -> str:
    value, _, error = text.partition(" ± ")
    if text == "refused":
        return "<strong>refused</strong>"
    return escape(value) + (f"<small>± {escape(error)}</small>" if error else "")


def _tables(records: Sequence[DayRecord]) -> str:
    """Of every table its rows on the newest day, and how many ids were new and retired since the first day."""
    last, later = records[-1], records[1:]
    lines = []
    for name, table in sorted(last.tables.items(), key=lambda item: -item[1].rows):
        counts = [record.tables[name] for record in later if name in record.tables]
        sums = sum(count.new for count in counts), sum(count.retired for count in counts)
        lines.append([escape(name), *(f"{number:,}" for number in (table.rows, table.new, table.retired, *sums))])
    head = ["table", "rows", f"new on {last.day}", "retired", "new since the first day", "retired"]
    return folded(f"Embedding tables on {escape(last.day)}", grid(head, lines), len(lines))
