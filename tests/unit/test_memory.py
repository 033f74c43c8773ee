"""The memory of a run on paper: each part against what is counted by hand."""

from __future__ import annotations

import gc
from dataclasses import replace

import psutil
import pytest
import torch

from recmtl.config import Config, EmbeddingConfig, InteractionConfig, ShardingConfig, TrainingConfig
from recmtl.config.models import HoMEConfig, MMoEConfig, SharedBottomConfig
from recmtl.distributed.allocator import LARGEST_BLOCK
from recmtl.distributed.live_bytes import LiveBytes
from recmtl.distributed.memory import CPU_GROWTH, predict, reader_bytes, staging_bytes, trace_activations
from recmtl.distributed.plan import GIB, Cluster, make_plan
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset, Feature, Table, Task
from recmtl.training.results import peak_resident

BATCH, DIM = 128, 8
TABLES = (Table("user", 1000), Table("item", 5000))
FEATURES = (
    Feature("user", table="user"),
    Feature("item", table="item"),
    Feature("seen", kind="list", table="item", mean_length=10.0),
    Feature("age", kind="numeric"),
)
DATASET = Dataset("d", {"train": 1000}, TABLES, FEATURES, (Task("click"), Task("like")))


def train_module_of(config: Config) -> TrainModule:
    return TrainModule.from_config(config, DATASET, DATASET.tasks)


def test_live_bytes_counts_what_is_alive_at_once():
    with LiveBytes() as live:
        x = torch.zeros(100, device="meta")
        y = x + 1
        del y
        z = x.view(10, 10)  # no memory of its own
        (z * 2).sum()
    # x and one other at a time, and a scalar
    assert live.peak == 2 * 400 + 4
    del x, z
    gc.collect()
    assert live.now == 0


@pytest.mark.parametrize("layers", [1, 6])
def test_activations_of_a_stack_of_layers(layers):
    """A layer's outputs are kept for the way back: they grow with batch and depth."""
    width = 512
    config = Config(model=SharedBottomConfig(bottom=(width,) * layers, tower=(4,)), embedding=EmbeddingConfig(dim=DIM))
    batch = 8192
    found = trace_activations(train_module_of(config), batch).peak
    kept = layers * batch * width * 4
    assert kept < found < kept + 3 * batch * width * 4
    assert trace_activations(train_module_of(config), 2 * batch).peak == pytest.approx(2 * found, rel=0.02)


def test_mixed_precision_needs_less():
    found = {}
    for amp in ("none", "bf16"):
        config = Config(model=SharedBottomConfig(bottom=(512,) * 4, tower=(4,)), training=TrainingConfig(amp=amp))
        found[amp] = trace_activations(train_module_of(config), 8192).peak
    assert 0.45 < found["bf16"] / found["none"] < 0.6


@pytest.mark.parametrize("model", [HoMEConfig(expert_widths=(512, 512)), SharedBottomConfig(bottom=(512,) * 4)])
def test_batch_normalisation_is_float32_under_mixed_precision_too(model):
    found = {}
    for amp in ("none", "bf16"):
        config = Config(model=model, interaction=InteractionConfig(normalization="batch"))
        config.training.amp = amp
        found[amp] = trace_activations(train_module_of(config), 8192).peak
    assert 0.45 < found["bf16"] / found["none"] < 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_parts_of_a_rank(world_size):
    config = Config(model=MMoEConfig(experts=2, expert_widths=(16,), tower=(4,)), embedding=EmbeddingConfig(dim=DIM))
    config.sharding = ShardingConfig(tables={"user": "data_parallel", "item": "table_wise"})
    train_module = train_module_of(config)
    plan = make_plan(train_module, config, Cluster(world_size, world_size, "cuda", GIB), BATCH)
    memory = predict(train_module, plan, config, DATASET, BATCH, process=7)
    assert len(memory) == world_size
    parameters = sum(p.numel() for p in train_module.dense_parameters())
    for rank in memory:
        # Weights, Adam's moments, and buckets for the gradients where they are exchanged.
        assert rank.dense == (3 if world_size == 1 else 4) * 4 * parameters
        assert (rank.holes, rank.reader, rank.process) == (0, 0, 7)
        assert rank.total == sum([rank.weights, rank.states, rank.lookups, rank.dense, rank.activations, 7])
    user, item = 1000 * DIM * 4, 5000 * DIM * 4
    assert sum(rank.weights for rank in memory) == world_size * user + item
    # A replicated table has a dense gradient; row-wise Adagrad has four bytes a row.
    assert sum(rank.states for rank in memory) == world_size * (user + 4 * 1000) + 4 * 5000


def test_the_readers_part_is_bounded_and_follows_the_data():
    config = Config(model=MMoEConfig())
    row = 4 * (4 + 10 + 2)  # columns, ids of the list, labels
    footers = int(1000 / 16384 * 6 * 1000)
    assert reader_bytes(DATASET, config, BATCH, 1) == 4 * 1000 * row + 4 * BATCH * row + footers
    large = Dataset("d", {"train": 10**9}, TABLES, FEATURES, DATASET.tasks)
    rows = 64 * (16384 + 2 * 1024) + 4 * BATCH
    assert reader_bytes(large, config, BATCH, 1) == 256 * 2**20 + rows * row + 64 * 16 * 6 * 1000


def test_large_blocks_lie_outside_the_heap():
    with LiveBytes() as live:
        x = torch.zeros(1000, device="meta")
        large = torch.zeros(2 * LARGEST_BLOCK, dtype=torch.int8, device="meta")
        del x
        y = torch.zeros(10, device="meta")
    assert live.peak == 4000 + len(large)
    assert (live.heap_peak, live.now) == (4000, len(large) + 4 * len(y))


def test_on_a_cpu_the_heaps_holes_and_a_processs_growth_count():
    config = Config(model=MMoEConfig(), embedding=EmbeddingConfig(dim=DIM))
    train_module = train_module_of(config)
    plan = make_plan(train_module, config, Cluster(1, 1, "cpu", GIB), BATCH)
    [memory] = predict(train_module, plan, config, DATASET, BATCH, process=7)
    live = trace_activations(train_module, BATCH)
    assert (memory.activations, memory.holes) == (live.peak, live.heap_peak)
    assert memory.process == 7
    [here] = predict(train_module, plan, config, DATASET, BATCH)
    assert here.process > 10 * 2**20 + CPU_GROWTH  # what this process holds, which has imported PyTorch


def test_a_micro_batch_needs_its_share_of_activations():
    """Beside the gradients of parameters and pooled embeddings, which are there whole."""
    width, batch = 512, 8192
    found = {}
    for size in (0, batch // 8):
        model = SharedBottomConfig(bottom=(width,) * 4, tower=(4,))
        config = Config(model=model, training=TrainingConfig(micro_batch_size=size))
        train_module = train_module_of(config)
        gradients = 4 * sum(p.numel() for p in train_module.dense_parameters())
        found[size] = trace_activations(train_module, batch).peak
    pooled = 4 * batch * 3 * 32  # of the features with tables
    share = found[0] / 8
    assert share + pooled < found[batch // 8] < share + pooled + 2 * gradients


def test_what_a_checkpoint_is_written_from_counts_on_cpus():
    """The copy of all that a rank holds; on GPUs the host has it."""
    config = Config(model=MMoEConfig(experts=2, expert_widths=(16,), tower=(4,)), embedding=EmbeddingConfig(dim=DIM))
    config.sharding = ShardingConfig(tables={"user": "data_parallel", "item": "table_wise"})
    train_module = train_module_of(config)
    parameters = sum(p.numel() for p in train_module.dense_parameters())
    user, item = 1000 * (DIM + 1) * 4, 5000 * (DIM + 1) * 4  # with row-wise Adagrad's four bytes a row
    for device, background, counts in (("cpu", True, True), ("cpu", False, False), ("cuda", True, False)):
        config.checkpoint.background = background
        plan = make_plan(train_module, config, Cluster(2, 2, device, GIB), BATCH)
        [holder] = [shard.rank for shard in plan.shards if shard.table == "item"]
        copied = [user + 3 * 4 * parameters + item * (rank == holder) for rank in range(2)]
        assert staging_bytes(train_module, plan, config) == copied
        memory = predict(train_module, plan, config, DATASET, BATCH, process=0)
        assert [rank.staging for rank in memory] == (copied if counts else [0, 0])


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_half_precision_halves_sharded_tables_alone(optimizer):
    """Optimiser states, replicas and their gradients, and pooled embeddings stay float32."""
    parts = {}
    for dtype in ("float32", "float16"):
        config = Config(model=MMoEConfig(), embedding=EmbeddingConfig(dim=DIM, dtype=dtype, optimizer=optimizer))
        config.sharding = ShardingConfig(tables={"user": "data_parallel", "item": "table_wise"})
        train_module = train_module_of(config)
        plan = make_plan(train_module, config, Cluster(1, 1, "cpu", GIB), BATCH)
        [parts[dtype]] = predict(train_module, plan, config, DATASET, BATCH, process=0)
    user, item = 1000 * DIM, 5000 * DIM
    assert parts["float32"].weights == 4 * user + 4 * item
    staging = parts["float32"].staging - 2 * item
    assert parts["float16"] == replace(parts["float32"], weights=4 * user + 2 * item, staging=staging)


def test_the_peak_of_a_process_is_no_less_than_what_it_holds():
    block = torch.ones(64 * 2**20, dtype=torch.int8)
    held = psutil.Process().memory_info().rss
    assert len(block) <= held <= peak_resident() + 2**20  # the kernel counts in batches of pages
