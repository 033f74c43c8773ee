"""The command line's words: what they become, and one line that says what to write in place of those that are wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from tyro.conf import Positional, arg

from recmtl.cli import Prepare, Report
from recmtl.config import load_config, preset_names
from recmtl.errors import UserError
from recmtl.options import parse_words
from recmtl.typed import Fraction


@dataclass
class Layers:
    widths: tuple[int, ...] = ()
    batch_size: int = 1
    lr: float = 0.1
    kinds: dict[str, Literal["wide", "deep"]] = field(default_factory=dict)


@dataclass
class Other:
    lr: float = 0.1
    share: Fraction = 0.0
    names: Annotated[tuple[str, ...], arg(aliases=("--names",))] = ()


@dataclass
class Command:
    first: Annotated[Path, Positional, arg(metavar="FIRST")]
    second: Annotated[Path, Positional, arg(metavar="SECOND")]
    out: Path
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    fast: bool = True
    layers: Layers = field(default_factory=Layers)
    other: Other = field(default_factory=Other)


PLACES = ["a", "b", "--out", "c"]


def test_what_words_become():
    words = ["--layers.widths", "3", "4", "--layers.batch-size=5", "--names", "x", "--layers.kinds", "y", "deep"]
    args = parse_words(Command, [*PLACES, *words, "--threads", "2"], "go")
    assert (args.first, args.second, args.out, args.threads) == (Path("a"), Path("b"), Path("c"), 2)
    assert args.layers == Layers(widths=(3, 4), batch_size=5, kinds={"y": "deep"})
    assert args.other == Other(names=("x",))


@pytest.mark.parametrize("words", [["--out", "c", "a", "b"], ["a", "--out", "c", "b"], ["a", "b", "--out=c"]])
def test_places_stand_before_or_after_options(words):
    args = parse_words(Command, [*words, "--threads", "None", "--layers.lr", "-1e-3"], "go")
    assert (args.first, args.second, args.out) == (Path("a"), Path("b"), Path("c"))
    assert (args.threads, args.layers.lr) == (None, -0.001)


def words_of(section: Any, prefix: str = "--") -> list[str]:
    """A configuration as words of the command line."""
    words = []
    for item in fields(section):
        name, value = prefix + item.name, getattr(section, item.name)
        if is_dataclass(value):
            words += words_of(value, f"{name}.")
        elif isinstance(value, dict):
            words += [name, *(word for pair in value.items() for word in pair)]
        else:
            words += [name, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


@pytest.mark.parametrize("name", preset_names())
def test_every_key_of_a_configuration_is_an_option(name, capsys):
    config = load_config(name)
    default = type(config)()
    assert parse_words(type(config), words_of(config), "train") == config
    assert parse_words(type(config), [], "train") == default
    with pytest.raises(SystemExit):
        parse_words(type(config), ["--help"], "train")
    assert set(re.findall(r"--[a-z][\w.]+", capsys.readouterr().out)) == {
        *(word for word in words_of(config) if word.startswith("--")),
        *("--help", "--tasks"),
    }


def test_help_ends_the_process(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_words(Command, ["--help"], "go")
    assert not ended.value.code
    assert "usage: recmtl go" in capsys.readouterr().out


USAGE = "the command is recmtl go FIRST SECOND --out OUT"
MISTAKES = [
    # words, what is said
    ([], f"recmtl go: FIRST, SECOND, --out missing; {USAGE}"),
    (["a", "--out", "c"], f"recmtl go: SECOND missing; {USAGE}"),
    (["a", "b"], f"recmtl go: --out missing; {USAGE}"),
    (["a", "b", "--uot", "c"], "recmtl go: unknown option '--uot'; did you mean --out?"),
    (["a", "b", "x", "--out", "c"], f"recmtl go: nothing takes 'x'; {USAGE}"),
    ([*PLACES, "d"], "--out: write one path, not 'c d'"),
    (["a", "", "--out", "c"], "SECOND: write one path, not ''"),
    (["a", "b", "--out", ""], "--out: write one path, not ''"),
    (["a", "b", "--out="], "--out: write one path, not ''"),
    (
        [*PLACES, "--layers.batchsize", "5"],
        "recmtl go: unknown option '--layers.batchsize'; did you mean --layers.batch_size?",
    ),
    ([*PLACES, "--batch-size", "5"], "recmtl go: unknown option '--batch-size'; did you mean --layers.batch_size?"),
    ([*PLACES, "--lr", "5"], "recmtl go: unknown option '--lr'; did you mean --layers.lr or --other.lr?"),
    ([*PLACES, "--xyz=5"], "recmtl go: unknown option '--xyz=5'; `recmtl go --help` shows them all"),
    ([*PLACES, "-v"], "recmtl go: unknown option '-v'; `recmtl go --help` shows them all"),
    ([*PLACES, "--layers.batch-size", "5k"], "--layers.batch_size: write one whole number, not '5k'"),
    ([*PLACES, "--layers.batch_size=5k"], "--layers.batch_size: write one whole number, not '5k'"),
    ([*PLACES, "--layers.batch_size", "5", "6"], "--layers.batch_size: write one whole number, not '5 6'"),
    ([*PLACES, "--layers.batch_size"], "--layers.batch_size: write one whole number"),
    ([*PLACES, "--threads", "1", "--threads", "all"], "--threads: write one whole number, not 'all'"),
    ([*PLACES, "--device", "cudo", "--device", "cpu"], "--device: no 'cudo'; did you mean 'cuda'?"),
    ([*PLACES, "--layers.lr", "low"], "--layers.lr: write one number, not 'low'"),
    (
        [*PLACES, "--layers.widths", "3,4"],
        "--layers.widths: write one whole number, or several with spaces between, not '3,4'",
    ),
    (
        [*PLACES, "--layers.kinds", "y"],
        "--layers.kinds: write one name and one of wide, deep, or several such pairs, not 'y'",
    ),
    ([*PLACES, "--threads", "all"], "--threads: write one whole number, not 'all'"),
    ([*PLACES, "--fast", "yes"], "--fast: write True or False, not 'yes'"),
    ([*PLACES, "--device", "cudo"], "--device: no 'cudo'; did you mean 'cuda'?"),
    ([*PLACES, "--device", "gpu"], "--device: no 'gpu'; choose one of cpu, cuda"),
    ([*PLACES, "--device"], "--device: write one of cpu, cuda"),
    ([*PLACES, "--device", "cpu", "cuda"], "--device: write one of cpu, cuda, not 'cpu cuda'"),
    ([*PLACES, "--layers.lr", "-inf"], "--layers.lr: write one number, not '-inf'"),
    ([*PLACES, "--threads", "2.5"], "--threads: write one whole number, not '2.5'"),
    ([*PLACES, "--other.share", "1"], "--other.share: write one number from 0 to below 1, not '1'"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_mistakes_say_what_to_write(words, said):
    with pytest.raises(UserError) as caught:
        parse_words(Command, words, "go")
    assert str(caught.value) == said


def test_a_flag_needs_no_value():
    words = ["census", "raw", "out", "--overwrite", "--limit", "5"]
    args = parse_words(Prepare, words, "prepare", flags=True)
    assert (args.overwrite, args.limit, args.memory_limit) == (True, 5, "4GB")
    assert not parse_words(Prepare, words[:3], "prepare", flags=True).overwrite
    assert parse_words(Prepare, ["--overwrite", *words[:3]], "prepare", flags=True).overwrite
    assert parse_words(Prepare, [*words[:3], "--overwrite=True"], "prepare", flags=True).overwrite
    with pytest.raises(
        UserError, match=r"^recmtl prepare: nothing takes 'True'; the command is recmtl prepare RECIPE RAW"
    ):
        parse_words(Prepare, [*words[:4], "True"], "prepare", flags=True)


def test_several_places():
    assert parse_words(Report, ["a", "b", "--out", "c", "d"], "report").runs == (Path("a"), Path("b"), Path("d"))
    with pytest.raises(UserError, match=r"^recmtl report: RUNS missing; the command is recmtl report RUNS --out OUT$"):
        parse_words(Report, ["--out", "c"], "report")
    with pytest.raises(UserError, match=r"^RUNS: write one path, or several with spaces between, not 'a '$"):
        parse_words(Report, ["a", "", "--out", "c"], "report")
