"""A model for every day: never trained again, trained on from yesterday's, or trained anew on all days?

    python benchmarks/rolling.py drift
    python benchmarks/rolling.py bounded --days 60 --events 40000 --expire 7 --max-rows 6500 --measure 10 20 30 40 50 59
    python benchmarks/rolling.py kuairand --raw RAW --first-days 3 --overrides="--training.batch_size 256"

Every step is the real command line. Each day's model is measured on the rows of the next day, which no way has learned
by then:

- frozen: trained on the first day, never again;
- continued: `prepare --extend` and `train --start-from` yesterday's model, one pass over the day's rows;
- retrained: `prepare` on all days so far, and one pass over all their rows from new weights.

`bounded` compares two models that go on: one whose tables grow for ever and whose query reads all raw files, and one
with `expire`, `max_rows` and `--lookback`. Each `prepare` and `train` of a measured day is a process of its own, of
which CPU seconds and memory are counted, start included. Start the command again and it goes on where it stopped;
`--until DAY` stops after that day.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq
import rolling_page
import table
import tyro
from common import RESULTS, machine, write_results
from usage import usage

from recmtl import cli

Results = dict[str, Any]
Kind = Literal["frozen", "continued", "retrained"]
SPLIT = """
[split]
by = "time"
column = "{column}"
val = 0
test = 0
"""
"""All rows of a day are for training: the next day is the test."""
BOUNDS = """
[[table]]
name = "product"
expire = {expire}
max_rows = {max_rows}
[[table]]
name = "user_id"
expire = {expire}
[[table]]
name = "session_id"
expire = {expire}
"""


@dataclass
class Options:
    """What to compare on which days."""

    series: tyro.conf.Positional[Literal["drift", "bounded", "kuairand"]]
    """drift: synthetic days, the three ways; bounded: synthetic days, with and without bounds; kuairand: real days, the
    three ways."""
    raw: Path | None = None
    """The raw folder of KuaiRand."""
    days: int = 14
    """How many days there are; the last one only measures."""
    events: int = 300_000
    """Synthetic events of a day."""
    seed: int = 0
    """Of the synthetic days; runs have seed 100 more."""
    first_days: int = 1
    """Days that all ways learn together before they part."""
    preset: str = "mmoe"
    """The model."""
    overrides: str = ""
    """Further options of `recmtl train`, for all runs."""
    first_overrides: str = ""
    """The same for the model of the first days alone."""
    continued_overrides: str = ""
    """The same for all runs that go on from another."""
    variants: tuple[str, ...] = ()
    """More ways that go on, each as "NAME: options of `recmtl train`"."""
    expire: int = 10
    """Of `bounded`: days after which a product, user or session that was not seen loses its id."""
    max_rows: int = 20_000
    """Of `bounded`: most rows of the table of products."""
    lookback: str = "1 day"
    """How far back the query of `--extend` sees in synthetic days; of `bounded`, the bounded way's alone. Else, and in
    KuaiRand, whose counts and histories are of all days, it reads all raw files."""
    measure: tuple[int, ...] = ()
    """Days whose models are compared; the first is one of them. None: all."""
    until: int | None = None
    """Stop after this day; none: go on to the end and write the results."""
    work: Path | None = None
    """Folder for data and runs; what it holds already is not made again. None: one in benchmarks/work."""
    out: Path = RESULTS
    """Folder for the results."""


@dataclass(frozen=True)
class Chain:
    """Prepared folders that extend each other, one a day."""

    name: str
    recipe: str
    """Text of its recipe."""
    lookback: str | None = None


@dataclass(frozen=True)
class Way:
    """One way to have a model for each day.

    Args:
        name: what the table calls it.
        kind: whether it is never trained again, goes on, or begins anew every day.
        chain: whose rows it is measured on, and learns unless it is retrained.
        words: options of `recmtl train` for every day but the first.
    """

    name: str
    kind: Kind
    chain: Chain
    words: tuple[str, ...] = ()


class Series:
    """Folders and models of the days, counted from 1; whatever is asked for is made unless it is there."""

    def __init__(self, options: Options, work: Path) -> None:
        self.options, self.work = options, work
        self.ways = ways(options)

    def step(self, name: str, out: Path, day: int, *words: object) -> Results:
        """What a command of recmtl took that writes a folder; what a stopped one left of the folder is removed.

        It is a process of its own on days that are measured. On others nothing is known of what it took: it runs in
        this process, which saves its start.
        """

        def run() -> Results:
            if out.exists():
                shutil.rmtree(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            if self.is_measured(day):
                return vars(usage(sys.executable, "-m", "recmtl", *words))
            in_process(*words)
            return {}

        return self.once(name, run)

    def once(self, name: str, make: Callable[[], Results]) -> Results:
        """What a step found, now or when it ran."""
        path = self.work / "steps" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(make()))
            partial.replace(path)
        found: Results = json.loads(path.read_text())
        return found

    def is_measured(self, day: int) -> bool:
        """Whether the models of a day are compared, and what they take."""
        options = self.options
        return not options.measure or day in (*options.measure, options.first_days)

    def raw(self, day: int) -> Path:
        """The raw folder as it is on the evening of a day: links to the files of all days so far."""
        out, partial = self.work / "raw" / str(day), self.work / "raw" / f".{day}"
        if not out.exists():
            shutil.rmtree(partial, ignore_errors=True)
            if self.options.raw is None:
                self._grow_synthetic(day, partial)
            else:
                grow_kuairand(self.options.raw, day, partial)
            partial.rename(out)
        return out

    def _grow_synthetic(self, day: int, out: Path) -> None:
        all_days, options = self.work / "synthetic", self.options
        sizes = ("--events", options.events * options.days, "--days", options.days, "--seed", options.seed)
        self.step("synth", all_days, 0, "synth", "merrec", all_days, *sizes, "--drift")
        names = sorted(folder.name for folder in all_days.iterdir() if folder.name != "truth")
        for name in names[:day]:
            for folder in (all_days / name, all_days / "truth" / name):
                link(folder, out / folder.relative_to(all_days))

    def data(self, chain: Chain, day: int) -> Path:
        """The prepared rows of a day: of the first days together, then of each by itself, extending the day before."""
        out, first = self.work / chain.name / str(day), self.options.first_days
        words: list[object] = [self._recipe(chain), self.raw(day), out]
        if day > first:
            words += ["--extend", self.data(chain, day - 1)]
            words += ["--lookback", chain.lookback] if chain.lookback else []
        self.step(f"prepare {chain.name} {day}", out, day, "prepare", *words)
        return out

    def anew(self, chain: Chain, day: int) -> Path:
        """The rows of all days so far, prepared without what was prepared before."""
        out = self.work / "anew" / str(day)
        self.step(f"prepare anew {day}", out, day, "prepare", self._recipe(chain), self.raw(day), out)
        return out

    def after(self, chain: Chain, day: int) -> Path:
        """The rows of the next day in the encoding of `anew`."""
        out = self.work / "after" / str(day)
        words = [self._recipe(chain), self.raw(day + 1), out, "--extend", self.anew(chain, day)]
        self.step(f"prepare after {day}", out, day, "prepare", *words)
        ours, theirs = (dataset(folder)["rows"] for folder in (out, self.data(chain, day + 1)))
        if ours != theirs:
            sys.exit(f"day {day + 1} has {theirs} rows, but {ours} where the days before are prepared anew")
        return out

    def _recipe(self, chain: Chain) -> Path:
        path = self.work / f"{chain.name}.toml"
        if not path.exists():
            path.write_text(chain.recipe)
        return path

    def run(self, way: Way, day: int) -> Path:
        """The model of a day. All ways of a chain have that of the first days in common."""
        options, first = self.options, self.options.first_days
        if day == first or way.kind == "frozen":
            name, data, words = f"{way.chain.name} first", self.data(way.chain, first), options.first_overrides.split()
        else:
            anew = way.kind == "retrained"
            data = self.anew(way.chain, day) if anew else self.data(way.chain, day)
            before = [] if anew else ["--start-from", str(self.run(way, day - 1))]
            name, words = f"{way.name} {day}", [*before, *way.words]
        out = self.work / "runs" / name
        words = ["--training.max_epochs", "1", *options.overrides.split(), *words]
        words = [
            "--data",
            str(data),
            "--run",
            str(out),
            *words,
            "--training.seed",
            str(table.FIRST_SEED + options.seed),
        ]
        self.step(f"train {name}", out, day, "train", options.preset, *words)
        return out

    def measure(self, way: Way, day: int) -> Results:
        """What a way's model of a day is worth on the next day, and what that day took."""
        chain, is_first = way.chain, day == self.options.first_days
        is_anew = way.kind == "retrained" and not is_first
        if not self.is_measured(day):
            if way.kind == "continued":
                self.run(way, day)
            return {}
        run = self.run(way, day)
        found: Results = {}
        if way.kind != "frozen" or is_first:
            learned = self.anew(chain, day) if is_anew else self.data(chain, day)
            found["prepare"] = self.once(f"prepare {'anew' if is_anew else chain.name} {day}", dict)
            found["train"] = self.once(f"train {run.name}", dict)
            rows = {one["name"]: one["rows"] for one in dataset(learned)["tables"]}
            found |= {"data_bytes": size(learned), "run_bytes": size(run), "table_rows": rows}
        following = self.after(chain, day) if is_anew else self.data(chain, day + 1)
        found["tasks"] = self.once(f"evaluate {way.name} {day}", lambda: evaluate(run, following))
        return found


def ways(options: Options) -> list[Way]:
    """What a series compares."""
    column = "time_ms" if options.series == "kuairand" else "stime"
    base = "kuairand" if options.series == "kuairand" else "merrec"
    recipe = f'name = "{base}_days"\nextends = "{base}"\ndescription = "Days of {base}"\n{SPLIT.format(column=column)}'
    words = tuple(options.continued_overrides.split())
    if options.series == "bounded":
        bounds = BOUNDS.format(expire=options.expire, max_rows=options.max_rows)
        chains = Chain("unbounded", recipe), Chain("bounded", recipe + bounds, options.lookback)
        return [Way(chain.name, "continued", chain, words) for chain in chains]
    chain = Chain("grown", recipe, None if options.series == "kuairand" else options.lookback)
    found = [Way("frozen", "frozen", chain), Way("continued", "continued", chain, words)]
    for variant in options.variants:
        name, _, more = variant.partition(":")
        found.append(Way(name, "continued", chain, (*words, *more.split())))
    return [*found, Way("retrained", "retrained", chain)]


def in_process(*words: object) -> None:
    """Run a command of recmtl in this process."""
    command, *arguments = map(str, words)
    getattr(cli, command)(arguments)


def evaluate(run: Path, data: Path) -> Results:
    """Metrics of every task on the rows of a day."""
    in_process("evaluate", run, "--data", data, "--split", "train")
    path = run / "evaluations" / f"{dataset(data)['data_fingerprint']}-train.json"
    found: Results = json.loads(path.read_text())["train"]
    return found


def dataset(data: Path) -> Results:
    """What a prepared folder says of itself."""
    found: Results = json.loads((data / "dataset.json").read_text())
    return found


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def link(folder: Path, out: Path) -> None:
    """A folder with hard links to another's files."""
    out.mkdir(parents=True)
    for file in folder.iterdir():
        os.link(file, out / file.name)


def grow_kuairand(raw: Path, day: int, out: Path) -> None:
    """KuaiRand as it was on the evening of a day, by the dates in its log."""
    out.mkdir(parents=True)
    log = pq.read_table(raw / "log.parquet")
    dates = sorted(pc.unique(log["date"]).to_pylist())
    pq.write_table(log.filter(pc.less_equal(log["date"], dates[day - 1])), out / "log.parquet")
    for name in ("users.parquet", "videos.parquet"):
        shutil.copy(raw / name, out / name)


def main(options: Options) -> None:
    """Go through the days, then write, plot and print."""
    if (options.series == "kuairand") != (options.raw is not None):
        sys.exit("--raw names the raw folder of KuaiRand, and only that")
    place = machine()
    name = options.series if options.series == "kuairand" else f"{options.series}-{options.days}x{options.events}"
    work = options.work or table.WORK / f"rolling-{name}"
    work.mkdir(parents=True, exist_ok=True)
    series = Series(options, work)
    found: dict[str, dict[int, Results]] = {way.name: {} for way in series.ways}
    last = options.until or max(options.measure, default=options.days - 1)
    for day in range(options.first_days, last + 1):
        for way in series.ways:
            found[way.name][day] = series.measure(way, day)
    if options.until is not None:
        return
    body = rolling_page.bounded(found) if options.series == "bounded" else rolling_page.compare(found)
    chosen = {key: value for key, value in asdict(options).items() if key not in ("raw", "work", "out", "until")}
    results = {"machine": place, "options": chosen, "ways": rolling_page.slim(found)}
    path = write_results(options.out, "rolling", name, results, body)
    rolling_page.plot(found, path.with_name(path.name + ".svg"))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
