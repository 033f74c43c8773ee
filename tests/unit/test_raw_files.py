"""Which files a source has: wherever the raw folder lies, whatever it and all that is in it are called."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import events, run
from views import RAW, rows, view, write

from recmtl.data.prepare.duck import connect
from recmtl.data.prepare.raw_files import find_files
from recmtl.data.recipe import Recipe, Source
from recmtl.errors import UserError


def found(raw: Path, *globs: str) -> list[str]:
    """The files that globs match, relative to the raw folder."""
    recipe = Recipe("d", "select 1", sources=(Source("raw", globs or RAW.files),))
    return [path.relative_to(raw).as_posix() for path in find_files(recipe, raw)["raw"]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    return connect("1GB", 1, tmp_path_factory.mktemp("spill"))


class TestNames:
    NAME = st.text("ab[]*?!'\",;{}%~:=é☃ \t-+&", min_size=1, max_size=6).filter(lambda name: name.strip(" "))
    PLACES = st.lists(
        st.tuples(st.lists(NAME, max_size=2), NAME), min_size=1, max_size=3, unique_by=lambda place: tuple(place[0])
    )

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(above=st.lists(NAME, min_size=1, max_size=3), places=PLACES)
    def test_mean_nothing(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        engine: duckdb.DuckDBPyConnection,
        above: list[str],
        places: list[tuple[list[str], str]],
    ) -> None:
        """Names above the raw folder change nothing; below it, those with = are columns and others just names."""
        folder = tmp_path_factory.mktemp("names")
        tables = []
        for raw in (folder / "plain", folder.joinpath(*above)):
            for number, (folders, name) in enumerate(places):
                write(raw.joinpath(*folders, f"{name}.parquet"), {"Item": [f"{number}", "b"]})
            (raw.with_name(raw.name + "1")).mkdir(exist_ok=True)
            engine.execute("drop view if exists raw")
            tables.append(rows(view(raw, db=engine)).to_pylist())
        assert tables[0] == tables[1]
        files = {"/".join([*folders, f"{name}.parquet"]): folders for folders, name in places}
        assert [row["filename"] for row in tables[0]] == sorted([*files, *files], key=str.encode)
        for row in tables[0]:
            keys = {
                part.partition("=")[0]: part.partition("=")[2] for part in files[row["filename"]] if part.find("=") > 0
            }
            known = {unquote(key).lower(): unquote(value) for key, value in keys.items()}
            columns = {name.lower(): value for name, value in row.items()}
            assert {name: columns[name] for name in known} == known
            assert all(
                columns[name] is None for name in columns.keys() - known - {"item", "filename", "file_row_number"}
            )

    def test_a_sibling_that_a_glob_would_match_is_not_read(self, tmp_path: Path) -> None:
        write(tmp_path / "logs[1]" / "a*.parquet", {"x": ["right"]})
        write(tmp_path / "logs[1]" / "ab.parquet", {"x": ["right too"]})
        write(tmp_path / "logs1" / "a*.parquet", {"x": ["wrong"]})
        assert rows(view(tmp_path / "logs[1]"))["x"].to_pylist() == ["right", "right too"]
        only = Source("raw", ("a[*].parquet",))
        assert rows(view(tmp_path / "logs[1]", only))["x"].to_pylist() == ["right"]

    def test_prepared_data_do_not_depend_on_the_place(self, tmp_path: Path) -> None:
        plain = run(tmp_path / "plain", events(200)) if (tmp_path / "plain").mkdir() is None else None
        (tmp_path / "user=alice[1]").mkdir()
        assert run(tmp_path / "user=alice[1]", events(200)) == plain

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        write(tmp_path / "\udcff.parquet", {"x": [1]})
        with pytest.raises(UserError, match=r"udcff.*not valid UTF-8; rename it"):
            found(tmp_path)


class TestFolders:
    def test_hidden_names_are_left_out(self, tmp_path: Path) -> None:
        names = ["_temporary/0/a", "_x", ".hidden/a", "a/.part", "a/_b/c", "a/b_c", ".out.tmp/data/a", "_day=1/a"]
        for name in names:
            write(tmp_path / f"{name}.parquet", {"x": [1]})
        assert found(tmp_path) == ["_day=1/a.parquet", "a/b_c.parquet"]
        with pytest.raises(
            UserError, match=r"no file matches _temporary/\*.*names that start with '\.' or '_' are left"
        ):
            found(tmp_path, "_temporary/*.parquet")

    def test_globs(self, tmp_path: Path) -> None:
        for name in ("a", "x/a", "x/y/a", "x/y/z/b", "20230501/a"):
            write(tmp_path / f"{name}.parquet", {"x": [1]})
        assert found(tmp_path, "*.parquet") == ["a.parquet"]
        assert found(tmp_path, "**/a.parquet") == ["20230501/a.parquet", "a.parquet", "x/a.parquet", "x/y/a.parquet"]
        assert found(tmp_path, "x/**/*.parquet") == ["x/a.parquet", "x/y/a.parquet", "x/y/z/b.parquet"]
        assert found(tmp_path, "x/**") == ["x/a.parquet", "x/y/a.parquet", "x/y/z/b.parquet"]
        assert found(tmp_path, "**/y/**/b.*") == ["x/y/z/b.parquet"]
        assert found(tmp_path, "20*/*", "./x//a.parquet") == ["20230501/a.parquet", "x/a.parquet"]

    def test_what_prepare_wrote_is_left_out(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run(tmp_path, events(100), out="raw/out")
        (tmp_path / "raw" / "mine").mkdir()
        (tmp_path / "raw" / "mine" / "dataset.json").write_text(json.dumps({"name": "mine"}))
        write(tmp_path / "raw" / "mine" / "a.parquet", {"x": [1]})
        capsys.readouterr()
        assert found(tmp_path / "raw") == ["0.parquet", "mine/a.parquet"]
        assert capsys.readouterr().err == f"{tmp_path}/raw/out: written by recmtl prepare, left out of source 'raw'\n"

    @pytest.mark.parametrize("log", ["_delta_log/0.json", ".hoodie/hoodie.properties", "metadata/v1.metadata.json"])
    def test_tables_of_other_formats(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], log: str) -> None:
        write(tmp_path / "t" / "data" / "a.parquet", {"x": [1]})
        (tmp_path / "t" / log).parent.mkdir()
        (tmp_path / "t" / log).write_text("{}")
        assert found(tmp_path) == ["t/data/a.parquet"]
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{tmp_path}/t: a table of Delta Lake")
        assert "removed rows too" in line

    def test_a_folder_called_as_a_file(self, tmp_path: Path) -> None:
        write(tmp_path / "items.parquet" / "part-0.parquet", {"x": [1]})
        assert found(tmp_path) == ["items.parquet/part-0.parquet"]
        with pytest.raises(UserError, match=r"items\.parquet: is a folder; add '/\*\.parquet'"):
            found(tmp_path, "items.parquet")

    def test_a_folder_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> list[Path]:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(UserError, match=f"{tmp_path}: Permission denied"):
            found(tmp_path)


class TestLinks:
    def test_folders_and_files_are_followed(self, tmp_path: Path) -> None:
        write(tmp_path / "disk" / "b.parquet", {"x": [1]})
        write(tmp_path / "c.parquet", {"x": [2]})
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "day").symlink_to(tmp_path / "disk")
        (tmp_path / "raw" / "c.parquet").symlink_to(tmp_path / "c.parquet")
        assert found(tmp_path / "raw") == ["c.parquet", "day/b.parquet"]
        assert rows(view(tmp_path / "raw"))["x"].to_pylist() == [2, 1]

    def test_a_raw_folder_that_is_a_link(self, tmp_path: Path) -> None:
        write(tmp_path / "disk" / "a" / "b.parquet", {"x": [1]})
        (tmp_path / "raw[1]").symlink_to("disk")
        assert rows(view(tmp_path / "raw[1]"))["filename"].to_pylist() == ["a/b.parquet"]

    def test_loops_end_and_a_file_is_read_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(tmp_path / "z" / "a.parquet", {"x": [1]})
        for link, target in (("z/up", ".."), ("a", "z"), ("z/self", "../z"), ("b", "a")):
            (tmp_path / link).symlink_to(target)
        assert found(tmp_path) == ["z/a.parquet"]
        assert capsys.readouterr().err == ""
        (tmp_path / "b.parquet").symlink_to("z/a.parquet")
        assert found(tmp_path) == ["z/a.parquet"]
        message = f"{tmp_path}/b.parquet: read once, as {tmp_path}/z/a.parquet, where a link leads too\n"
        assert capsys.readouterr().err == message

    def test_a_link_to_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").symlink_to("gone.parquet")
        with pytest.raises(UserError, match=r"a\.parquet: is not a file, or a link to one that is gone"):
            found(tmp_path)


class TestOtherFormats:
    @pytest.mark.parametrize("name", ["a.csv", "a.CSV.gz", "a.tsv", "a.json", "a.ndjson", "it's.csv"])
    def test_are_converted_first(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / "a.parquet", {"x": [1]})
        (tmp_path / name).write_text("x\n1\n")
        with pytest.raises(UserError) as caught:
            found(tmp_path, "*")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: not Parquet; convert it")
        assert "\n" not in message
        if name == "it's.csv":
            duckdb.execute(message.partition('duckdb -c "')[2].removesuffix('"'))
            assert pa.parquet.read_table(f"{tmp_path / name}.parquet").to_pydict() == {"x": [1]}
