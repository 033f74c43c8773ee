"""`prepare --overwrite` and `--limit`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from days import Log
from prepared import events, only, read_all, run

from recmtl.data.prepare.extension import Extend
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.runtime.folders import complete_or_absent
from recmtl.schema import ENCODER, PENDING, Dataset


class TestOverwrite:
    def test_replaces_prepared_data(self, tmp_path: Path) -> None:
        first = run(tmp_path, events(50))
        second = run(tmp_path, events(80), overwrite=True)
        assert first.rows != second.rows
        assert Dataset.load(tmp_path / "out") == second
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "out", "raw"]

    def test_writes_what_is_not_there(self, tmp_path: Path) -> None:
        assert run(tmp_path, events(50), overwrite=True).rows["train"] > 0

    def test_replaces_data_whose_encoding_grows(self, tmp_path: Path) -> None:
        """Of such data a folder also holds rare values and generations of ids."""
        log = Log(tmp_path, "min_count = 2")
        _, grown = log.grow([[("a", 1), ("a", 1), ("a", 2)], [("a", 2), ("b", 3)]])
        assert {path.name for path in log.data(1).iterdir()} >= {PENDING, ENCODER}
        again = prepare(log.recipe, log.raw, log.data(1), extend=Extend(log.data(0)), overwrite=True)
        assert again.data_fingerprint == grown.data_fingerprint
        assert prepare(log.recipe, log.raw, log.data(0), overwrite=True).generation == 0

    def test_what_fails_leaves_the_old(self, tmp_path: Path) -> None:
        first = run(tmp_path, events(50))
        bad = events(60).set_column(5, "clicked", pa.array([2] * 60))
        with pytest.raises(UserError, match="'clicked'"):
            run(tmp_path, bad, overwrite=True)
        assert Dataset.load(tmp_path / "out") == first
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "out", "raw"]

    @pytest.mark.parametrize("place", ["notes.txt", "train/notes.txt", "vocab/more/x.parquet", "runs/a"])
    def test_deletes_nothing_of_others(self, tmp_path: Path, place: str) -> None:
        run(tmp_path, events(50))
        precious = tmp_path / "out" / place
        precious.parent.mkdir(exist_ok=True, parents=True)
        precious.write_text("mine")
        with pytest.raises(UserError, match=r"is not from `recmtl prepare`; move it away"):
            run(tmp_path, events(60), overwrite=True)
        assert precious.read_text() == "mine"

    @pytest.mark.parametrize("text", [None, "{}", "[1]", "not json"])
    def test_is_for_prepared_data_only(self, tmp_path: Path, text: str | None) -> None:
        (tmp_path / "out").mkdir()
        name = "precious" if text is None else "dataset.json"
        (tmp_path / "out" / name).write_text(text or "mine")
        with pytest.raises(UserError, match="is no folder that `recmtl prepare` wrote"):
            run(tmp_path, events(50), overwrite=True)
        assert (tmp_path / "out" / name).read_text() == (text or "mine")

    def test_not_through_a_link(self, tmp_path: Path) -> None:
        first = run(tmp_path, events(50), out="real")
        (tmp_path / "out").symlink_to(tmp_path / "real")
        with pytest.raises(UserError, match="is no folder"):
            run(tmp_path, events(60), overwrite=True)
        assert Dataset.load(tmp_path / "real") == first

    def test_the_raw_folder_is_not_replaced(self, tmp_path: Path) -> None:
        run(tmp_path, events(50))
        recipe = load_recipe(str(tmp_path / "mine.toml"))
        with pytest.raises(UserError, match="holds the raw folder"):
            prepare(recipe, tmp_path / "out" / "train", tmp_path / "out", overwrite=True)
        assert Dataset.load(tmp_path / "out").rows

    def test_what_came_meanwhile_stays(self, tmp_path: Path) -> None:
        """A file that appears while the new data are written."""

        def refuse(folder: Path) -> None:
            if (folder / "late").exists():
                raise UserError("late")

        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").touch()
        with pytest.raises(UserError, match="late"), complete_or_absent(tmp_path / "out", refuse):
            (tmp_path / "out" / "late").touch()
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["late", "old"]

    def test_killed_between_the_two_the_old_comes_back(self, tmp_path: Path) -> None:
        first = run(tmp_path, events(50))
        (tmp_path / ".out.tmp").mkdir()
        (tmp_path / "out").rename(tmp_path / ".out.tmp" / "replaced")
        with pytest.raises(UserError, match="exists and is not empty"):
            run(tmp_path, events(50))
        assert Dataset.load(tmp_path / "out") == first


class TestLimit:
    def files(self) -> tuple[list[pa.Table], str]:
        tables, text = [], ""
        for start in range(0, 90, 30):
            table, text = only("numeric", pa.array(np.arange(start, start + 30)))
            tables.append(table)
        return tables, text

    @pytest.mark.parametrize("limit", [1, 29, 30, 31, 60, 89])
    def test_takes_the_first_rows(self, tmp_path: Path, limit: int) -> None:
        tables, text = self.files()
        dataset = run(tmp_path, tables, text, limit=limit)
        assert sorted(read_all(tmp_path)["x"].to_pylist()) == list(range(limit))
        assert Dataset.load(tmp_path / "out").limit == dataset.limit == limit

    @pytest.mark.parametrize("limit", [90, 91])
    def test_of_no_more_rows_is_the_whole(self, tmp_path: Path, limit: int) -> None:
        tables, text = self.files()
        assert run(tmp_path, tables, text, limit=limit) == run(tmp_path, tables, text, out="whole")

    def test_other_sources_are_whole(self, tmp_path: Path) -> None:
        table, text = only("numeric", pa.array(np.arange(30)))
        text = text.replace("select * from raw", "select (select count(*) from b) as x, y from a")
        run(tmp_path, table, text + '[sources]\na = "*.parquet"\nb = "*.parquet"\n', limit=3)
        assert read_all(tmp_path)["x"].to_pylist() == [30.0] * 3

    def test_must_be_positive(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"--limit: 0 is out of range; the least is 1"):
            run(tmp_path, events(50), limit=0)
        assert not (tmp_path / "out").exists()

    def test_names_a_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "1.parquet").write_text("no")
        with pytest.raises(UserError, match=r"1\.parquet: not readable as Parquet"):
            run(tmp_path, events(50), limit=60)
