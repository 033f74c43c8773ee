"""Bars of parts, as HTML that fits any width: where the time went, and what lies on which rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from recmtl.report.figures import SERIES
from recmtl.report.numbers import show_seconds, show_size
from recmtl.report.rows import Row
from recmtl.report.runs import Plan, Run, Value

PARTS = {
    "training": "train",
    "waiting for data": "data_wait",
    "validation": "validation",
    "checkpoints": "checkpoint",
    "test": "test",
}
"""What the parts of a run's time are called, and in ``results.json``."""
RANKS_SHOWN = 16
TABLES_SHOWN = SERIES - 1
"""The largest tables have a colour each."""
NAMED_PERCENT = 6
"""Pieces narrower than this have no room for their name."""


@dataclass(frozen=True)
class Part:
    """A piece of a bar."""

    name: str
    size: float
    text: str
    color: str


def time_bars(rows: list[Row]) -> str:
    """One bar a row, mean over its runs; empty where no run says."""
    bars = {}
    for row in rows:
        seconds = {name: row.mean(_seconds(part)) or 0.0 for name, part in PARTS.items()}
        if any(seconds.values()):
            seconds["training"] = max(seconds["training"] - seconds["waiting for data"], 0.0)
            bars[row.label] = [
                Part("", size, f"{name}: {show_seconds(size)}", f"var(--series-{i})")
                for i, (name, size) in enumerate(seconds.items())
            ]
    totals = {label: show_seconds(sum(part.size for part in parts)) for label, parts in bars.items()}
    keys = {name: f"var(--series-{i})" for i, name in enumerate(PARTS)}
    return _bars(bars, totals) + legend(keys.items()) if bars else ""


def _seconds(part: str) -> Callable[[Run], Value]:
    return lambda run: run.seconds.get(part)


def plan_bars(plan: Plan) -> str:
    """One bar a rank; every table has its width in bytes, the largest a colour of their own."""
    sizes: dict[str, int] = defaultdict(int)
    kinds: dict[str, str] = {}
    held: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for shard in plan.shards:
        sizes[shard.table] += shard.bytes
        kinds[shard.table] = shard.sharding
        held[shard.rank][shard.table] += shard.bytes
    order = sorted(sizes, key=lambda table: -sizes[table])
    large = order if len(order) <= SERIES else order[:TABLES_SHOWN]
    colors = {table: f"var(--series-{i})" for i, table in enumerate(large)}
    bars, totals = {}, {}
    for rank in range(min(plan.world_size, RANKS_SHOWN)):
        tables = held[rank]
        parts = [
            Part(table, tables[table], f"{table}: {show_size(tables[table])}, {kinds[table]}", colors[table])
            for table in large
            if tables[table]
        ]
        if others := [table for table in order if table not in colors and tables[table]]:
            size = sum(tables[table] for table in others)
            parts.append(Part(f"{len(others)} more", size, f"{', '.join(others)}: {show_size(size)}", "var(--muted)"))
        total = sum(tables.values())
        bars[f"rank {rank}"] = parts
        share = f" · {100 * total / plan.memory:.2g} % of {show_size(plan.memory)}" if plan.memory else ""
        totals[f"rank {rank}"] = show_size(total) + share
    keys = {f"{table} ({kinds[table]}, {show_size(sizes[table])})": color for table, color in colors.items()}
    if rest := len(order) - len(large):
        keys[f"{rest} other tables ({show_size(sum(sizes[t] for t in order[len(large) :]))})"] = "var(--muted)"
    note = ""
    if plan.world_size > RANKS_SHOWN:
        note = f"<p class=note>The first {RANKS_SHOWN} of {plan.world_size} ranks.</p>"
    return _bars(bars, totals) + legend(keys.items()) + note


def legend(keys: Iterable[tuple[str, str]]) -> str:
    """Names beside their colours."""
    items = "".join(f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in keys)
    return f"<ul class=legend>{items}</ul>"


def _bars(bars: dict[str, list[Part]], totals: dict[str, str]) -> str:
    """Bars to one scale, each with its label and its total."""
    longest = max(sum(part.size for part in parts) for parts in bars.values()) or 1.0
    lines = []
    for label, parts in bars.items():
        pieces = "".join(_piece(part, 100 * part.size / longest) for part in parts if part.size > 0)
        bar = f"<div class=bar>{pieces}</div><small>{escape(totals[label])}</small>"
        lines.append(f"<dt>{escape(label)}</dt><dd>{bar}</dd>")
    return f"<dl class=bars>{''.join(lines)}</dl>"


def _piece(part: Part, percent: float) -> str:
    style = f"width:{percent:.3f}%;background:{part.color};color:{part.color.replace('--', '--on-')}"
    name = part.name if percent >= NAMED_PERCENT else ""
    return f'<b style="{style}" title="{escape(part.text)}">{escape(name)}</b>'
