"""A run measured on data whose encoding grew from the one that it was trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grown import REUSED, write_grown, write_unseen
from runs import evaluation, read, train_here, write_data

from recmtl import cli
from recmtl.data.read.parquet import ParquetSplit
from recmtl.encoding.generations import later_ids
from recmtl.errors import UserError
from recmtl.schema import ENCODER, Dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, with its data beside it and those of the next two generations."""
    folder = tmp_path_factory.mktemp("later")
    write_data(folder / "data")
    write_grown(folder / "later", folder / "data")
    write_grown(folder / "latest", folder / "later", table_rows=(61, 230), reused={"user": [9]}, seed=2)
    train_here(folder / "data", folder / "run", training__max_steps=8, metrics__tensorboard=False)
    return folder / "run"


def test_later_ids_are_read_as_unseen(run: Path, tmp_path: Path) -> None:
    folder = run.parent
    write_unseen(tmp_path / "unseen", folder / "later", folder / "data")
    found = {}
    for data in (folder / "later", tmp_path / "unseen"):
        cli.evaluate([str(run), "--data", str(data), "--split", "all"])
        found[data] = [read(run, evaluation(data, split))[split] for split in ("train", "val", "test")]
    later, unseen = found.values()
    assert later == unseen
    cli.evaluate([str(run), "--data", str(folder / "data")])
    assert read(run, evaluation(folder / "data", "test"))["test"] != later[2]


def test_what_a_model_knows_depends_on_its_generation(run: Path) -> None:
    folder = run.parent
    first, second, third = (Dataset.load(folder / name) for name in ("data", "later", "latest"))
    of_first = later_ids(folder / "latest", third, first)
    assert np.flatnonzero(of_first["user"]).tolist() == sorted({*REUSED["user"], 9, *range(50, 61)})
    assert np.flatnonzero(of_first["item"]).tolist() == sorted({*REUSED["item"], *range(200, 230)})
    of_second = later_ids(folder / "latest", third, second)
    assert {name: np.flatnonzero(ids).tolist() for name, ids in of_second.items()} == {"user": [9, 60]}
    # Where nothing is later there is nothing to look up in.
    assert later_ids(folder / "latest", third, third) == {}
    assert later_ids(folder / "data", first, first) == {}


def test_the_range_of_ids_stays_that_of_the_data(run: Path) -> None:
    folder = run.parent
    dataset = Dataset.load(folder / "later")
    later = later_ids(folder / "later", dataset, Dataset.load(folder / "data"))
    split = ParquetSplit(folder / "later", dataset, "test", dataset.tasks, evaluation=True, later=later)
    plain = ParquetSplit(folder / "later", dataset, "test", dataset.tasks, evaluation=True)
    assert plain.read(0).ids.max() >= 200 > split.read(0).ids.max()
    assert split.read(0).ids.dtype == plain.read(0).ids.dtype


def test_other_encodings_are_refused(run: Path, tmp_path: Path) -> None:
    grown = write_grown(tmp_path / "stranger", run.parent / "data", table_rows=(70, 230))
    replace(grown, lineage=("another",)).save(tmp_path / "stranger")
    with pytest.raises(
        UserError, match=r"encoded otherwise than what .*: the encoding of table 'user': rows 50, now 70"
    ):
        cli.evaluate([str(run), "--data", str(tmp_path / "stranger")])


def test_generations_of_other_tables_are_damage(run: Path, tmp_path: Path) -> None:
    write_grown(tmp_path / "damaged", run.parent / "data")
    np.save(tmp_path / "damaged" / ENCODER / "user.assigned.npy", np.zeros(3, np.int32))
    with pytest.raises(UserError, match="the generations of table 'user' are not those of its 60 ids"):
        cli.evaluate([str(run), "--data", str(tmp_path / "damaged")])


def test_what_was_there_must_stay(run: Path, tmp_path: Path) -> None:
    grown = write_grown(tmp_path / "changed", run.parent / "data")
    features = tuple(
        replace(feature, transform="log1p") if feature.name == "price" else feature for feature in grown.features
    )
    for changed, message in (
        (features, "the encoding of feature 'price': transform none, now log1p"),
        (grown.features[:-1], "feature 'price' is gone"),
    ):
        replace(grown, features=changed).save(tmp_path / "changed")
        with pytest.raises(UserError, match=message):
            cli.evaluate([str(run), "--data", str(tmp_path / "changed")])


def test_all_rows_of_a_folder_are_measured_as_one(run: Path, tmp_path: Path) -> None:
    """As if all of them were of one split; the rows of the three stand one after the other."""
    folder = run.parent
    dataset = Dataset.load(folder / "data")
    shutil.copytree(folder / "data", tmp_path / "one")
    for place, split in enumerate(("train", "val", "test")):
        for path in dataset.files(folder / "data", split):
            (tmp_path / "one" / split / path.name).unlink()
            shutil.copy(path, tmp_path / "one" / "test" / f"part-{place}{path.name.removeprefix('part-')}")
    rows = {"train": 0, "val": 0, "test": dataset.count("whole")}
    replace(dataset, rows=rows).save(tmp_path / "one")
    cli.evaluate([str(run), "--data", str(tmp_path / "one")])
    cli.evaluate([str(run), "--data", str(folder / "data"), "--split", "whole,val"])
    whole = read(run, evaluation(folder / "data", "whole"))
    assert whole["whole"] == read(run, evaluation(tmp_path / "one", "test"))["test"]
    assert whole["whole"]["click"]["rows"] == sum(dataset.rows.values())
    assert read(run, evaluation(folder / "data", "val"))["split"] == "val"
