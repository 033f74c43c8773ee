"""A kind of feature that is registered from outside goes through preparing, training, measuring and the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prepared import read_all, run

from recmtl import cli
from recmtl.encoding.encoder import Encoder
from recmtl.features import KINDS

ROWS, WIDTH = 600, 3
RECIPE = """
sql = "select * replace (picture::FLOAT[3] as picture) from raw"
[[feature]]
name = "item"
[[feature]]
name = "picture"
kind = "vector"
[[task]]
name = "click"
label = "clicked"
"""


@pytest.fixture(autouse=True)
def vector_kind() -> Iterator[None]:
    import vector_kind

    KINDS["vector"] = vector_kind.Vector
    yield
    del KINDS["vector"]


def pictures() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def raw_rows() -> pa.Table:
    values = pictures()
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)
    clicked = values.sum(axis=1) > 0
    return pa.table({"item": np.arange(ROWS) % 7, "picture": column, "clicked": clicked})


def test_prepare_train_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = run(tmp_path, raw_rows(), RECIPE)
    assert dataset.dense_features[0].width == WIDTH
    prepared = {tuple(row) for row in read_all(tmp_path)["picture"].to_pylist()}
    assert prepared == {tuple(row) for row in pictures().tolist()}

    arguments = ["mmoe", "--data", str(tmp_path / "out"), "--run", str(tmp_path / "run"), "--training.device", "cpu"]
    cli.train([*arguments, "--training.batch_size", "64", "--dense.lr", "0.01", "--training.max_epochs", "4"])
    # The label is a function of the vector and of nothing else.
    auc = float(capsys.readouterr().out.splitlines()[-1].split()[1])
    assert auc > 0.8
    cli.plan(["mmoe", "--data", str(tmp_path / "out"), "--device", "cpu", "--hbm-gib", "8"])


def test_the_encoder_takes_single_rows_and_missing_ones(tmp_path: Path) -> None:
    run(tmp_path, raw_rows(), RECIPE)
    encoder = Encoder.load(tmp_path / "out" / "encoder")
    rows = pa.array([[1.0, 2.0, float("nan")], None], pa.list_(pa.float32(), WIDTH))
    encoded = encoder.encode({"item": pa.array([3, None]), "picture": rows})
    assert encoded["picture"].to_pylist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    assert encoded["item"].to_pylist()[1] == 0


def test_a_column_that_is_no_vector_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"\[\[feature\]\] 'picture': column 'item' is BIGINT; a vector needs FLOAT"):
        run(tmp_path, raw_rows(), RECIPE.replace('kind = "vector"', 'kind = "vector"\ncolumn = "item"'))
