"""Raw files, prepared data, exports and predictions in an object store are those that a disk holds."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prepared import RECIPE, events
from stores import empty_store, failing, names, put

import recmtl
from recmtl.data.prepare.extension import Extend
from recmtl.data.prepare.prepare import prepare
from recmtl.data.read.reader import Reader
from recmtl.data.recipe import load_recipe
from recmtl.errors import StorageError, UserError
from recmtl.inference.embeddings import export_embeddings
from recmtl.inference.exported import ExportedModel
from recmtl.inference.predict import predict
from recmtl.runtime import ranges
from recmtl.runtime.object_stores import RemotePath
from recmtl.runtime.storage import list_files, local_path, parse_path, read_text, remove, write_whole
from recmtl.schema import Dataset
from recmtl.training.export import export_run

BY_TIME = RECIPE.replace("[split]", '[split]\nby = "time"\ncolumn = "at"')
ODD_NAMES = ("a.parquet", "day=1/b[1].parquet", "day=2/c d*.parquet", "_hidden.parquet", "day=2/.x")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECMTL_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_raw(folder: Path) -> Path:
    """Raw files with names of all sorts."""
    for number, name in enumerate(ODD_NAMES):
        path = folder / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(events(150, number), path)
    return folder / "raw"


def recipe(folder: Path, text: str = RECIPE) -> Path:
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): local_path(path).read_bytes() for path in list_files(folder)}


@pytest.mark.parametrize("text", [RECIPE, BY_TIME])
def test_data_are_those_that_a_disk_gets(tmp_path: Path, text: str):
    raw = write_raw(tmp_path)
    store = put(raw, empty_store())
    loaded = load_recipe(str(recipe(tmp_path, text)))
    wanted = prepare(loaded, raw, tmp_path / "data")
    out = store.with_name("data")
    assert prepare(loaded, store, out) == wanted == Dataset.load(out)
    assert contents(out) == contents(tmp_path / "data")


def test_a_recipe_may_lie_there_too(tmp_path: Path):
    folder = empty_store()
    put(write_raw(tmp_path), folder / "raw")
    write_whole(folder / "mine.toml", RECIPE)
    loaded = load_recipe(str(folder / "mine.toml"))
    assert prepare(loaded, folder / "raw", tmp_path / "data", limit=100).limit == 100


def test_data_there_can_be_extended(tmp_path: Path):
    raw = write_raw(tmp_path)
    folder = empty_store()
    put(raw, folder / "raw")
    loaded = load_recipe(str(recipe(tmp_path, BY_TIME)))
    for place in (tmp_path, folder):
        prepare(loaded, place / "raw", place / "first", until="30")
        prepare(loaded, place / "raw", place / "second", extend=Extend(place / "first"))
    assert contents(folder / "second") == contents(tmp_path / "second")


def test_data_without_dataset_json_are_none(tmp_path: Path):
    data = empty_store()
    prepare(load_recipe(str(recipe(tmp_path))), write_raw(tmp_path), data)
    remove(data / "dataset.json")
    with pytest.raises(UserError, match=r"no dataset.json in it; name a folder that `recmtl prepare` wrote"):
        Dataset.load(data)


def reader(data: Path, threads: int = 1) -> Reader:
    dataset = Dataset.load(data)
    return Reader(data, dataset, "train", dataset.tasks, batch_size=64, streams=8, shuffle=True, threads=threads)


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_are_those_of_a_disk(tmp_path: Path, threads: int):
    prepare(load_recipe(str(recipe(tmp_path))), write_raw(tmp_path), tmp_path / "data")
    data = put(tmp_path / "data", empty_store())
    for epoch in range(2):
        for start in (0, 3):
            wanted, found = (list(reader(place, threads).batches(epoch, start)) for place in (tmp_path / "data", data))
            assert len(wanted) == len(found)
            for one, other in zip(wanted, found, strict=True):
                assert one.sparse.values().equal(other.sparse.values())
                assert one.labels.equal(other.labels)
                assert one.numeric.equal(other.numeric)


def test_a_file_that_cannot_be_read_on_is_named(tmp_path: Path):
    prepare(load_recipe(str(recipe(tmp_path))), write_raw(tmp_path), tmp_path / "data")
    data = put(tmp_path / "data", empty_store())
    opened = reader(data)
    ranges._tails.clear()
    with (
        failing(lambda name, where: ConnectionError("cut") if where.endswith("part-00000.parquet") else None),
        pytest.raises(StorageError, match=str(data / "train" / "part-00000.parquet")),
    ):
        list(opened.batches())


def test_a_raw_file_that_is_no_parquet_is_named(tmp_path: Path):
    raw = put(write_raw(tmp_path), empty_store())
    write_whole(raw / "z.parquet", "no parquet")
    with pytest.raises(UserError, match=f"^{raw}/z.parquet: not readable as Parquet"):
        prepare(load_recipe(str(recipe(tmp_path))), raw, tmp_path / "data")


def test_raw_files_that_cannot_be_read_on_are_named(tmp_path: Path):
    raw = put(write_raw(tmp_path), empty_store())
    left = [6]

    def fails(name: str, where: str) -> Exception | None:
        left[0] -= name == "cat_file"
        return ConnectionError("cut") if left[0] < 0 else None

    with failing(fails), pytest.raises(UserError) as caught:
        prepare(load_recipe(str(recipe(tmp_path))), raw, tmp_path / "data")
    assert str(raw) in str(caught.value)


def test_an_export_there_predicts_as_on_a_disk(esmm: Path, tmp_path: Path):
    folder = empty_store()
    export_run(esmm / "run", folder / "export")
    raw = put(esmm / "raw", folder / "raw")
    model = recmtl.load(str(folder / "export"))
    assert predict(model, raw, folder / "out") == predict(
        ExportedModel(esmm / "export"), esmm / "raw", tmp_path / "out"
    )
    found, wanted = (pq.read_table(local_path(place / "out" / "part-00000.parquet")) for place in (folder, tmp_path))
    assert found.schema == wanted.schema
    found, wanted = (table.sort_by("number").select(["number", "p_click", "p_like"]) for table in (found, wanted))
    assert found.equals(wanted)
    assert names(folder / "out") == ["_SUCCESS", "part-00000.parquet"]
    rows = export_embeddings(folder / "export", "item", folder / "item.parquet")
    assert pq.read_table(local_path(folder / "item.parquet")).num_rows == rows


def test_an_export_without_its_manifest_is_none(esmm: Path):
    export = put(esmm / "export", empty_store())
    remove(export / "manifest.json")
    with pytest.raises(UserError, match="is no export, or not a whole one"):
        ExportedModel(export)


def test_a_damaged_export_there_is_named(esmm: Path):
    export = put(esmm / "export", empty_store())
    write_whole(export / "config.toml", read_text(export / "config.toml") + "\n")
    with pytest.raises(UserError, match=f"^{export}/config.toml: damaged"):
        ExportedModel(export)


def test_a_word_of_the_command_line_may_be_a_url():
    from recmtl.typed import from_words

    assert from_words(Path, ["s3://bucket/x"]) == parse_path("s3://bucket/x")
    assert from_words(tuple[Path, ...], ["s3://bucket/x", "y"]) == (parse_path("s3://bucket/x"), Path("y"))
    assert from_words(Path | None, ["None"]) is None
    assert isinstance(from_words(Path, ["s3://bucket/x"]), RemotePath)
