"""The table of a rolling job: a line a day, for people and in full precision."""

from __future__ import annotations

import csv as csv_files
import io
from collections.abc import Sequence
from dataclasses import dataclass

from recmtl.report.numbers import NOTHING, show_amount, show_metric, show_seconds
from recmtl.rolling.record import STEPS, DayRecord, Metrics
from recmtl.schema import SPLITS

NOTE = (
    "Before: the model that was in use, on all rows of the day, before anything was learned from them. After: the "
    "day's model on the day's test rows, which it has not learned; the gain is over the model in use on the same rows. "
    "± is the standard error over the choice of rows. New and retired: values that got an id, and that lost theirs; on "
    "the first day all are new."
)


@dataclass(frozen=True)
class Measured:
    """The metric of a task that a report follows: the AUC, of a task that is a number the mean absolute error."""

    task: str
    metric: str

    @property
    def title(self) -> str:
        """For headings."""
        return f"{self.task} {self.metric.upper()}"

    def value(self, metrics: Metrics) -> tuple[float, float | None] | None:
        """The metric and its standard error, if it is known; None: the metric is not known."""
        values = metrics.get(self.task, {})
        value = values.get(self.metric)
        return None if value is None else (value, values.get(f"{self.metric}_se"))

    def show(self, metrics: Metrics) -> str:
        """The value with its error as text."""
        found = self.value(metrics)
        show = show_metric if self.metric == "auc" else show_amount
        return NOTHING if found is None else show(*found)


def before(record: DayRecord) -> Metrics:
    """Of yesterday's model on the whole day."""
    return record.yesterday.metrics if record.yesterday else {}


def after(record: DayRecord) -> Metrics:
    """Of the day's model on the day's test rows."""
    return record.today.metrics if record.today else {}


def before_on_test(record: DayRecord) -> Metrics:
    """Of yesterday's model on the day's test rows."""
    return record.today.yesterday if record.today else {}


def measured(records: Sequence[DayRecord]) -> list[Measured]:
    """What there is to follow, task by task."""
    found: dict[str, Measured] = {}
    for record in records:
        for metrics in (before(record), after(record)):
            for task, values in metrics.items():
                name = next((name for name in ("auc", "mae") if name in values), None)
                if name is not None:
                    found.setdefault(task, Measured(task, name))
    return list(found.values())


def tabulate(records: Sequence[DayRecord], followed: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table, a line a day."""
    head = ["day"]
    for one in followed:
        head += [f"{one.title} before", f"{one.title} after", *(["gain"] if one.metric == "auc" else [])]
    head += ["rows", "test rows", "new ids", "retired ids", "time", "CPU time", "model"]
    return head, [_line(record, followed) for record in records]


def _line(record: DayRecord, followed: Sequence[Measured]) -> list[str]:
    today, cells = record.today, [record.day]
    for one in followed:
        cells += [one.show(before(record)), one.show(after(record))]
        if one.metric == "auc":
            gain = today.auc_gain.get(one.task) if today else None
            cells.append(NOTHING if gain is None else _signed(show_metric(gain.value, gain.se)))
    new, retired = ids(record)
    cost = record.cost.values()
    return [
        *cells,
        f"{sum(record.rows.values()):,}",
        f"{record.rows.get('test', 0):,}",
        f"{new:,}",
        f"{retired:,}",
        show_seconds(sum(step.seconds for step in cost)),
        show_seconds(sum(step.cpu_seconds for step in cost)),
        "took over" if record.gate.accepted else "refused",
    ]


def _signed(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else f"+{text}"


def ids(record: DayRecord) -> tuple[int, int]:
    """Values that got an id on a day, and that lost theirs, in all tables."""
    return sum(table.new for table in record.tables.values()), sum(table.retired for table in record.tables.values())


def markdown(name: str, records: Sequence[DayRecord]) -> str:
    """The table, and why days were refused."""
    head, lines = tabulate(records, measured(records))
    rows = [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 2), "---"], *lines)]
    refused = [f"- {day} was refused: {reasons}" for day, reasons in refusals(records).items()]
    parts = [f"**{name}**: {summary(records)}", "\n".join(rows), NOTE, *(["\n".join(refused)] if refused else [])]
    return "\n\n".join(parts)


def refusals(records: Sequence[DayRecord]) -> dict[str, str]:
    """Why days were refused."""
    return {record.day: "; ".join(record.gate.reasons) for record in records if not record.gate.accepted}


def summary(records: Sequence[DayRecord]) -> str:
    """How many days there are, and whose model is the last that was accepted."""
    accepted = [record.day for record in records if record.gate.accepted]
    last = f"the last accepted model is that of {accepted[-1]}" if accepted else "no model was accepted"
    days = f"{len(records)} day{'' if len(records) == 1 else 's'}"
    return f"{days} from {records[0].day} to {records[-1].day}, {len(refusals(records))} refused; {last}"


def csv(records: Sequence[DayRecord]) -> str:
    """All that records hold, a line a day, in full precision."""
    found = [_values(record) for record in records]
    # The day with the most columns says in which order they stand: the first day has none of yesterday's model.
    names = list(dict.fromkeys(name for values in (max(found, key=len), *found) for name in values))
    out = io.StringIO()
    writer = csv_files.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue().rstrip("\n")


def _values(record: DayRecord) -> dict[str, object]:
    values: dict[str, object] = {
        "day": record.day,
        "since": record.since,
        "until": record.until,
        "accepted": int(record.gate.accepted),
        "reasons": "; ".join(record.gate.reasons),
        "start_from": record.start_from or "",
        **{f"rows_{split}": record.rows.get(split, 0) for split in SPLITS},
    }
    today = record.today
    for metrics in (before, after, before_on_test):
        for task, numbers in metrics(record).items():
            values |= {f"{metrics.__name__}_{task}_{name}": "" if of is None else of for name, of in numbers.items()}
    for task, gain in (today.auc_gain if today else {}).items():
        values |= {f"gain_{task}_auc": gain.value, f"gain_{task}_auc_se": "" if gain.se is None else gain.se}
    for table, counts in record.tables.items():
        values |= {f"table_{table}_{name}": number for name, number in vars(counts).items()}
    for step in STEPS:
        if cost := record.cost.get(step):
            values |= {f"seconds_{step}": cost.seconds, f"cpu_seconds_{step}": cost.cpu_seconds}
    return values
