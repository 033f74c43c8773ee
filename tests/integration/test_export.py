"""`recmtl export` and `recmtl embeddings`, and an export where nothing of the training stack is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from base_packages import make_site, run_there
from trained import evaluated, train, write_data

import recmtl
from recmtl import cli
from recmtl.errors import UserError
from recmtl.inference import exported
from recmtl.inference.archive import load_graph
from recmtl.inference.signature import MODEL
from recmtl.training import export


@pytest.fixture(scope="module")
def stem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/, data/, run/ of a model with several copies of every table, and export/."""
    folder = tmp_path_factory.mktemp("stem")
    train(write_data(folder), folder / "run", "stem")
    cli.export([str(folder / "run"), str(folder / "export")])
    return folder


def read_embeddings(model: Path, table: str, out: Path) -> dict[str, list]:
    cli.embeddings([str(model), table, str(out)])
    return pq.read_table(out).to_pydict()


def test_embeddings_of_run_and_export_are_equal(stem, tmp_path):
    found = read_embeddings(stem / "run", "item", tmp_path / "run.parquet")
    assert list(found) == ["id", "value", "copy", "embedding"]
    assert found == read_embeddings(stem / "export", "item", tmp_path / "export.parquet")
    copies = list(dict.fromkeys(found["copy"]))
    assert copies == ["click", "like", "shared"]
    rows = len(found["id"]) // len(copies)
    assert found["id"] == [*range(rows)] * len(copies)
    values = pq.read_table(stem / "data" / "vocab" / "item.parquet")["value"].to_pylist()
    assert found["value"] == [None, None, *values] * len(copies)
    embeddings = np.array(found["embedding"], np.float32).reshape(len(copies), rows, 8)
    for place, copy in enumerate(copies):
        np.testing.assert_array_equal(embeddings[place], np.load(stem / "export" / "tables" / f"item@{copy}.npy"))
    assert not np.allclose(embeddings[0], embeddings[1])


def test_a_hashed_table_has_no_values(stem, tmp_path):
    for model in ("run", "export"):
        found = read_embeddings(stem / model, "bytes", tmp_path / f"{model}.parquet")
        assert found["value"] == [None] * 21
        assert found["id"] == [*range(7)] * 3


def test_rounded_tables_are_decoded(esmm, tmp_path):
    exact = np.array(read_embeddings(esmm / "run", "item", tmp_path / "exact.parquet")["embedding"])
    for dtype, error in (("float16", 1e-3), ("int8", 5e-3)):
        cli.export([str(esmm / "run"), str(tmp_path / dtype), "--dtype", dtype])
        found = read_embeddings(tmp_path / dtype, "item", tmp_path / f"{dtype}.parquet")
        assert found["copy"] == [""] * len(exact)
        difference = np.abs(np.array(found["embedding"]) - exact)
        assert 0 < difference.max() < error * np.abs(exact).max()
        # And the model's probabilities are near those of the run.
        wanted, model = evaluated(esmm / "data", esmm / "run"), recmtl.load(tmp_path / dtype)
        assert model.signature.dtype == dtype
        cli.predict([str(tmp_path / dtype), str(esmm / "raw"), str(tmp_path / f"{dtype}-out")])
        rows = pq.read_table(tmp_path / f"{dtype}-out")
        probabilities = np.stack([rows[name].to_numpy() for name in ("p_click", "p_like")], axis=1)
        assert np.abs(probabilities - np.stack([wanted[n] for n in rows["number"].to_pylist()])).max() < 0.01


def test_mistakes_of_embeddings_are_one_line(stem, tmp_path):
    out = tmp_path / "out.parquet"
    for model in ("run", "export"):
        with pytest.raises(UserError, match=f"{model}: no table 'itm'; did you mean 'item'"):
            cli.embeddings([str(stem / model), "itm", str(out)])
        assert list(tmp_path.iterdir()) == []
    out.write_text("mine")
    for model in ("run", "export"):
        with pytest.raises(UserError, match=r"out\.parquet: exists; remove it or name another file"):
            cli.embeddings([str(stem / model), "item", str(out)])
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_mistakes_of_export_are_one_line(stem, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        cli.export([str(stem / "run"), str(tmp_path / "out")])
    with pytest.raises(UserError, match="data: no checkpoint in it; train the run first"):
        cli.export([str(stem / "data"), str(tmp_path / "new")])
    damaged = Path(shutil.copytree(stem / "run", tmp_path / "run"))
    path = max((damaged / "checkpoints").rglob("*.distcp"), key=lambda path: path.stat().st_size)
    for other in damaged.glob("checkpoints/*/*.distcp"):
        data = bytearray(other.read_bytes())
        data[len(data) // 2] ^= 1
        other.write_bytes(data)
    with pytest.raises(UserError, match="damaged") as error:
        cli.export([str(damaged), str(tmp_path / "new")])
    assert path.name in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize(
    ("amp", "error", "said"),
    [
        (
            "bf16",
            UserError,
            r"^--compile: compiled, the model of .*run scores otherwise by up to 0.0001, .* leave it out$",
        ),
        ("none", RuntimeError, r"^the export differs from the model by up to 0.0001$"),
    ],
)
def test_compiled_code_that_rounds_otherwise_is_not_exported(stem, tmp_path, monkeypatch, amp, error, said):
    train(stem / "data", tmp_path / "run", "mmoe", training__amp=amp)

    def rounding(path: Path) -> Callable[..., list[torch.Tensor]]:
        graph = load_graph(path.parent / MODEL)
        return lambda *inputs: [scores + 1e-4 for scores in graph(*inputs)]

    monkeypatch.setattr(export, "compile_graph", lambda program, path: path.touch())
    monkeypatch.setattr(exported, "load_compiled", rounding)
    with pytest.raises(error, match=said):
        cli.export([str(tmp_path / "run"), str(tmp_path / "out"), "--compile"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_an_export_needs_the_base_packages_alone(esmm, tmp_path):
    site = tmp_path / "site"
    names = make_site(site)
    assert {"torch", "numpy", "pyarrow", "duckdb"} <= names
    absent = ("torchrec", "fbgemm_gpu", "torchx", "tensorboard", "matplotlib", "psutil")
    checked = run_there(site, "-c", f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])")
    assert checked.stdout == "[]\n", checked.stderr

    export = Path(shutil.copytree(esmm / "export", tmp_path / "moved"))
    for path in [*export.rglob("*"), export]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert "predict" in run_there(site, "-m", "recmtl", "--help").stdout
    out = tmp_path / "out"
    ended = run_there(site, "-m", "recmtl", "predict", export, esmm / "raw", out)
    assert (ended.returncode, ended.stdout) == (0, f"{out}: 400 rows\n"), ended.stderr
    found = pq.read_table(out)
    wanted = evaluated(esmm / "data", esmm / "run")
    probabilities = np.stack([found[name].to_numpy() for name in ("p_click", "p_like")], axis=1)
    numbers = found["number"].to_pylist()
    np.testing.assert_allclose(probabilities, np.stack([wanted[number] for number in numbers]), rtol=0, atol=1e-6)
    ended = run_there(site, "-m", "recmtl", "embeddings", export, "item", tmp_path / "item.parquet")
    assert ended.returncode == 0, ended.stderr
    code = (
        "import recmtl, sys; m = recmtl.load(sys.argv[1]); print(m.predict({n: [None] for n in m.features}).num_rows)"
    )
    ended = run_there(site, "-c", code, export)
    assert ended.stdout == "1\n", ended.stderr
    ended = run_there(site, "-m", "recmtl", "prepare", esmm / "kinds.toml", esmm / "raw", tmp_path / "data")
    assert ended.returncode == 0, ended.stderr

    run, data = esmm / "run", esmm / "data"
    for command in (
        ("train", "mmoe", "--data", data, "--run", tmp_path / "run"),
        ("evaluate", run, "--data", data),
        ("plan", "mmoe", "--data", data),
        ("export", run, tmp_path / "again"),
        ("predict", run, esmm / "raw", tmp_path / "again"),
        ("embeddings", run, "item", tmp_path / "again.parquet"),
        ("report", run, "--out", tmp_path / "again"),
    ):
        ended = run_there(site, "-m", "recmtl", *command)
        line = "error: torchrec is not installed; runs and reports need it: pip install 'recmtl[train]'\n"
        assert (ended.returncode, ended.stderr) == (2, line), command
    assert not (tmp_path / "again").exists()
    for path in [export, *export.rglob("*")]:
        path.chmod(0o755)
