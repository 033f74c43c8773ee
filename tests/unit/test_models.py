"""The models against their equations, written in NumPy with the models' own weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy import write_toy

from recmtl.config import MODELS, ModelConfig, ModelEntry, config_class, find_model
from recmtl.data.read.reader import Reader
from recmtl.errors import UserError
from recmtl.models import Inputs, Model
from recmtl.models.batch_norm import BatchNorm
from recmtl.models.embeddings import Embeddings
from recmtl.models.layers import Gates, MLPs, Towers, mix
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.losses import auxiliary_loss
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset, Feature, Table, Task
from recmtl.typed import from_dict

WIDTH, BATCH = 12, 9


def build(name: str, tasks: int, seed: int = 0, **sizes) -> Model:
    torch.manual_seed(seed)
    entry = MODELS[name]
    names = tuple(Task(f"task_{i}") for i in range(tasks))
    return entry.load()(entry.config(**sizes), Inputs(names, WIDTH, {}))


def inputs(seed: int = 1) -> torch.Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(seed))


class Weights:
    """A model's weights as float64 arrays."""

    def __init__(self, model: nn.Module) -> None:
        self.arrays = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def mlp(self, prefix: str, i: int, x: np.ndarray, *, ends_linear: bool) -> np.ndarray:
        """Network `i` of those called `prefix` on x: relu after every layer but a linear last one."""
        layers = sum(name.startswith(f"{prefix}.weights.") for name in self.arrays)
        for layer in range(layers):
            x = x @ self.arrays[f"{prefix}.weights.{layer}"][i] + self.arrays[f"{prefix}.biases.{layer}"][i]
            if not (ends_linear and layer == layers - 1):
                x = np.maximum(x, 0)
        return x

    def tower(self, prefix: str, i: int, x: np.ndarray) -> np.ndarray:
        return self.mlp(f"{prefix}.mlps", i, x, ends_linear=True)[:, 0]

    def count(self, prefix: str) -> int:
        return len(self.arrays[f"{prefix}.weights.0"])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def single_task(w: Weights, x: np.ndarray, tasks: int) -> list[np.ndarray]:
    return [w.tower("towers", 0, x)]


def shared_bottom(w: Weights, x: np.ndarray, tasks: int) -> list[np.ndarray]:
    h = w.mlp("bottom", 0, x, ends_linear=False)
    return [w.tower("towers", t, h) for t in range(tasks)]


def mmoe(w: Weights, x: np.ndarray, tasks: int) -> list[np.ndarray]:
    experts = [w.mlp("level.experts", e, x, ends_linear=False) for e in range(w.count("level.experts"))]
    logits = []
    for t in range(tasks):
        gate = softmax(w.mlp("level.gates.0.logits", t, x, ends_linear=True))
        z = sum(gate[:, [e]] * expert for e, expert in enumerate(experts))
        logits.append(w.tower("towers", t, z))
    return logits


EQUATIONS = {"single_task": single_task, "shared_bottom": shared_bottom, "mmoe": mmoe}
CASES = [
    *[("shared_bottom", tasks, {}) for tasks in (1, 2, 3, 4)],
    ("shared_bottom", 2, {"bottom": (7,), "tower": ()}),
    *[("mmoe", tasks, {}) for tasks in (1, 2, 3, 4)],
    ("mmoe", 2, {"experts": 1, "expert_widths": (8,)}),
    ("mmoe", 3, {"experts": 5, "expert_widths": (16, 8), "gate": (10, 6), "tower": (7, 5, 3)}),
    ("single_task", 1, {}),
    ("single_task", 1, {"tower": (5,)}),
]
each_case = pytest.mark.parametrize(("name", "tasks", "sizes"), CASES)


@each_case
def test_forward_is_the_equation(name, tasks, sizes):
    model, x = build(name, tasks, **sizes), inputs()
    logits = model({"shared": x})
    assert logits.shape == (BATCH, tasks)
    wanted = np.stack(EQUATIONS[name](Weights(model), x.double().numpy(), tasks), axis=1)
    np.testing.assert_allclose(logits.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 0  # the logits depend on x


@each_case
def test_every_parameter_gets_a_gradient(name, tasks, sizes):
    model = build(name, tasks, **sizes)
    F.binary_cross_entropy_with_logits(model({"shared": inputs()}), torch.ones(BATCH, tasks)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        if name == "mmoe" and sizes.get("experts") == 1 and key.startswith("level.gates"):
            continue  # the softmax over one expert is 1
        # Every one of the parallel networks, not only some of them.
        for i, gradient in enumerate(parameter.grad):
            assert gradient.abs().sum() > 0, f"{key}[{i}]"


def test_a_tasks_tower_gets_gradients_from_its_own_task_alone():
    model = build("mmoe", 3)
    model({"shared": inputs()})[:, 1].sum().backward()
    for stack in (model.towers, model.level.gates):
        for parameter in stack.parameters():
            assert [bool(gradient.any()) for gradient in parameter.grad] == [False, True, False]


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe"])
def test_dropout_acts_in_training_alone(name):
    model, x = build(name, 2, dropout=0.5), {"shared": inputs()}
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_single_task_with_two_tasks_is_an_error():
    with pytest.raises(UserError, match=r"training.tasks: single_task trains one task; name one of task_0, task_1"):
        build("single_task", 2)


def test_unknown_model_is_an_error():
    with pytest.raises(UserError, match=r"no model 'mmo'; did you mean 'mmoe'"):
        find_model("mmo")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("out_features", [None, 3])
@pytest.mark.parametrize("hidden", [(6,), (6, 5), (8, 7, 4)])
def test_mlps_equal_a_loop_over_linears(shared, out_features, hidden):
    torch.manual_seed(0)
    mlps = MLPs(4, WIDTH, hidden, out_features)
    x = torch.randn(BATCH, WIDTH) if shared else torch.randn(4, BATCH, WIDTH)
    wanted = []
    for i in range(4):
        h = x if shared else x[i]
        for layer, (weight, bias) in enumerate(zip(mlps.weights, mlps.biases, strict=True)):
            h = F.linear(h, weight[i].t(), bias[i, 0])
            if layer < len(hidden):
                h = h.relu()
        wanted.append(h)
    assert mlps(x).shape == (4, BATCH, out_features or hidden[-1])
    torch.testing.assert_close(mlps(x), torch.stack(wanted))


def test_mlps_start_like_linears():
    """Uniform in ±1/√fan_in: within it, near it at the ends, with its spread."""
    torch.manual_seed(0)
    mlps = MLPs(8, 64, (32,), 16)
    for weight, bias, fan_in in zip(mlps.weights, mlps.biases, (64, 32), strict=True):
        bound = fan_in**-0.5
        for values in (weight, bias):
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.9 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not torch.equal(mlps.weights[0][0], mlps.weights[0][1])


@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize("shared", [True, False])
def test_gates_sum_to_1(hidden, shared):
    torch.manual_seed(0)
    gates = Gates(3, WIDTH, 4, hidden)(10 * (torch.randn(BATCH, WIDTH) if shared else torch.randn(3, BATCH, WIDTH)))
    assert gates.shape == (3, BATCH, 4)
    assert (gates >= 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, BATCH))


def test_mix_is_the_gated_sum():
    gates, experts = torch.rand(2, BATCH, 3), torch.randn(3, BATCH, 5)
    wanted = [sum(gates[i, :, k, None] * experts[k] for k in range(3)) for i in range(2)]
    torch.testing.assert_close(mix(gates, experts), torch.stack(wanted))


def test_towers_take_one_input_or_one_a_task():
    torch.manual_seed(0)
    towers, x = Towers(3, WIDTH, (6,)), inputs()
    assert towers(x).shape == (BATCH, 3)
    torch.testing.assert_close(towers(x), towers(x.expand(3, BATCH, WIDTH)))


@dataclass
class TwoSetsConfig(ModelConfig):
    name: str = "two_sets"
    scale: float = 1.0


class TwoSets(Model):
    """Not in the package: a table set of its own beside the shared one, and a term of its own in the loss."""

    def __init__(self, config: TwoSetsConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.towers = Towers(len(inputs.tasks), 2 * inputs.width, ())

    @classmethod
    def table_sets(cls, config, tasks):
        return ("shared", "own")

    def forward(self, x):
        self.seen = x
        return self.config.scale * self.towers(torch.cat([x["shared"], x["own"]], dim=1))


@auxiliary_loss.register
def hundred(model: TwoSets, logits, labels, weights):
    """Of `TwoSets`."""
    return 100 + 0 * logits.sum()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("toy") / "data"
    return folder, write_toy(folder, {"train": 60, "val": 0, "test": 0})


def train_module_of(dataset: Dataset, config, dim: int = 8) -> TrainModule:
    """With tables that have memory and large weights."""
    model = RankingModel(dataset, dataset.tasks, config, dim=dim, device="cpu")
    for parameter in model.embeddings.parameters():
        nn.init.normal_(parameter)
    return TrainModule(model)


@pytest.mark.parametrize("name", ["type", "values", "train"])
def test_tables_may_be_called_what_modules_call_their_own(toy, name):
    _, dataset = toy
    tables = tuple(replace(table, name=name) if table.name == "item" else table for table in dataset.tables)
    features = tuple(replace(f, table=name) if f.table == "item" else f for f in dataset.features)
    embeddings = Embeddings(replace(dataset, tables=tables, features=features), 8)
    assert {table.name for table in embeddings.collection.embedding_bag_configs()} == {"user", f"{name}@shared", "tag"}


def first_batch(folder, dataset: Dataset):
    return next(Reader(folder, dataset, "train", dataset.tasks, batch_size=24, streams=4).batches())


def test_a_model_from_outside_the_package(monkeypatch, toy):
    folder, dataset = toy
    monkeypatch.setitem(MODELS, "two_sets", ModelEntry(TwoSetsConfig, TwoSets, "two table sets"))
    config = from_dict(config_class(TwoSetsConfig), {"model": {"name": "two_sets", "scale": 2}}, "here")
    assert RankingModel(dataset, dataset.tasks, config.model, dim=8).embeddings.collection.device.type == "meta"
    train_module, batch = train_module_of(dataset, config.model), first_batch(folder, dataset)
    loss, (losses, _, logits, same_batch) = train_module(batch)
    assert same_batch is batch
    assert loss.item() == pytest.approx(losses.sum().item() + 100, rel=1e-6)
    assert not logits.requires_grad

    # x of both table sets, against rows picked one by one.
    tables = {name: bag.weight for name, bag in train_module.model.embeddings.collection.embedding_bags.items()}
    assert set(tables) == {f"{table}@{name}" for table in ("user", "item", "tag") for name in ("shared", "own")}
    tags = batch.sparse["tags"].to_dense()
    for table_set, x in train_module.model.dense.seen.items():
        for i in range(24):
            user, item, previous = (int(batch.sparse[name].values()[i]) for name in ("user", "item", "previous"))
            bag = tables[f"tag@{table_set}"][tags[i].long()]
            wanted = torch.cat(
                [
                    tables[f"user@{table_set}"][user],
                    tables[f"item@{table_set}"][item],
                    tables[f"item@{table_set}"][previous],
                    bag.mean(0) if len(bag) else torch.zeros(8),
                    batch.numeric[i],
                ]
            )
            torch.testing.assert_close(x[i], wanted)

    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in train_module.parameters())


class Shift(Model):
    """Not in the package: it looks at the batch as a whole."""

    def __init__(self, config: TwoSetsConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.towers = Towers(len(inputs.tasks), inputs.width, ())

    def task_representations(self, x):
        return x["shared"] - x["shared"].mean(0)


def test_padding_does_not_reach_the_model(monkeypatch, toy):
    folder, dataset = toy
    monkeypatch.setitem(MODELS, "two_sets", ModelEntry(TwoSetsConfig, Shift, "x without its mean"))
    train_module = train_module_of(dataset, TwoSetsConfig())
    batches = list(Reader(folder, dataset, "train", dataset.tasks, batch_size=24, streams=4).batches())
    assert [batch.rows for batch in batches] == [24, 24, 12]
    _, (losses, _, logits, _) = train_module(batches[2])
    assert logits.shape == (24, 2)
    assert not logits[12:].any()
    x = train_module.model.embeddings(batches[2].sparse)["shared"][:12]
    alone = train_module.model.dense({"shared": torch.cat([x, batches[2].numeric[:12]], dim=1)})
    torch.testing.assert_close(logits[:12], alone)
    wanted = F.binary_cross_entropy_with_logits(alone, batches[2].labels[:12], reduction="none").mean(0)
    torch.testing.assert_close(losses, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_may_have_no_rows(name):
    """At the end of an epoch; its gradients are zeros then, not absent, or the other ranks would wait for them."""
    tasks = (Task("a"), Task("b", parent="a"))[: 1 if name == "single_task" else 2]
    model = MODELS[name].load()(MODELS[name].config(), Inputs(tasks, WIDTH, {}))
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eval()  # in training it gets its statistics from the other ranks' rows
    outputs = model({table_set: torch.empty(0, WIDTH) for table_set in model.table_sets(model.config, tasks)})
    assert outputs[:, : len(tasks)].shape == (0, len(tasks))
    outputs.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_task_weights_scale_the_loss(toy):
    folder, dataset = toy
    weighted = replace(
        dataset, tasks=tuple(replace(t, weight=w) for t, w in zip(dataset.tasks, (3.0, 0.5), strict=True))
    )
    config = MODELS["mmoe"].config(experts=2, expert_widths=(8,), tower=())
    loss, (losses, *_) = train_module_of(weighted, config)(first_batch(folder, dataset))
    assert loss.item() == pytest.approx((3 * losses[0] + 0.5 * losses[1]).item(), rel=1e-6)


def test_autocast_changes_the_dense_part_a_little(toy):
    folder, dataset = toy
    train_module, batch = train_module_of(dataset, MODELS["mmoe"].config()), first_batch(folder, dataset)
    exact = train_module(batch)[1].logits
    train_module.model.amp = True
    rounded = train_module(batch)[1].logits
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.1, atol=0.05)


def test_columns_say_where_features_lie():
    dataset = Dataset(
        "d",
        {},
        (Table("a", 5, dim=12), Table("b", 5)),
        (
            Feature("n", kind="numeric"),
            Feature("f1", table="a"),
            Feature("f2", table="b"),
            Feature("m", kind="numeric"),
        ),
        (Task("t"),),
    )
    embeddings = Embeddings(dataset, 4)
    places = {name: (place.start, place.stop) for name, place in embeddings.columns.items()}
    assert places == {"f1": (0, 12), "f2": (12, 16), "n": (16, 17), "m": (17, 18)}
    assert embeddings.width == 18


def test_list_features_of_a_table_must_pool_alike():
    features = (
        Feature("f1", kind="list", table="a", pooling="sum"),
        Feature("f2", kind="list", table="a", pooling="mean"),
    )
    dataset = Dataset("d", {}, (Table("a", 5),), features, (Task("t"),))
    with pytest.raises(UserError, match="table 'a': its list features must all pool"):
        Embeddings(dataset, 4)
