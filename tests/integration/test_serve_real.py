"""What `recmtl serve` answers of real rows is what `recmtl predict` writes: both protocols, and a client of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import Server, as_arrays, as_json, infer_body, serving

import recmtl

pytestmark = pytest.mark.slow

ROWS, AT_ONCE = 10_000, 1000
TOLERANCE = 1e-6
CLIENT = Path(__file__).parents[1] / "triton_client.py"


@dataclass
class Case:
    """A server, real rows, and their predictions."""

    name: str
    server: Server
    rows: pa.Table
    tasks: tuple[str, ...]
    predicted: np.ndarray

    def parts(self) -> Iterator[pa.Table]:
        """The rows, request by request."""
        return (self.rows.slice(start, AT_ONCE) for start in range(0, self.rows.num_rows, AT_ONCE))

    def check(self, found: np.ndarray) -> None:
        """Compare."""
        assert found.shape == self.predicted.shape
        assert np.abs(found - self.predicted).max() < TOLERANCE


@pytest.fixture(scope="module", params=["census", "kuairand"])
def case(
    request: pytest.FixtureRequest, real_data: Path, run_recmtl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("real")
    name, raw = request.param, real_data / request.param
    steps = ("--training.max_epochs", 1, "--training.max_steps", 30, "--training.device", "cpu")
    columns = ()
    for words in (
        ("prepare", name, raw, folder / "data"),
        ("train", "mmoe", "--data", folder / "data", "--run", folder / "run", *steps),
        ("export", folder / "run", folder / "export"),
        ("predict", folder / "export", raw, folder / "out", "--keep"),
    ):
        if words[0] == "predict":
            columns = tuple(recmtl.load(folder / "export").features)
            words = (*words, ",".join(columns))
        ended = run_recmtl(*words, timeout=1800)
        assert ended.returncode == 0, ended.stderr
    everything = pq.read_table(folder / "out")
    rows = everything.take(np.linspace(0, everything.num_rows - 1, ROWS).astype(np.int64))
    tasks = recmtl.load(folder / "export").tasks
    predicted = np.stack([rows[f"p_{task}"].to_numpy() for task in tasks], axis=1)
    with serving(folder / "export", folder / "log", "--name", name) as server:
        yield Case(name, server, rows.select(columns), tasks, predicted)


def test_the_plain_protocol(case: Case) -> None:
    answers = [case.server.predict(as_json(part)) for part in case.parts()]
    assert {answer.status for answer in answers} == {200}, answers[0].body
    rows = [[row[task] for task in case.tasks] for answer in answers for row in answer.json["predictions"]]
    case.check(np.array(rows, np.float32))


def test_the_open_inference_protocol(case: Case) -> None:
    found = []
    for part in case.parts():
        body, length = infer_body(part, parameters={"binary_data_output": True})
        path = f"/v2/models/{case.name}/infer"
        answer = case.server.call("POST", path, body, Inference_Header_Content_Length=str(length))
        assert answer.status == 200, answer.body
        data = answer.body[int(answer.headers["inference-header-content-length"]) :]
        found.append(np.frombuffer(data, np.float32).reshape(len(case.tasks), -1).T)
    case.check(np.concatenate(found))


@pytest.fixture(scope="session")
def triton_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with tritonclient, which pip brings from its index."""
    folder = tmp_path_factory.mktemp("triton")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", "tritonclient[http]>=2.40"], check=True)
    return folder / "bin" / "python"


def test_an_existing_client(case: Case, triton_python: Path, tmp_path: Path) -> None:
    found: dict[str, list[np.ndarray]] = {"binary": [], "json": []}
    outputs = [f"p_{task}" for task in case.tasks]
    for part in case.parts():
        np.savez(tmp_path / "inputs.npz", **as_arrays(part))
        words = [str(case.server.port), case.name, tmp_path / "inputs.npz", tmp_path / "outputs.npz", *outputs]
        subprocess.run([triton_python, CLIENT, *words], check=True)
        given = np.load(tmp_path / "outputs.npz")
        for kind, parts in found.items():
            parts.append(np.stack([given[f"{kind}/{output}"] for output in outputs], axis=1))
    for parts in found.values():
        case.check(np.concatenate(parts))
