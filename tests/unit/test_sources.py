"""Views of raw files: columns that differ between files, partitions, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import events, run
from views import RAW, rows, view, write

from recmtl.data.prepare import partitions, sources
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import Source, load_recipe
from recmtl.errors import UserError

RECIPE = (
    'sql = """{sql}"""\n[[feature]]\nname = "{feature}"\n[[task]]\nname = "y"\nlabel = "y"\n'
    '[sources]\nraw = "**/*.parquet"\n{sources}\n'
)


def iter_partitions(folder: Path, *files: dict[str, Any], column: str = "x") -> list[Any]:
    """A column of a view of these files."""
    for number, file in enumerate(files):
        write(folder / f"{number}.parquet", file)
    return rows(view(folder))[column].to_pylist()


def prepared(folder: Path, sql: str = "select * from raw", feature: str = "item", more: str = "") -> Any:
    """Prepare what lies in ``raw`` by a recipe with one feature and the task y."""
    (folder / "mine.toml").write_text(RECIPE.format(sql=sql, feature=feature, sources=more))
    return prepare(load_recipe(str(folder / "mine.toml")), folder / "raw", folder / "out")


def conflict(folder: Path) -> None:
    """Raw files whose column x is a number in one and text in the other."""
    base = {"item": ["a", "b"] * 20, "y": [0, 1] * 20, "user": list(range(40))}
    write(folder / "raw" / "a.parquet", {**base, "x": [7] * 40})
    write(folder / "raw" / "b.parquet", {**base, "x": ["007"] * 40})


class TestTypes:
    def test_limits_follow_the_footers(self, tmp_path: Path) -> None:
        assert iter_partitions(tmp_path / "a", {"x": [2**53, None]}, {"x": [0.5]}) == [2.0**53, None, 0.5]
        assert iter_partitions(tmp_path / "b", {"x": [[2**53], []]}, {"x": [[0.5]]}) == [[2.0**53], [], [0.5]]
        big = [{"x": [2**53 + 1]}, {"x": [0.5]}]
        with pytest.raises(Exception, match=r"column 'x' is BIGINT in .*0\.parquet and DOUBLE in .*1\.parquet, whose"):
            iter_partitions(tmp_path / "c", *big)
        far = [{"x": pa.array([2**61], pa.timestamp("us"))}, {"x": pa.array([1], pa.timestamp("ns"))}]
        with pytest.raises(Exception, match=r"is TIMESTAMP in .*0\.parquet and TIMESTAMP_NS in .*1\.parquet, whose"):
            iter_partitions(tmp_path / "d", *far)

    def test_labels_are_not_forced_into_booleans(self, tmp_path: Path) -> None:
        write(tmp_path / "raw" / "a.parquet", {"item": ["a"] * 40, "y": [True, False] * 20})
        write(tmp_path / "raw" / "b.parquet", {"item": ["a"] * 40, "y": [1, 2, 3, 4] * 10})
        with pytest.raises(UserError, match=r"label 'y' is 2 at b\.parquet, row 1 .*30 wrong in all"):
            prepared(tmp_path)

    def test_names_are_compared_without_capitals(self, tmp_path: Path) -> None:
        assert iter_partitions(tmp_path / "a", {"X": [1], "z": ["q"]}, {"z": ["r"], "x": [0.5]}, column="X") == [1, 0.5]
        with pytest.raises(UserError, match=r"0\.parquet: two columns, 'x' and 'X', whose names"):
            iter_partitions(tmp_path / "b", {"x": [1], "X": [2]})

    def test_columns_that_files_lack(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert iter_partitions(tmp_path, {"x": [1], "n": [1]}, {"n": [2]}, {"n": [3], "x": [4]}, {"n": [5]}) == [
            1,
            None,
            4,
            None,
        ]
        line = f"source 'raw': no column 'x' in {tmp_path}/1.parquet and 1 more; it is null there\n"
        assert capsys.readouterr().err == line

    def test_files_without_rows_or_columns_say_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        empty = [{"x": pa.array([], pa.string())}, {"x": pa.nulls(0)}, {}]
        assert iter_partitions(tmp_path / "a", *empty, {"x": [1.5]}, {"x": pa.nulls(1)}) == [1.5, None]
        assert capsys.readouterr().err == ""
        assert iter_partitions(tmp_path / "b", *empty) == []
        with pytest.raises(UserError, match=r"0\.parquet: no columns in any file of source 'raw'"):
            iter_partitions(tmp_path / "c", {})

    def test_a_file_of_no_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "0.parquet").touch()
        with pytest.raises(UserError, match=r"0\.parquet: not readable as Parquet \(.*0 bytes"):
            view(tmp_path)

    def test_own_columns_of_the_names_of_a_views(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert iter_partitions(tmp_path / "a", {"filename": ["own"], "#filename": [1]}, column="filename_1") == ["own"]
        assert rows(view(tmp_path / "a"))["filename"].to_pylist() == ["0.parquet"]
        assert "its own column 'filename' is called 'filename_1'" in capsys.readouterr().err
        with pytest.raises(UserError, match=r"0\.parquet: has a column 'file_row_number'"):
            iter_partitions(tmp_path / "b", {"file_row_number": [1]})


class TestRefusedColumns:
    LINE = r"column 'x' is BIGINT in .*raw/a\.parquet and VARCHAR in .*raw/b\.parquet, and no type holds"

    @pytest.mark.parametrize(
        ("sql", "feature", "where"),
        [
            ("select * from raw", "x", r"\[\[feature\]\] 'x'"),
            ("select item, y, x from raw", "x", r"\[\[feature\]\] 'x'"),
            ("select item, y, x + 1 as z from raw", "item", "sql"),
            ("select * from raw where x is null", "item", "sql"),
            ("select distinct * from raw", "item", "sql"),
            ("select item, y, count(x) as z from raw group by all", "z", "sql"),
        ],
    )
    def test_uses_are_refused(self, tmp_path: Path, sql: str, feature: str, where: str) -> None:
        conflict(tmp_path)
        with pytest.raises(UserError, match=rf"mine\.toml: {where}.*{self.LINE}") as caught:
            prepared(tmp_path, sql, feature)
        assert "\n" not in str(caught.value)
        assert "#refused" not in str(caught.value)

    @pytest.mark.parametrize("part_rows", [1000, 20])
    def test_others_do_not_notice(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        part_rows: int,
    ) -> None:
        monkeypatch.setattr(partitions, "PARTITION_ROWS", part_rows)
        conflict(tmp_path)
        more = '[sources.events]\nsql = "select * from raw"\npartition_by = "user"\n'
        dataset = prepared(tmp_path, "select * from events", more=more)
        assert sum(dataset.rows.values()) == 80
        assert "left out: column 'x' is BIGINT in" in capsys.readouterr().err
        (tmp_path / "out").rename(tmp_path / "before")
        with pytest.raises(UserError, match=self.LINE):
            prepared(tmp_path, "select *, x as z from events", "z", more)
        with pytest.raises(UserError, match=rf"\[sources\] 'events': partition_by: {self.LINE}"):
            prepared(tmp_path, "select * from events", more=more.replace('"user"', '"x"'))


class TestPartitions:
    def test_are_columns_of_text(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for folder in ("day=1/a%20b=%E2%98%83", "day=02/A%20B=__HIVE_DEFAULT_PARTITION__", "day=3/day=4/a b=x=y"):
            write(tmp_path / folder / "0.parquet", {"x": [1]})
        table = rows(view(tmp_path))
        assert table.column_names == ["x", "day", "A B", "file_row_number", "filename"]
        assert table["day"].to_pylist() == ["02", "1", "4"]
        assert table["A B"].to_pylist() == [None, "☃", "x=y"]
        assert capsys.readouterr().err == ""
        write(tmp_path / "k=v.parquet", {"x": [1]})
        assert rows(view(tmp_path))["day"].to_pylist() == ["02", "1", "4", None]
        assert "1 of 4 files" in capsys.readouterr().err

    def test_a_files_own_column_counts(self, tmp_path: Path) -> None:
        write(tmp_path / "day=1" / "filename=2" / "0.parquet", {"Day": [7]})
        table = rows(view(tmp_path))
        assert table.column_names == ["Day", "file_row_number", "filename"]
        assert table.to_pylist() == [{"Day": 7, "file_row_number": 0, "filename": "day=1/filename=2/0.parquet"}]


class TestMistakes:
    @pytest.mark.parametrize(
        ("sql", "message"),
        [
            ("select *\nfrom raw\nwhere nothing = 1", r"\[sources\] 'more': sql, line 3: .*nothing"),
            ("select *\nfrom from raw", r"sql, line 2: .*syntax error"),
            ("select * from raw; select 1", "sql: must be one select, not 2 statements"),
            ("create table t (i int)", "sql: must be one select"),
            ("-- nothing", "sql: must be one select, not 0"),
            ("select * from raw where x = ?", "sql"),
            ("select * from raw where 'open", "sql"),
            ("pivot raw on x using count(*)", "sql"),
        ],
    )
    def test_in_a_sources_query(self, tmp_path: Path, sql: str, message: str) -> None:
        write(tmp_path / "0.parquet", {"x": [1]})
        with pytest.raises(UserError, match=message) as caught:
            view(tmp_path, RAW, Source("more", sql=sql))
        assert str(caught.value).startswith("r.toml: [sources] 'more': sql")
        assert "\n" not in str(caught.value)

    def test_a_query_that_ends_in_a_comment(self, tmp_path: Path) -> None:
        write(tmp_path / "0.parquet", {"x": [1]})
        db = view(tmp_path, RAW, Source("more", sql="select * from raw; -- all"))
        assert rows(db, "select x from more")["x"].to_pylist() == [1]

    def test_in_the_types_of_an_optional_source(self, tmp_path: Path) -> None:
        absent = Source("extra", ("extra/*.parquet",), optional=True, columns={"a": "NUMBR"})
        with pytest.raises(UserError, match=r"\[sources\] 'extra': columns.*NUMBR"):
            view(tmp_path, absent)

    def test_no_page_is_read_after_an_error_of_the_query(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("a page is read")

        monkeypatch.setattr(sources.pq, "ParquetFile", refuse)
        for sql in ('select cast("user" as int) from raw', "select strptime(\"user\", '%d') from raw"):
            text = f"sql = '''{sql.replace(' from', ' as user, clicked from')}'''\n" + (
                '[[feature]]\nname = "user"\n[[task]]\nname = "y"\nlabel = "clicked"\n'
            )
            with pytest.raises(UserError, match=r"mine\.toml: sql: (Conversion|Invalid Input) Error"):
                run(tmp_path, events(50), text)

    def test_a_byte_order_mark(self, tmp_path: Path) -> None:
        write(tmp_path / "raw" / "a.parquet", {"item": ["a"] * 40, "y": [0, 1] * 20})
        assert prepared(tmp_path).rows["train"] > 0
        text = (tmp_path / "mine.toml").read_bytes()
        (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + text)
        load_recipe(str(tmp_path / "mine.toml"))


def test_many_files_are_one_scan(tmp_path: Path) -> None:
    """Footers that differ in nothing that the engine sees stay one list of files."""
    schema = pa.schema([pa.field("x", pa.int64(), nullable=False)])
    for number in range(5):
        table = pa.table({"x": [number]}, schema=schema if number % 2 else None)
        pq.write_table(table.replace_schema_metadata({"k": f"{number}"}), tmp_path / f"{number}.parquet")
    [(query,)] = view(tmp_path).execute("select sql from duckdb_views() where view_name = 'raw'").fetchall()
    assert query.count("read_parquet") == 1
