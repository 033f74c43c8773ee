"""What the subcommands take: one dataclass a subcommand, a field an argument, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval
from tyro.conf import Positional, arg

from recmtl.serving.limits import Limits


@dataclass
class Listing:
    """List what there is."""


@dataclass
class Catalogue:
    """List what there is; `show NAME` prints the file of one."""


@dataclass
class Show:
    """Print a file that comes with recmtl."""

    name: Annotated[str, Positional, arg(metavar="NAME")]
    """Its name in the list."""


@dataclass
class Synth:
    """Make raw event logs of a known dataset's shape."""

    dataset: Annotated[str, Positional, arg(metavar="DATASET")]
    """Which one; there is merrec."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Folder to write; must not exist."""
    events: int = 1_000_000
    """Number of events."""
    seed: int = 0
    """Seed; the same seed, events and days give the same log."""
    days: int | None = None
    """Days that follow each other, a folder and EVENTS / DAYS events each; none: one folder, of a month."""
    drift: bool = False
    """With --days: users and products come and go from day to day, tastes change."""


@dataclass
class Prepare:
    """Turn raw logs into training data by a recipe."""

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    """A recipe's name (see `recmtl recipes`) or the path of a TOML file."""
    raw: Annotated[Path, Positional, arg(metavar="RAW")]
    """Folder of the raw Parquet files."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Folder to write; must not exist, or be empty."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What runs the query: this machine's cores, or the tasks of a Spark cluster, with the same output."""
    master: str | None = None
    """With --engine spark: the cluster, such as spark://HOST:7077; none: as Spark's own settings say, or all cores of
    this machine."""
    memory_limit: str = "4GB"
    """Memory that DuckDB may use before it spills to disk, such as 4GB; with --engine spark that of every task."""
    threads: int | None = None
    """Threads; none: one a core."""
    overwrite: bool = False
    """Replace OUT if it holds prepared data and nothing else; it stays until the new data are whole."""
    limit: int | None = None
    """Read only so many raw rows of the recipe's first source, to try a recipe; none: all."""
    until: str | None = None
    """Write only rows before that moment, by the recipe's [split] column; the query sees later ones too. None: all."""
    lookahead: str | None = None
    """With --until: how far after it the query sees, such as "1 hour", in a column of numbers such as 3600; none: all
    raw rows."""
    extend: Path | None = None
    """Prepared folder whose encoding is to grow by the rows after its last moment; only these are written."""
    since: str | None = None
    """With --extend: first moment of the new rows; none: those after the folder's last one."""
    lookback: str | None = None
    """With --extend: how far before the new rows the query sees, such as "14 days", in a column of numbers such as
    1209600; none: all raw rows."""
    val: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """With --extend: share of the new rows, the last ones by time, that validate; none: 0."""
    test: Annotated[float, Interval(ge=0, lt=1)] | None = None
    """With --extend: the same for testing."""


@dataclass(kw_only=True)
class Train:
    """Train a model."""

    data: Path
    """Prepared folder of `recmtl prepare`."""
    run: Path
    """Run folder to write, or to go on with."""
    start_from: Path | None = None
    """Run folder whose best model to start from, trained on the same encoding or one that DATA was extended from; none:
    from new weights."""


@dataclass(kw_only=True)
class Plan:
    """Show the sharding plan and the memory of every rank, on paper."""

    data: Path
    """Prepared folder of `recmtl prepare`."""
    world_size: Annotated[int, Interval(ge=1)] = 1
    """Number of ranks."""
    device: Literal["cpu", "cuda"] = "cuda"
    """What the ranks run on."""
    hbm_gib: Annotated[float, Interval(gt=0, le=1_000_000)] = 80.0
    """Memory of one rank in GiB."""
    ranks_per_node: Annotated[int, Interval(ge=1)] = 8
    """Ranks on one machine."""


@dataclass
class Evaluate:
    """Measure a run's best model."""

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """A run folder of `recmtl train`."""
    data: Path
    """A prepared folder of the same encoding, or of one that grew from it: that of the run, or other rows."""
    split: str = "test"
    """Which rows: train, val, test, or whole: all of them as one; several, with commas between, are measured one after
    the other. all: the three splits."""
    by: str | None = None
    """Columns to measure by as well, with commas between, in place of the run's metrics.by."""


@dataclass
class Roll:
    """Do every day of a log that is ready: prepare it, measure yesterday's model, train on, export what is good.

    Started again, it goes on where it stopped.
    """

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    """A recipe's name (see `recmtl recipes`) or the path of a TOML file; it splits by time."""
    raw: Annotated[Path, Positional, arg(metavar="RAW")]
    """Folder of the raw Parquet files, which grows."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Folder of the job: data, runs, exports, days, and the link `current` to the export to be served."""
    config: Annotated[str, Positional, arg(metavar="CONFIG")]
    """Configuration of every run: the name of a preset or a TOML file."""
    every: str | None = None
    """Length of a day, such as "6 hours", in a column of numbers such as 21600; none: "1 day"."""
    start: str | None = None
    """Of a job that begins: where the first day ends, which has all rows before that; none: it is the first window with
    rows."""
    delay: str | None = None
    """How far the log must be past a day's end before that day is done; labels see no further. None: "1 hour", in a
    column of numbers 0."""
    lookback: str | None = None
    """How far a day's query sees before it, such as "14 days"; none: all raw rows."""
    ranks: Annotated[int, Interval(ge=1, le=4096)] = 1
    """Processes that train and measure."""
    keep: Annotated[int, Interval(ge=1)] | None = None
    """Days whose data, runs and exports stay, the newest ones, beside what is served and what the next day builds on;
    none: all. Records stay for good."""
    test: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of a day's rows, the last ones by time, that test its model; on the first day the recipe says."""
    gate: tuple[str, ...] = ()
    """Bounds that a day's model must keep on the day's test rows to take over, such as "like.auc >= 0.7" or "like.auc
    >= yesterday - 0.01", where yesterday is what yesterday's model has on the same rows."""
    redo_from: str | None = None
    """Forget everything from this day on, and do it again."""
    memory_limit: str = "4GB"
    """Memory of preparing, such as 4GB, beyond which it spills to disk."""


@dataclass
class Predict:
    """Score new raw files with a trained model."""

    model: Annotated[Path, Positional, arg(metavar="MODEL")]
    """A run folder of `recmtl train`, or an export of `recmtl export`."""
    raw: Annotated[Path, Positional, arg(metavar="RAW")]
    """Folder of the raw Parquet files, laid out as those that the model was trained on; labels may be absent."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Folder to write; must not exist, or be empty."""
    keep: str | None = None
    """Columns of the recipe's query to write beside the predictions, with commas between; none: all single values."""
    since: str | None = None
    """Score only rows whose [split] column is that moment or later; histories see what lies before it."""
    conditional: bool = False
    """Write p_TASK_given_PARENT too, where the model composes probabilities."""
    memory_limit: str = "4GB"
    """Memory of the query, such as 4GB, beyond which it spills to disk; the model comes on top."""
    threads: int | None = None
    """Threads of the query; none: one a core."""


@dataclass
class Export:
    """Write a run's best model as a folder that needs nothing else."""

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """A run folder of `recmtl train`."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Folder to write; must not exist, or be empty."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """Of the embedding tables. int8: one byte a number, and four a row."""
    compile: bool = False
    """Compile the network too, for machines like this one; takes minutes and a C++ compiler."""
    delta_from: Path | None = None
    """An earlier export: write only what makes the new one of it, for `recmtl apply-delta`; none: all."""


@dataclass
class ApplyDelta:
    """Make an export of an earlier one and a delta."""

    export: Annotated[Path, Positional, arg(metavar="EXPORT")]
    """The export that the delta starts from."""
    delta: Annotated[Path, Positional, arg(metavar="DELTA")]
    """What `recmtl export --delta-from` wrote."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Folder to write; must not exist, or be empty."""


@dataclass
class Serve:
    """Serve an export over HTTP."""

    export: Annotated[Path, Positional, arg(metavar="EXPORT")]
    """An export of `recmtl export`, or a link to one: where the link comes to lead elsewhere, that model takes over."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine's."""
    port: Annotated[int, Interval(ge=0, le=65535)] = 8080
    """Port; 0: any that is free."""
    name: str = ""
    """Name of the model in URLs; none: the recipe's."""
    workers: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Processes; they share the tables' memory."""
    watch_seconds: Annotated[float, Interval(gt=0)] = 5.0
    """Between two looks at where the link leads."""
    log_features: Path | None = None
    """Folder to write what is scored to, as Parquet; none: nothing is written."""
    log_share: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """Share of the requests that are written there."""
    limits: Limits = field(default_factory=Limits)


@dataclass
class Embeddings:
    """Write what a model learned of the values of a table."""

    model: Annotated[Path, Positional, arg(metavar="MODEL")]
    """A run folder of `recmtl train`, or an export of `recmtl export`."""
    table: Annotated[str, Positional, arg(metavar="TABLE")]
    """An embedding table of the recipe."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Parquet file to write; must not exist."""


@dataclass
class Report:
    """Put runs, or the days of a rolling job, into a table and a page of plots."""

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUNS")]
    """Run folders of `recmtl train`, or the one folder of a `recmtl roll`."""
    out: Path
    """Folder to write the report to."""
