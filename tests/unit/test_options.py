"""The command line's words: what they become, and one line that says what to write in place of those that are wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from tyro.conf import Positional, arg

from recmtl.cli import Prepare
from recmtl.errors import UserError
from recmtl.options import parse_words


@dataclass
class Layers:
    widths: tuple[int, ...] = ()
    batch_size: int = 1
    lr: float = 0.1
    kinds: dict[str, Literal["wide", "deep"]] = field(default_factory=dict)


@dataclass
class Other:
    lr: float = 0.1
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
