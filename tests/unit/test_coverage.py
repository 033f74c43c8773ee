"""Shares of missing and unseen values: counted by hand, kept in dataset.json, shown at the end of `prepare`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from prepared import run

from recmtl.data.prepare.summary import notes, print_summary
from recmtl.schema import Dataset

NAN = float("nan")
RECIPE = """
sql = "select * from raw"
[[table]]
name = "rare"
min_count = 2
[[table]]
name = "hashed"
hash_rows = 9
[[feature]]
name = "item"
[[feature]]
name = "rare"
[[feature]]
name = "float"
[[feature]]
name = "hashed"
[[feature]]
name = "words"
kind = "list"
[[feature]]
name = "split_words"
kind = "list"
separator = ","
[[feature]]
name = "hashed_words"
column = "words"
kind = "list"
table = "hashed_words"
[[feature]]
name = "number"
kind = "numeric"
transform = "standardize"
[[table]]
name = "hashed_words"
hash_rows = 9
[[task]]
name = "y"
label = "y"
[split]
by = "column"
column = "part"
"""
ROWS = {
    "part": ["train"] * 4 + ["test"] * 4,
    "y": [0, 1] * 4,
    "item": ["a", "b", "a", None, "a", "c", "c", None],
    "rare": ["a", "a", "b", "c", "a", "b", "d", None],
    "float": [1.0, NAN, None, 2.0, 3.0, NAN, 1.0, 1.0],
    "hashed": ["a", "b", None, "d", "x", "y", None, None],
    "words": [["a", "b"], [], None, ["a", None], ["a", "z", None], None, None, ["z"]],
    "split_words": ["a, b", "", None, "a", "a,z,,z", None, "b", "z"],
    "number": [1.0, NAN, None, 2.0, float("inf"), 1.0, None, NAN],
}
MISSING = {
    "item": (1 / 4, 1 / 4),
    "rare": (0, 1 / 4),
    "float": (2 / 4, 1 / 4),
    "hashed": (1 / 4, 2 / 4),
    "words": (2 / 4, 2 / 4),
    "split_words": (2 / 4, 1 / 4),
    "hashed_words": (2 / 4, 2 / 4),
    "number": (2 / 4, 3 / 4),
}
UNSEEN = {
    "item": (0, 2 / 4),
    "rare": (2 / 4, 2 / 4),
    "float": (0, 1 / 4),
    "hashed": (0, 0),
    "words": (0, 2 / 3),
    "split_words": (0, 3 / 5),
    "hashed_words": (0, 0),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return run(tmp_path, pa.table(ROWS), RECIPE)


def test_shares_are_those_counted_by_hand(tmp_path: Path, dataset: Dataset) -> None:
    def by_split(shares: dict[str, tuple[float, float]], name: str) -> dict[str, float]:
        return dict(zip(("train", "test"), shares[name], strict=True)) if name in shares else {}

    for feature in Dataset.load(tmp_path / "out").features:
        assert feature.missing == pytest.approx(by_split(MISSING, feature.name)), feature.name
        assert feature.unseen == pytest.approx(by_split(UNSEEN, feature.name)), feature.name


def test_shares_are_no_part_of_the_encoding(tmp_path: Path, dataset: Dataset) -> None:
    more = {name: [*values, values[-1]] for name, values in ROWS.items()}
    (tmp_path / "more").mkdir()
    again = run(tmp_path / "more", pa.table(more), RECIPE)
    assert again.features != dataset.features
    assert again.encoding_fingerprint == dataset.encoding_fingerprint


def test_the_summary_has_a_line_for_each_task_and_feature(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    print_summary(dataset)
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    assert ["y", "0.5000", "0.5000"] in lines
    assert ["item", "25.00%", "25.00%", "0.00%", "50.00%"] in lines
    assert ["number", "50.00%", "75.00%", "–", "–"] in lines
    assert len(lines) == 2 + 1 + 2 + len(dataset.features)


def test_what_test_rows_alone_lack_is_told(dataset: Dataset) -> None:
    told = list(notes(dataset))
    assert [note.split("'")[1] for note in told] == ["item", "rare", "float", "words", "split_words"]
    assert told[0].startswith("[[feature]] 'item': 50.0% unseen or rare in test rows, 0.0% in training")
