"""What a model reads of tables with sequences: every piece of x, copies of tables, plans and memory on paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from histories import write_data
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig

from recmtl.config import MODELS, Config, SequenceConfig, ShardingConfig, TrainingConfig, WeightingConfig
from recmtl.config import EmbeddingConfig as TableConfig
from recmtl.config.models import MMoEConfig
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.distributed.live_bytes import LiveBytes
from recmtl.distributed.memory import trace_activations
from recmtl.distributed.plan import GIB, Cluster, Plan, make_plan
from recmtl.errors import UserError
from recmtl.models.embeddings import table_of
from recmtl.models.histories import pad, pool, split_rows
from recmtl.models.ranking_model import RankingModel
from recmtl.models.sequences import ENCODERS
from recmtl.objectives.train_module import TrainModule
from recmtl.objectives.weighting import METHODS
from recmtl.schema import FIRST, Dataset

DIM, ROWS = 8, 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("histories"))


def first_batch(folder: Path) -> Batch:
    dataset = Dataset.load(folder)
    return next(Reader(folder, dataset, "train", dataset.tasks, batch_size=ROWS, streams=4).batches())


def keys_of(batch: Batch) -> list[str]:
    keys: list[str] = batch.sparse.keys()
    return keys


def model_of(dataset: Dataset, encoder: str = "target_attention", preset: str = "stem", **keys) -> RankingModel:
    """On a real device, with large weights."""
    torch.manual_seed(0)
    sequence = SequenceConfig(encoder=encoder, dim=6, heads=2, **keys)
    model = RankingModel(dataset, dataset.tasks, MODELS[preset].config(), dim=DIM, device="cpu", sequence=sequence)
    torch.manual_seed(1)
    for parameter in model.embeddings.parameters():
        nn.init.normal_(parameter)
    return model


def tables_of(model: RankingModel) -> dict[str, Tensor]:
    return {table: value for name, value in model.named_parameters() if (table := table_of(name))}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_piece_of_x(data: Path, encoder: str) -> None:
    """Against rows picked one by one, and the encoder given each row by itself; of tables that have copies."""
    dataset, batch = Dataset.load(data), first_batch(data)
    model = model_of(dataset, encoder)
    kinds = {table.name: type(table) for table in model.embeddings.tables}
    assert kinds["item@like"] is kinds["brand@shared"] is EmbeddingConfig
    assert kinds["user@click"] is EmbeddingBagConfig
    tables, columns = tables_of(model), model.embeddings.columns
    assert list(columns) == ["user", "item", "liked_items", "brand", "before", "searches", "price"]
    found = model.embed(batch.sparse, batch.longest)
    assert all(torch.equal(values, found[table_set]) for table_set, values in model.embed(batch.sparse).items())
    by_name = {feature.name: feature for feature in dataset.features}
    ids = {name: [row.long() for row in batch.sparse[name].to_dense()] for name in keys_of(batch)}
    assert {0} < {len(row) for row in ids["last_items"]}
    for table_set, x in found.items():

        def rows_of(name: str, row: int, table_set: str = table_set) -> Tensor:
            return tables[f"{by_name[name].table}@{table_set}"][ids[name][row]]

        for row in range(ROWS):
            liked = rows_of("liked_items", row)
            wanted = {name: rows_of(name, row)[0] for name in ("user", "item", "brand")}
            wanted["liked_items"] = liked.mean(0) if len(liked) else torch.zeros(DIM)
            items = [rows_of(name, row) for name in ("last_items", "last_brands", "last_actions")]
            for name, target in (("last_items", "item"), ("last_brands", "brand")):
                same = (ids[name][row] == ids[target][row]) & (ids[name][row] >= FIRST)
                items.append(same.float().unsqueeze(1))
            target = torch.cat([wanted["item"], wanted["brand"]])
            for history, values, q in (("before", items, target), ("searches", [rows_of("searches", row)], x[0, :0])):
                events = torch.cat(values, dim=1)
                events, length = torch.cat([events, torch.zeros(1, events.shape[1])]), torch.tensor([len(events)])
                wanted[history] = model.histories.encoders[f"{history}@{table_set}"](events[None], q[None], length)[0]
            for name, value in wanted.items():
                torch.testing.assert_close(x[row, columns[name]], value)
    assert [columns["price"].stop, columns["price"].start] == [model.embeddings.width, x.shape[1]]


def test_without_bits(data: Path) -> None:
    dataset, batch = Dataset.load(data), first_batch(data)
    with_bits, without = (model_of(dataset, "mean", "mmoe", match=match) for match in (True, False))
    assert with_bits.embeddings.width == without.embeddings.width + 2
    x, columns = with_bits.embed(batch.sparse)["shared"], with_bits.embeddings.columns["before"]
    bits = x[:, columns.stop - 2 : columns.stop]
    assert 0 < bits.count_nonzero() < bits.numel()
    rest = torch.cat([x[:, : columns.stop - 2], x[:, columns.stop :]], dim=1)
    torch.testing.assert_close(without.embed(batch.sparse)["shared"], rest)


def test_a_loss_reaches_its_own_copies_and_the_shared_ones_only(data: Path) -> None:
    """Of tables, and of encoders."""
    batch, model = first_batch(data), model_of(Dataset.load(data), "transformer")
    x = model.embed(batch.sparse, batch.longest)
    model.score(x, batch.numeric)[:, 0].sum().backward()  # click
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    of_like = {name for name, _ in model.named_parameters() if "@like" in name}
    assert {name.split(".")[0] for name in of_like} == {"embeddings", "histories"}
    assert not reached & of_like
    assert {name.replace("@like", "@click") for name in of_like} <= reached


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_without_any_event(data: Path, encoder: str) -> None:
    dataset, batch = Dataset.load(data), first_batch(data)
    model = model_of(dataset, encoder, "mmoe")
    sequences = list(batch.longest)
    sparse = batch.sparse
    lengths = {name: sparse[name].lengths() * (name not in sequences) for name in keys_of(batch)}
    values = [sparse[name].values()[: int(lengths[name].sum())] for name in keys_of(batch)]
    empty = type(sparse)(keys_of(batch), torch.cat(values), lengths=torch.cat(list(lengths.values())))
    model.score(model.embed(empty, dict.fromkeys(sequences, 0)), batch.numeric).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def gradients_of(
    data: Path, method: str = "fixed", micro_batch_size: int = 0, encoder: str = "transformer"
) -> dict[str, Tensor]:
    """Of every parameter of a model with copies of tables."""
    model, batch = model_of(Dataset.load(data), encoder), first_batch(data)
    train_module = TrainModule(model, WeightingConfig(method=method), micro_batch_size)
    train_module(batch)[0].backward()
    found = {name: parameter.grad for name, parameter in train_module.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return found


@pytest.mark.parametrize("encoder", ENCODERS)
def test_micro_batches_add_up(data: Path, encoder: str) -> None:
    whole, micro = (gradients_of(data, micro_batch_size=size, encoder=encoder) for size in (0, 7))
    for name, gradient in whole.items():
        torch.testing.assert_close(micro[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_rows_are_split_with_their_items() -> None:
    """Rows without any item too, at the ends of a part; parts are as long as their own longest row."""
    lengths = torch.tensor([2, 0, 0, 0, 3, 1, 0], dtype=torch.int32)
    row = torch.repeat_interleave(lengths)
    found = split_rows(lengths, row, 3, 2)
    assert [part.lengths.tolist() for part in found] == [[2, 0], [0, 0], [3, 1], [0]]
    assert [part.row.tolist() for part in found] == [[0, 0], [], [0, 0, 0, 1], []]
    assert [part.longest for part in found] == [2, 1, 3, 1]
    for size in (0, 7, 9):
        [part] = split_rows(lengths, row, 5, size)
        assert part.lengths is lengths
        assert part.longest == 5
    assert split_rows(lengths, row, None, 0)[0].longest == 3


def test_each_micro_batch_is_encoded_by_itself_and_once_more_on_the_way_back(data: Path) -> None:
    """With the same dropped units, or gradients would be those of another function."""
    model, batch = model_of(Dataset.load(data), "transformer", "mmoe", dropout=0.5), first_batch(data)
    assert model.histories is not None
    seen: list[Tensor] = []
    encoder = model.histories.encoders["before@shared"]
    encoder.blocks[0].norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    train_module = TrainModule(model, micro_batch_size=7)
    loss, _ = train_module(batch)
    forward = list(seen)
    assert [len(values) for values in forward] == [7, 7, 7, 3]
    seen.clear()
    loss.backward()
    assert len(seen) == len(forward)
    assert all(torch.equal(*pair) for pair in zip(reversed(seen), forward, strict=True))
    seen.clear()
    with torch.no_grad():
        train_module.eval()(batch)
    assert [len(values) for values in seen] == [7, 7, 7, 3]


@pytest.mark.parametrize(("encoder", "layers"), [("target_attention", 1), ("transformer", 2), ("hstu", 2)])
def test_micro_batches_lower_the_memory_of_encoders(data: Path, encoder: str, layers: int) -> None:
    """What is alive at once in a step on a CPU, and on paper."""
    dataset, batch = Dataset.load(data), first_batch(data)
    measured, planned = [], []
    for size in (0, ROWS // 8):
        sequence = SequenceConfig(encoder=encoder, dim=128, hidden=(256,), layers=layers)
        config = config_of(sequence=sequence, training=TrainingConfig(micro_batch_size=size))
        model = RankingModel.from_config(config, dataset, dataset.tasks, device="cpu")
        with LiveBytes() as live:
            TrainModule(model, micro_batch_size=size)(batch)[0].backward()
        gradients = sum(4 * parameter.numel() for parameter in model.parameters())
        measured.append(live.peak - gradients)
        with torch.device("meta"):
            train_module = TrainModule.from_config(config, dataset, dataset.tasks)
        planned.append(trace_activations(train_module, ROWS).peak - gradients)
    assert 0 < measured[1] < 0.5 * measured[0]
    assert 0 < planned[1] < 0.5 * planned[0]


@pytest.mark.parametrize("method", METHODS)
def test_weightings_reach_encoders_and_tables(data: Path, method: str) -> None:
    for name, gradient in gradients_of(data, method).items():
        assert gradient.isfinite().all(), name
        if name.startswith(("model.embeddings", "model.histories")):
            assert gradient.any(), name


def test_bfloat16_autocast_is_near(data: Path) -> None:
    dataset, batch = Dataset.load(data), first_batch(data)
    for encoder in ENCODERS:
        model = model_of(dataset, encoder, "mmoe")
        exact = model.embed(batch.sparse)["shared"]
        model.histories.amp = True
        rounded = model.embed(batch.sparse)["shared"]
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.3)
        assert not torch.equal(rounded, exact)


def test_pooling_of_values_row_by_row() -> None:
    values, lengths = torch.arange(8.0).view(4, 2), torch.tensor([0, 3, 0, 1], dtype=torch.int32)
    assert pool(values, lengths, "sum").tolist() == [[0, 0], [6, 9], [0, 0], [6, 7]]
    assert pool(values, lengths, "mean").tolist() == [[0, 0], [2, 3], [0, 0], [6, 7]]
    row = torch.repeat_interleave(lengths)
    assert pad(values, lengths, row, 3)[:, :, 0].tolist() == [[0, 0, 0], [0, 2, 4], [0, 0, 0], [6, 0, 0]]


def config_of(**sections) -> Config:
    return Config(model=MMoEConfig(experts=2, expert_widths=(8,), tower=(4,)), **sections)


def plan_of(dataset: Dataset, cluster: Cluster, **sharding) -> Plan:
    placement = TableConfig(replica_gain_mib=0)
    config = config_of(sharding=ShardingConfig(**sharding), embedding=placement)
    with torch.device("meta"):
        return make_plan(TrainModule.from_config(config, dataset, dataset.tasks), config, cluster, 512)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_where_tables_with_sequences_may_lie(data: Path, device: str) -> None:
    dataset, cluster = Dataset.load(data), Cluster(2, 2, device, GIB)
    types = plan_of(dataset, cluster).table_types()
    assert set(types) == {table.name for table in dataset.tables}
    assert types["user"] == "data_parallel"  # is small, and pools
    assert {types[name] for name in ("item", "brand", "action", "searches")} <= {"table_wise", "row_wise"}
    for kind in ("data_parallel", "grid_shard"):
        with pytest.raises(UserError, match=f"sharding of table 'item': no {kind} on {device} for tables with seq"):
            plan_of(dataset, cluster, tables={"item": kind})


@pytest.mark.parametrize("encoder", ENCODERS)
def test_memory_on_paper_grows_with_the_longest_history(data: Path, encoder: str) -> None:
    dataset = Dataset.load(data)
    found = []
    for longest in (100, 2100):
        features = tuple(replace(f, longest=longest) if f.history else f for f in dataset.features)
        config = config_of(sequence=SequenceConfig(encoder=encoder))
        with torch.device("meta"):
            train_module = TrainModule.from_config(config, replace(dataset, features=features), dataset.tasks)
        found.append(trace_activations(train_module, 64).peak)
    # At least the padded items: 16 + 4 + 16 numbers and 2 bits, and 16 numbers of a search.
    assert found[1] - found[0] > 64 * 2000 * (38 + 16) * 4


@pytest.mark.parametrize(("encoder", "times"), [("transformer", 2), ("hstu", 4)])
def test_attention_among_events_takes_the_memory_of_its_kernels(data: Path, encoder: str, times: int) -> None:
    """With two layers: in proportion to the events of `transformer`, to their square of `hstu`."""
    dataset, found = Dataset.load(data), []
    for longest in (1000, 2000):
        features = tuple(replace(f, longest=longest) if f.history else f for f in dataset.features)
        config = config_of(sequence=SequenceConfig(encoder=encoder, layers=2))
        with torch.device("meta"):
            train_module = TrainModule.from_config(config, replace(dataset, features=features), dataset.tasks)
        found.append(trace_activations(train_module, 64).peak)
    assert found[1] / found[0] == pytest.approx(times, rel=0.1)
