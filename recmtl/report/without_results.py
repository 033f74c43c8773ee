"""The runs of a report that have no results that hold: by name, with what they are and the step they stand at."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from recmtl.report.numbers import NOTHING
from recmtl.report.runs import RunWithoutResults

TITLE = "Runs without results"
HEADS = ("run", "dataset", "model", "state", "step")


def markdown_section(runs: Sequence[RunWithoutResults]) -> str:
    """A heading and a list of the runs, as a table."""
    lines = [
        HEADS,
        ["---", "---", "---", "---", "---:"],
        *([cell.replace("|", "\\|") for cell in _cells(run)] for run in runs),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {TITLE}\n\n{table}"


def html_section(runs: Sequence[RunWithoutResults]) -> str:
    """The same as a section of the page."""
    head = "".join(f"<th>{name}" for name in HEADS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in _cells(run)) for run in runs)
    table = f"<div class=scroll><table class=plain><thead><tr>{head}</thead><tbody>{body}</tbody></table></div>"
    return f"<section><h2>{TITLE}</h2>{table}</section>"


def _cells(run: RunWithoutResults) -> list[str]:
    return [str(run.folder), run.dataset or NOTHING, run.model or NOTHING, run.state, f"{run.step:,}"]
