"""Tables in float16: what they start from, how they are updated, and what stays float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from toy import write_toy

from recmtl.config import Config, EmbeddingConfig, ShardingConfig, check_continues, parse_config, to_toml
from recmtl.config.models import MMoEConfig
from recmtl.data.read.reader import Reader
from recmtl.distributed.context import process_group
from recmtl.distributed.parallel import initialize_tables, parallelize, table_weights
from recmtl.distributed.plan import GIB, Cluster, make_plan
from recmtl.errors import UserError
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset

# What `recmtl` itself silences (recmtl/runtime/warnings.py).
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fbgemm:UserWarning")

BATCH, STEPS = 48, 4
LR = 0.1
ULP = 2.0**-12
"""Between neighbours in float16 below 0.5, where the weights of these tests stay."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": STEPS * BATCH, "val": 0, "test": 0})
    return folder


@dataclass
class Trained:
    """Tables before and after some steps, and the types of their optimiser's states."""

    first: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    states: set[torch.dtype]


def tables_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: piece.detach().clone() for name, piece, *_ in table_weights(model)}


def train(data: Path, dtype: str, sharding: str = "table_wise", optimizer: str = "rowwise_adagrad") -> Trained:
    """A few steps on one rank."""
    config = Config(
        model=MMoEConfig(experts=2, expert_widths=(8,), tower=(4,)),
        embedding=EmbeddingConfig(dim=8, dtype=dtype, optimizer=optimizer, lr=LR, eps=1e-4),  # type: ignore[arg-type]
        sharding=ShardingConfig(type=sharding),  # type: ignore[arg-type]
    )
    dataset = Dataset.load(data)
    with process_group("cpu") as context:
        torch.manual_seed(0)
        train_module = TrainModule.from_config(config, dataset, dataset.tasks)
        plan = make_plan(train_module, config, Cluster(1, 1, "cpu", 4 * GIB), BATCH)
        model, combined = parallelize(train_module, plan, config, context.device)
        initialize_tables(model, config.training.seed, config.embedding.init_scale, getattr(torch, dtype))
        first = tables_of(model)
        for batch in Reader(data, dataset, "train", dataset.tasks, batch_size=BATCH, streams=4).batches():
            combined.zero_grad()
            model(batch)[0].backward()
            combined.step()
        states = combined.state_dict()["state"]
        tensors = [value for name in states if ".embedding_bags." in name for value in states[name].values()]
        return Trained(first, tables_of(model), {tensor.dtype for tensor in tensors})


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "data_parallel"])
def test_tables_start_from_the_float32_ones_rounded(data, sharding):
    full, half = (train(data, dtype, sharding).first for dtype in ("float32", "float16"))
    for name, table in half.items():
        assert table.dtype == (torch.float32 if sharding == "data_parallel" else torch.float16)
        assert torch.equal(table.half(), full[name].half())
        assert torch.equal(table, table.half().to(table.dtype))


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_replicas_follow_sharded_tables_to_the_last_bit_of_float16(data, optimizer):
    """A value that lies between two neighbours may go to either, by the rounding of its float32 gradient."""
    full = train(data, "float32", optimizer=optimizer)
    half, replicas = (train(data, "float16", kind, optimizer) for kind in ("table_wise", "data_parallel"))
    for name, table in half.last.items():
        replica = replicas.last[name]
        assert torch.equal(replica, replica.half().float())
        apart = (table.float() - replica).abs().max()
        if optimizer == "adagrad":  # FBGEMM rounds within a step, too
            assert apart <= STEPS * ULP
        else:
            assert apart <= ULP
            assert (table == replica).float().mean() > 0.99
        assert (table != half.first[name]).float().mean() > 0.2
        # Each step rounds once: by half of ULP at most.
        assert 0 < (table.float() - full.last[name]).abs().max() < 4 * STEPS * ULP
    for run in (full, half, replicas):
        assert run.states <= {torch.float32}
        assert bool(run.states) == (optimizer != "sgd")


def test_a_run_keeps_its_type(tmp_path):
    path = tmp_path / "config.toml"
    config = Config(model=MMoEConfig(), embedding=EmbeddingConfig(dtype="float16"))
    path.write_text(to_toml(config))
    check_continues(path, config)
    with pytest.raises(UserError, match=r"the run has embedding.dtype float16, not float32; go on with that"):
        check_continues(path, Config(model=MMoEConfig()))


def test_there_is_no_other_type():
    with pytest.raises(UserError, match=r"embedding.dtype: no 'bfloat16'; did you mean 'float16'"):
        parse_config({"model": {"name": "mmoe"}, "embedding": {"dtype": "bfloat16"}}, "a.toml")
