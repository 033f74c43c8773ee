"""One day of a rolling job: prepare, measure yesterday's model, train on, judge, export, serve, record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from recmtl.metrics.jackknife import difference, standard_error
from recmtl.rolling.calendar import Calendar
from recmtl.rolling.folders import DATA, EXPORTS, LOGS, RUNS, serve_day
from recmtl.rolling.gate import Bound, judge
from recmtl.rolling.record import DAYS, Cost, DayRecord, Gain, Metrics, Today, Yesterday, numbers
from recmtl.rolling.steps import Command, run_step
from recmtl.rolling.tables import count_ids
from recmtl.runtime.storage import exists, is_file, make_folder, os_errors, read_json, remove, write_json
from recmtl.schema import FILE_NAME, WHOLE, Dataset

RESULTS, EVALUATIONS = "results.json", "evaluations"
"""What `recmtl train` and `recmtl evaluate` write into a run folder."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What all days of a job have in common."""

    recipe: str
    raw: Path
    out: Path
    config: Path
    """The configuration, with all that was changed by the command line."""
    delay: str
    lookback: str | None
    ranks: int
    test: float
    bounds: Sequence[Bound]
    memory_limit: str


class Day:
    """A day that is being done: whatever is there already stays as it is.

    Args:
        settings: of the job.
        calendar: names and moments of windows.
        start: where the day's window begins.
        before: the last day whose model took over, which this one goes on from; None: there is none, and the day has
            all rows before it too.
        say: takes a line for each thing that is done.
    """

    def __init__(
        self, settings: Settings, calendar: Calendar, start: Fraction, before: DayRecord | None, say: Say
    ) -> None:
        self.settings, self.before, self.say = settings, before, say
        self.name = calendar.name(start)
        self.since, self.until = calendar.text(start), calendar.text(start + calendar.every)
        out = settings.out
        self.data, self.run, self.export = (out / kind / self.name for kind in (DATA, RUNS, EXPORTS))
        self.costs_file = out / DAYS / f".{self.name}.cost"
        self.costs: dict[str, Cost] = {}
        if is_file(self.costs_file):
            self.costs = {step: Cost(**cost) for step, cost in read_json(self.costs_file).items()}

    def do(self) -> DayRecord:
        """All steps of the day that are not done yet; returns its record, which is written.

        Raises:
            StepFailed: a step ended with an error.
            Stopped: SIGTERM came to the job or to a step.
            UserError: a file cannot be written or is damaged.
        """
        out, before = self.settings.out, self.before
        with os_errors(out):
            make_folder(out / DAYS)
        if not is_file(self.data / FILE_NAME):
            self._step("prepare", self._prepare_words(), ranks=1)
            self._say_rows()
        yesterday, yesterday_on_test = self._measure_yesterday() if before else (None, {})
        if not is_file(self.run / RESULTS):
            words = ["train", str(self.settings.config), "--data", str(self.data), "--run", str(self.run)]
            if before:
                # Only a first day has validation rows, and without them there is nothing to monitor.
                words += ["--start_from", str(out / RUNS / before.day), "--metrics.monitor"]
            self._step("train", words, ranks=self.settings.ranks)
        results = read_json(self.run / RESULTS)
        dataset = Dataset.load(self.data)
        today = _today(dataset, results["test"], yesterday_on_test) if results["test"] else None
        gate = judge(self.settings.bounds, today.metrics if today else None, numbers(yesterday_on_test))
        if gate.accepted:
            if not exists(self.export):
                self._step("export", ["export", str(self.run), str(self.export)], ranks=1)
            with os_errors(out):
                serve_day(out, self.name)
        record = DayRecord(
            day=self.name,
            since=self.since,
            until=self.until,
            rows=dataset.rows,
            tables=count_ids(self.data, dataset),
            start_from=before.day if before else None,
            yesterday=yesterday,
            today=today,
            gate=gate,
            cost=self.costs,
        )
        record.save(out)
        with os_errors(self.costs_file):
            remove(self.costs_file)
        return record

    def _step(self, name: str, words: list[str], ranks: int) -> None:
        """Run a command of recmtl, and keep what it cost beside the record to come."""
        log = self.settings.out / LOGS / self.name / f"{name}.log"
        self.costs[name] = cost = run_step(Command(words, ranks), self.name, log)
        write_json(self.costs_file, {step: asdict(cost) for step, cost in self.costs.items()})
        if name in ("train", "export"):
            self.say(f"{self.name} {name}: {cost.seconds:.1f} s")

    def _prepare_words(self) -> list[str]:
        settings, before = self.settings, self.before
        words = ["prepare", settings.recipe, str(settings.raw), str(self.data), "--memory_limit", settings.memory_limit]
        words += ["--until", self.until, "--lookahead", settings.delay]
        if before:
            words += ["--extend", str(settings.out / DATA / before.day), "--since", self.since]
            words += ["--test", str(settings.test)]
            if settings.lookback is not None:
                words += ["--lookback", settings.lookback]
        return words

    def _say_rows(self) -> None:
        rows = ", ".join(f"{count:,} {split}" for split, count in Dataset.load(self.data).rows.items() if count)
        self.say(f"{self.name} prepare: {rows} rows, {self.costs['prepare'].seconds:.1f} s")

    def _measure_yesterday(self) -> tuple[Yesterday, dict[str, Any]]:
        """Yesterday's model on the whole day, and what ``results.json`` would say of it on the day's test rows."""
        assert self.before is not None
        dataset, run = Dataset.load(self.data), self.settings.out / RUNS / self.before.day
        splits = [split for split in (WHOLE, "test") if dataset.count(split)]
        paths = {split: run / EVALUATIONS / f"{dataset.data_fingerprint}-{split}.json" for split in splits}
        missing = not all(map(is_file, paths.values()))
        if missing:
            words = ["evaluate", str(run), "--data", str(self.data), "--split", ",".join(splits)]
            self._step("evaluate", words, ranks=self.settings.ranks)
        found = {split: read_json(path)[split] for split, path in paths.items()}
        yesterday = Yesterday(self.before.day, dataset.count(WHOLE), numbers(found[WHOLE]))
        if missing:
            shown = describe(yesterday.metrics)
            self.say(f"{self.name} evaluate: yesterday's model: {shown}, {self.costs['evaluate'].seconds:.1f} s")
        return yesterday, found.get("test", {})


def describe(metrics: Metrics) -> str:
    """The AUC of every binary task, and the mean absolute error of the others."""
    shown = []
    for task, values in metrics.items():
        name, key = ("AUC", "auc") if "auc" in values else ("MAE", "mae")
        value = values.get(key)
        shown.append(f"{task} {name} {'n/a' if value is None else f'{value:.4f}'}")
    return ", ".join(shown)


def _today(dataset: Dataset, test: dict[str, Any], yesterday: dict[str, Any]) -> Today:
    return Today(dataset.count("test"), numbers(test), numbers(yesterday), _auc_gains(test, yesterday))


def _auc_gains(test: dict[str, Any], yesterday: dict[str, Any]) -> dict[str, Gain]:
    """By how much AUCs on the same rows differ; the folds tell how sure that is."""
    gains = {}
    for task, values in test.items():
        before = yesterday.get(task, {})
        now, then = values.get("auc"), before.get("auc")
        if now is None or then is None:
            continue
        folds = difference(values["auc_folds"], before["auc_folds"])
        gains[task] = Gain(now - then, standard_error(folds))
    return gains
