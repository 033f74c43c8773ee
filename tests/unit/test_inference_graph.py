"""What an export computes equals the model, for every model and every type of tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recmtl.config import MODELS, InteractionConfig, SequenceConfig
from recmtl.features import is_list
from recmtl.inference.exported import to_tensors
from recmtl.inference.inputs import Inputs
from recmtl.inference.signature import StoredTable
from recmtl.inference.tables import DTYPES, iter_rows, open_table, write_table
from recmtl.models.embeddings import table_of
from recmtl.models.ranking_model import RankingModel
from recmtl.schema import Dataset, Feature, Table, Task
from recmtl.training.export import random_inputs, trace
from recmtl.training.graph import ScoringGraph

ROWS = (0, 1, 2, 7, 64)
DATASET = Dataset(
    "graph",
    {},
    (Table("user", 50), Table("item", 70), Table("tag", 11, dim=12)),
    # Lists and numbers stand between the others, and two features and a list share a table.
    (
        Feature("price", kind="numeric"),
        Feature("item", table="item"),
        Feature("tags", kind="list", table="tag", pooling="mean"),
        Feature("user", table="user"),
        Feature("before", kind="list", table="item"),
        Feature("previous", table="item"),
        Feature("age", kind="numeric"),
    ),
    (Task("click"), Task("like", parent="click"), Task("skip", parent="click", relation="given_not")),
)
HISTORIES = replace(
    DATASET,
    features=(
        *DATASET.features,
        Feature("last_tags", kind="sequence", table="tag", history="recent"),
        Feature("last_items", kind="sequence", table="item", history="recent", target="item"),
        Feature("users", kind="sequence", table="user", history="users", target="user"),
    ),
)
NUMBERS_ALONE = Dataset("numbers", {}, (), (Feature("price", kind="numeric"),), DATASET.tasks)


def build(
    name: str,
    dataset: Dataset = DATASET,
    amp: bool = False,
    interaction: InteractionConfig | None = None,
    sequence: SequenceConfig | None = None,
) -> RankingModel:
    """A model whose tables have memory and large weights, and whose batch statistics are no round numbers."""
    torch.manual_seed(0)
    tasks = dataset.tasks[:1] if name == "single_task" else dataset.tasks
    config = MODELS[name].config()
    model = RankingModel(
        dataset,
        tasks,
        config,
        dim=8,
        device="cpu",
        amp=amp,
        sequence=sequence,
        interaction=interaction,
        dropout=0.5 if interaction else 0.0,
    )
    for parameter in model.embeddings.parameters():
        nn.init.normal_(parameter)
    for key, buffer in model.dense.named_buffers():
        if "running" in key or "mean" in key or "var" in key:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def store(model: RankingModel, dataset: Dataset, folder: Path, dtype: str) -> dict[str, list[Tensor]]:
    """The model's tables as an export has them; the model itself then has what they hold."""
    (folder / "tables").mkdir()
    opened = {}
    for name, parameter in model.named_parameters():
        if (key := table_of(name)) is None:
            continue
        weight = parameter.data
        files = write_table(weight.numpy(), folder / "tables", key, dtype)
        opened[key] = open_table(folder, StoredTable(key, key, "", *weight.shape, files), dtype)
        weight.copy_(torch.from_numpy(np.concatenate(list(iter_rows(opened[key])))))
    return opened


def sparse_of(inputs: Inputs, dataset: Dataset) -> KeyedJaggedTensor:
    """The rows as the trained model takes them, feature by feature."""
    single, lists = iter(inputs.ids), iter(inputs.lists)
    keys, values, lengths = [], [], []
    for feature in dataset.sparse_features:
        ids, counts = next(lists) if is_list(feature) else (next(single), np.ones(inputs.rows, np.int32))
        keys.append(feature.name)
        values.append(ids)
        lengths.append(counts)
    return KeyedJaggedTensor(
        keys, torch.from_numpy(np.concatenate(values)), lengths=torch.from_numpy(np.concatenate(lengths))
    )


@torch.no_grad()
def check(model: RankingModel, dataset: Dataset, folder: Path, dtype: str, tolerance: float = 1e-6) -> None:
    """Trace the model once and compare it on any number of rows."""
    tables = store(model, dataset, folder, dtype)
    program = trace(ScoringGraph(model, dataset).eval(), dataset, tables).module()
    places = [place for place, task in enumerate(model.dense.inputs.tasks) if task.parent]
    for rows in ROWS:
        inputs = random_inputs(dataset, rows)
        assert rows < 7 or all(0 in lengths for _, lengths in inputs.lists)  # empty lists are among them
        found = program(*to_tensors(inputs), tables)
        if not rows:  # TorchRec itself takes none
            assert found[0].shape == (0, len(model.dense.inputs.tasks))
            continue
        numeric = torch.from_numpy(inputs.numeric)
        pooled = model.embed(sparse_of(inputs, dataset)) if dataset.tables else {"shared": numeric[:, :0]}
        wanted = [model.score(pooled, numeric).sigmoid()]
        if model.dense.composes:
            wanted.append(model.conditional_logits(pooled, numeric).sigmoid()[:, places])
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
        if rows > 7:
            assert wanted[0].std(0).min() > 1e-4  # the outputs depend on the rows


@pytest.mark.parametrize("name", MODELS)
def test_traced_equals_the_model(tmp_path, name):
    check(build(name), DATASET, tmp_path, "float32")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_traced_equals_the_model_on_the_rounded_tables(tmp_path, name, dtype):
    check(build(name), DATASET, tmp_path, dtype)


def test_bfloat16_autocast_is_in_the_graph(tmp_path):
    model = build("mmoe", amp=True)
    check(model, DATASET, tmp_path, "float32")
    inputs = random_inputs(DATASET, 64)
    pooled, numeric = model.embed(sparse_of(inputs, DATASET)), torch.from_numpy(inputs.numeric)
    rounded = model.score(pooled, numeric)
    model.amp = False
    assert not torch.equal(rounded, model.score(pooled, numeric))


@pytest.mark.parametrize(
    ("name", "kind", "normalization"), [("esmm", "dcn", "batch"), ("esmm", "fm", "layer"), ("stem", "dot", "batch")]
)
def test_layers_before_the_model_are_in_the_graph(tmp_path, name, kind, normalization):
    """Also of several table sets, of probabilities that are composed, and where training drops embeddings."""
    interaction = InteractionConfig(kind=kind, normalization=normalization)
    check(build(name, interaction=interaction), DATASET, tmp_path, "float32", tolerance=1e-5)


@pytest.mark.parametrize(
    ("name", "encoder", "dtype", "amp"),
    [
        ("mmoe", "mean", "float32", False),
        ("me_mmoe", "target_attention", "int8", False),
        ("mmoe", "transformer", "float16", False),
        ("mmoe", "hstu", "float32", True),
    ],
)
def test_histories_of_any_length(tmp_path, name, encoder, dtype, amp):
    sequence = SequenceConfig(encoder=encoder, layers=2 if encoder == "transformer" else 1, dim=8, hidden=(8,))
    model = build(name, HISTORIES, amp, sequence=sequence)
    check(model, HISTORIES, tmp_path, dtype, 1e-6 if not amp else 2e-3)


def test_numbers_alone(tmp_path):
    check(build("shared_bottom", NUMBERS_ALONE), NUMBERS_ALONE, tmp_path, "float32")


def test_parts_of_a_batch_reach_the_graph_without_gaps() -> None:
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    part = Inputs(ids, np.zeros((6, 1), np.float32), []).slice(2, 5)
    found, numeric, _ = to_tensors(part)
    assert found.is_contiguous()
    assert numeric.is_contiguous()
    assert found.tolist() == [[2, 3, 4], [8, 9, 10]]
