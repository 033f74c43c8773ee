"""Task weightings against their formulas, on gradients that are known and on those that arrive in real tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import write_toy

from recmtl.config import Config, EmbeddingConfig, ShardingConfig, WeightingConfig
from recmtl.data.batch import Batch
from recmtl.data.dataset import Dataset
from recmtl.data.reader import Reader
from recmtl.distributed.parallel import parallelize, table_weights
from recmtl.distributed.plan import GIB, Cluster, make_plan
from recmtl.distributed.ranks import process_group
from recmtl.models import MODELS, model_class
from recmtl.models.ranker import Ranker
from recmtl.weighting import METHODS, Weighting, make_weighting
from recmtl.weighting.pcgrad import project

# What `recmtl` itself silences (recmtl/quiet.py).
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fbgemm:UserWarning")

DIM, ROWS = 8, 48
RECIPE = (2.0, 0.5, 1.0)


def weighting_of(method: str, recipe: tuple[float, ...] = (1.0, 1.0), **keys: float) -> Weighting:
    return make_weighting(WeightingConfig(method=method, **keys), torch.tensor(recipe))  # type: ignore[arg-type]


def gradient_of(weighting: Weighting, gradients: np.ndarray, offset: float = 1.0) -> np.ndarray:
    """What arrives at x [n] when the tasks' losses are offset + ⟨g_t, x⟩ at x = 0, with gradients g [T, n]."""
    x = torch.zeros(gradients.shape[1], requires_grad=True)
    own = torch.zeros(len(gradients), 1, requires_grad=True)  # a parameter a task, as towers are
    losses = offset + torch.tensor(gradients, dtype=torch.float32) @ x + own[:, 0]
    weighting(losses, [x], [own]).backward()
    assert x.grad is not None
    return x.grad.numpy()


def pcgrad_in_numpy(gradients: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Algorithm 1 of the paper, on vectors [T, n]; Σ_i g_i'."""
    total = np.zeros(gradients.shape[1])
    for i, own in enumerate(gradients.astype(np.float64)):
        changed = own.copy()
        for j in orders[i]:
            other = gradients[j].astype(np.float64)
            if changed @ other < 0:
                changed = changed - (changed @ other) / (other @ other) * other
        total += changed
    return total


# The methods on gradients that are known


@pytest.mark.parametrize("method", METHODS)
def test_one_task_has_the_gradient_of_its_own_loss(method):
    weighting = weighting_of(method, (1.5,))
    for _ in range(3):
        np.testing.assert_allclose(gradient_of(weighting, np.array([[1.0, -2.0]])), [1.5, -3.0], rtol=1e-6)
        weighting.observe(torch.tensor([1.0]))
        weighting.end_epoch()
    assert weighting.weights().tolist() == pytest.approx([1.5])


@pytest.mark.parametrize("method", METHODS)
def test_at_the_start_without_conflicts_every_method_is_the_fixed_one(method):
    gradients = np.random.default_rng(0).random((3, 5))  # positive: their inner products are too
    np.testing.assert_allclose(
        gradient_of(weighting_of(method, RECIPE), gradients), np.array(RECIPE) @ gradients, rtol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_weighted_or_remembered_without_gradients(method):
    weighting = weighting_of(method, RECIPE)
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    with torch.no_grad():
        assert weighting(torch.tensor([1.0, 2.0, 3.0]), [torch.zeros(2)], []).item() == 6
    assert all(torch.equal(value, before[name]) for name, value in weighting.state_dict().items())


def test_uncertainty_follows_its_formula():
    weighting = weighting_of("uncertainty", RECIPE)
    s = np.array([-0.5, 0.0, 1.0])
    weighting.log_variance.data = torch.tensor(s, dtype=torch.float32)
    gradients = np.random.default_rng(1).normal(size=(3, 4))
    a = np.array(RECIPE)
    np.testing.assert_allclose(gradient_of(weighting, gradients, offset=0.7), (a * np.exp(-s)) @ gradients, rtol=1e-5)
    np.testing.assert_allclose(weighting.log_variance.grad, a * (0.5 - 0.7 * np.exp(-s)), rtol=1e-5)
    np.testing.assert_allclose(weighting.weights(), a * np.exp(-s), rtol=1e-6)
    losses = torch.tensor([0.3, 0.2, 0.1])
    wanted = (a * (np.exp(-s) * losses.numpy() + s / 2)).sum()
    assert weighting(losses, [], []).item() == pytest.approx(wanted, rel=1e-5)


def test_uncertainty_settles_where_its_optimum_is():
    weighting, losses = weighting_of("uncertainty", RECIPE), torch.tensor([0.05, 0.5, 2.0])
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weighting(losses, [], []).backward()
        optimizer.step()
    torch.testing.assert_close(weighting.log_variance.detach(), torch.log(2 * losses), rtol=1e-3, atol=1e-3)


def test_dwa_follows_its_formula():
    weighting, gradients = weighting_of("dwa", RECIPE, temperature=0.5), np.random.default_rng(2).normal(size=(3, 4))
    epochs = np.random.default_rng(3).random((5, 3)) + 0.5
    for epoch, sums in enumerate(epochs):
        w = np.ones(3)
        if epoch > 1:
            w = np.exp(epochs[epoch - 1] / epochs[epoch - 2] / 0.5)
            w = 3 * w / w.sum()
        np.testing.assert_allclose(gradient_of(weighting, gradients), (np.array(RECIPE) * w) @ gradients, rtol=1e-4)
        np.testing.assert_allclose(weighting.weights(), np.array(RECIPE) * w, rtol=1e-5)
        for part in (0.25, 0.75):  # an epoch's losses come in several windows
            weighting.observe(torch.tensor(part * sums, dtype=torch.float32))
        weighting.end_epoch()


def test_dwa_with_equal_rates_has_weights_of_one():
    weighting = weighting_of("dwa", RECIPE)
    for scale in (1.0, 0.9, 0.6):
        weighting.observe(scale * torch.tensor([0.1, 5.0, 2.0]))
        weighting.end_epoch()
        gradient_of(weighting, np.eye(3))
        torch.testing.assert_close(weighting.factors, torch.ones(3))


def test_gradnorm_follows_its_formula():
    """Its step on w against automatic differentiation of Σ |G − target|, then Adam's formula, over steps."""
    alpha, lr = 0.7, 0.03
    weighting, rng = weighting_of("gradnorm", RECIPE, alpha=alpha, lr=lr), np.random.default_rng(4)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=lr)
    w, first, m, v = np.ones(3), None, np.zeros(3), np.zeros(3)
    for step in range(1, 20):
        gradients, losses = rng.normal(size=(3, 4)) * [[1], [2], [0.5]], rng.random(3) + 0.5
        first = losses if first is None else first
        w = 3 * w / w.sum()
        leaf, x = torch.tensor(w, requires_grad=True), torch.zeros(4, dtype=torch.float64, requires_grad=True)
        weighted = leaf * (torch.tensor(gradients) @ x)
        sizes = torch.stack([torch.autograd.grad(one, x, create_graph=True)[0].norm() for one in weighted])
        rates = losses / first / (losses / first).mean()
        (sizes - (sizes.mean() * torch.tensor(rates) ** alpha).detach()).abs().sum().backward()
        assert leaf.grad is not None
        wanted = leaf.grad.numpy()

        optimizer.zero_grad()
        found = gradient_of(weighting, gradients, offset=torch.tensor(losses, dtype=torch.float32))
        np.testing.assert_allclose(weighting.factors, w, rtol=1e-4)
        np.testing.assert_allclose(found, (np.array(RECIPE) * w) @ gradients, rtol=1e-3)
        np.testing.assert_allclose(weighting.w.grad, wanted, rtol=1e-4)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * wanted, 0.999 * v + 0.001 * wanted**2
        w = w - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert weighting.factors.sum().item() == pytest.approx(3)
    assert weighting.factors.argmin() == 1  # its gradients are the largest


def test_gradnorm_weights_never_leave_the_positive():
    weighting = weighting_of("gradnorm", lr=3.0)
    weighting.w.data = torch.tensor([-5.0, 1.0])
    gradient_of(weighting, np.eye(2))
    assert weighting.factors.sum().item() == pytest.approx(2)
    assert (weighting.factors > 0).all()


def test_pcgrad_follows_its_formula():
    rng = np.random.default_rng(5)
    weighting, orders = weighting_of("pcgrad", (2.0, 0.5, 1.0, 3.0)), set()
    for step in range(50):
        weighting.step = step
        gradients = rng.normal(size=(4, 6))
        order = weighting._orders(4).numpy()
        assert [sorted({*row, i}) for i, row in enumerate(order)] == [[0, 1, 2, 3]] * 4
        orders.add(order.tobytes())
        wanted = pcgrad_in_numpy(np.array([[2.0], [0.5], [1.0], [3.0]]) * gradients, order)
        np.testing.assert_allclose(gradient_of(weighting, gradients), wanted, rtol=1e-3, atol=1e-4)
    assert len(orders) > 40
    weighting.step = 0
    again = weighting._orders(4)
    assert torch.equal(again, weighting._orders(4))


def test_two_tasks_of_pcgrad_gain_both_from_a_step():
    rng = np.random.default_rng(6)
    for _ in range(100):
        gradients = rng.normal(size=(2, 3)) * rng.random((2, 1))
        total = gradient_of(weighting_of("pcgrad"), gradients)
        assert (gradients @ total > -1e-6).all()
    opposite = np.array([[1.0, 0.0], [-3.0, 0.0]])
    np.testing.assert_allclose(gradient_of(weighting_of("pcgrad"), opposite), [0, 0], atol=1e-6)


def test_projections_of_a_task_without_gradient():
    gram = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert project(gram, torch.tensor([[1], [0]])).tolist() == [1, 1]


def test_pcgrad_leaves_what_one_task_alone_reaches():
    x, shared = torch.zeros(2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    towers, alone = torch.zeros(2, 3, 1, requires_grad=True), torch.zeros(2, requires_grad=True)
    ends = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    # Tasks conflict on x and on shared[0]; shared[1] and alone belong to task 0, each tower to its own.
    losses = torch.stack(
        [
            ends[0] @ x + 3 * shared[0].sum() + 100 * shared[1].sum() + 7 * towers[0].sum() + 5 * alone.sum(),
            ends[1] @ x - 2 * shared[0].sum() + 9 * towers[1].sum(),
        ]
    )
    weighting_of("pcgrad")(losses, [x], [shared, towers, alone]).backward()
    vectors = np.array([[1.0, 2.0, 3.0, 3.0], [-1.0, 0.5, -2.0, -2.0]])
    wanted = pcgrad_in_numpy(vectors, np.array([[1], [0]]))
    assert not np.allclose(wanted, vectors.sum(0))
    np.testing.assert_allclose(x.grad, wanted[:2], rtol=1e-5)
    np.testing.assert_allclose(shared.grad, [wanted[2:], [100, 100]], rtol=1e-5)
    np.testing.assert_allclose(towers.grad.flatten(), [7, 7, 7, 9, 9, 9], rtol=1e-5)
    np.testing.assert_allclose(alone.grad, [5, 5], rtol=1e-5)


def test_groups_of_embeddings_that_one_task_reads_keep_their_gradient():
    """As STEM's tables of one task."""
    groups = [torch.zeros(2, 2, requires_grad=True) for _ in range(3)]
    own = torch.zeros(1, requires_grad=True)
    losses = torch.stack(
        [groups[0].sum() + groups[2].sum() + own.sum(), 4 * groups[1].sum() - 2 * groups[2].sum() + own.sum()]
    )
    weighting_of("pcgrad")(losses, groups, [own]).backward()
    wanted = pcgrad_in_numpy(np.array([[1.0, 1, 1, 1, 1], [-2, -2, -2, -2, 1]]), np.array([[1], [0]]))
    for group, gradient in zip([*groups, own], (1, 4, wanted[:4].reshape(2, 2), wanted[4:]), strict=True):
        np.testing.assert_allclose(group.grad, np.broadcast_to(gradient, group.shape), rtol=1e-5)


# Through a ranker into tables


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Batch]:
    """Two tasks with weights, like with click as its parent, and one batch."""
    folder: Path = tmp_path_factory.mktemp("toy") / "data"
    dataset = write_toy(folder, {"train": ROWS, "val": 0, "test": 0})
    click, like = dataset.tasks
    dataset = replace(dataset, tasks=(replace(click, weight=2.0), replace(like, weight=0.5, parent="click")))
    return dataset, next(Reader(folder, dataset, "train", dataset.tasks, batch_size=ROWS, streams=4).batches())


def ranker_of(dataset: Dataset, method: str, name: str = "mmoe", **sizes) -> Ranker:
    """A ranker whose tables, on the meta device until they are sharded, are filled here."""
    torch.manual_seed(0)
    config = model_class(name).Config(**sizes)
    weighting = WeightingConfig(method=method)  # type: ignore[arg-type]
    ranker = Ranker(dataset, dataset.tasks, config, dim=DIM, weighting=weighting)
    ranker.embeddings.to_empty(device=torch.device("cpu"))
    for table in ranker.embeddings.parameters():
        nn.init.normal_(table, std=0.3)
    return ranker


def gradients_of(loss: Tensor, ranker: Ranker) -> dict[str, Tensor]:
    """By parameter's name; zeros where it is not reached."""
    names, parameters = zip(*ranker.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def losses_by_hand(ranker: Ranker, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled embeddings [B, ΣD], logits [B, T] and losses [T], without `Head`."""
    pooled = ranker.embeddings(batch.sparse)["shared"]
    logits = ranker.head.model({"shared": torch.cat([pooled, batch.numeric], dim=1)})
    p = logits.sigmoid()
    entropies = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log())
    return pooled, logits, (batch.weights[:, None] * entropies).sum(0)


def disagreeing(batch: Batch) -> Batch:
    """A row that has one label lacks the other, so that the tasks conflict."""
    return replace(batch, labels=torch.stack([batch.labels[:, 0], 1 - batch.labels[:, 0]], dim=1))


def test_pcgrad_through_mmoe_into_tables(toy):
    """Projection written plainly, on the pooled embeddings and the experts; gates and towers are the tasks' own."""
    dataset, batch = toy
    ranker = ranker_of(dataset, "pcgrad", experts=3, expert=(8,), tower=(4,))
    batch = disagreeing(batch)
    pooled, _, losses = losses_by_hand(ranker, batch)
    losses = torch.tensor([2.0, 0.5]) * losses
    head = dict(ranker.head.model.named_parameters())
    by_task = []
    for loss in losses:
        grads = torch.autograd.grad(loss, [pooled, *head.values()], retain_graph=True)
        by_task.append(dict(zip(["pooled", *head], grads, strict=True)))
    shared = ["pooled", *(name for name in head if name.startswith("level.experts"))]
    assert 1 < len(shared) < len(head)
    vectors = np.stack([torch.cat([one[name].flatten() for name in shared]).numpy() for one in by_task])
    assert vectors[0] @ vectors[1] < 0
    changed = torch.tensor(pcgrad_in_numpy(vectors, np.array([[1], [0]])), dtype=torch.float32)
    wanted = dict(zip(shared, changed.split([by_task[0][name].numel() for name in shared]), strict=True))

    tables = [bag.weight for bag in ranker.embeddings.collection.embedding_bags.values()]
    into_tables = torch.autograd.grad(pooled, tables, wanted["pooled"].view_as(pooled), retain_graph=True)
    loss, _ = ranker(batch)
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    loss.backward()
    for table, gradient in zip(tables, into_tables, strict=True):
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(table.grad, gradient, rtol=1e-4, atol=1e-7)
    for name, parameter in head.items():
        gradient = wanted[name].view_as(parameter) if name in shared else by_task[0][name] + by_task[1][name]
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_gradnorm_looks_at_the_pooled_embeddings(toy):
    dataset, batch = toy
    ranker = ranker_of(dataset, "gradnorm", "shared_bottom", bottom=(8,), tower=())
    pooled, _, losses = losses_by_hand(ranker, batch)
    norms = torch.stack([torch.autograd.grad(loss, pooled, retain_graph=True)[0].norm() for loss in losses])
    wanted = gradients_of((torch.tensor([2.0, 0.5]) * losses).sum(), ranker)
    loss, _ = ranker(batch)
    loss.backward()
    # At the first step r = 1 and w = 1.
    w = ranker.head.weighting.w
    torch.testing.assert_close(w.grad, torch.sign(norms - norms.mean()) * norms, rtol=1e-4, atol=0)
    for name, parameter in ranker.named_parameters():
        if parameter is not w:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_models_own_term_is_added_as_it_is(toy, method):
    """AITM's calibrator: its gradient is neither weighted nor projected."""
    dataset, batch = toy
    found = {}
    for alpha in (0.0, 0.6):
        ranker = ranker_of(dataset, method, "aitm", bottom=(8,), alpha=alpha)
        found[alpha] = gradients_of(ranker(batch)[0], ranker)
    _, logits, _ = losses_by_hand(ranker, batch)
    click, like = logits.sigmoid().unbind(1)
    term = gradients_of(0.6 * (batch.weights * torch.relu(like - click)).sum(), ranker)
    assert max(gradient.abs().max() for gradient in term.values()) > 1e-3
    for name, gradient in term.items():
        torch.testing.assert_close(found[0.6][name], found[0.0][name] + gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "data_parallel"])
@pytest.mark.parametrize("method", ["gradnorm", "pcgrad"])
def test_sharded_tables_move_by_the_changed_gradient(monkeypatch, toy, method, sharding):
    """One step of SGD in backward, against the gradient of the unsharded ranker."""
    dataset, batch = toy
    sizes = {"experts": 2, "expert": (8,), "tower": (4,)}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu"):
        config = Config(
            model_class("mmoe").Config(**sizes),
            EmbeddingConfig(dim=DIM, optimizer="sgd", lr=10.0),
            weighting=WeightingConfig(method=method),  # type: ignore[arg-type]
            sharding=ShardingConfig(type=sharding),  # type: ignore[arg-type]
        )
        torch.manual_seed(0)
        ranker = Ranker(dataset, dataset.tasks, config.model, dim=DIM, weighting=config.weighting)
        plan = make_plan(ranker, config, Cluster(1, 1, "cpu", 4 * GIB), ROWS)
        model, optimizer = parallelize(ranker, plan, config, torch.device("cpu"))

        def tables() -> dict[str, Tensor]:
            whole: dict[str, Tensor] = {}
            for name, piece, row, column, rows, dim in table_weights(model):
                place = whole.setdefault(name, torch.full((rows, dim), torch.nan))
                place[row : row + piece.shape[0], column : column + piece.shape[1]] = piece
            return whole

        before = tables()
        plain = ranker_of(dataset, method, **sizes)
        plain.head.load_state_dict(ranker.head.state_dict())
        for name, bag in plain.embeddings.collection.embedding_bags.items():
            bag.weight.data = before[name].clone()
        plain(batch)[0].backward()

        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
        for name, after in tables().items():
            gradient = plain.embeddings.collection.embedding_bags[name].weight.grad
            assert gradient is not None
            assert gradient.abs().max() > 1e-3
            torch.testing.assert_close(after, before[name] - 10 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "single_task"])
@pytest.mark.parametrize("method", ["gradnorm", "pcgrad"])
def test_every_models_parameters_get_a_gradient(toy, method, name):
    dataset, batch = toy
    ranker = ranker_of(dataset, method, name)
    ranker(batch)[0].backward()
    for parameter in ranker.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_pcgrad_leaves_stems_tables_of_one_task(toy):
    dataset, batch = toy
    batch, found = disagreeing(batch), {}
    for method in ("fixed", "pcgrad"):
        ranker = ranker_of(dataset, method, "stem")
        for parameter in ranker.head.model.towers.parameters():
            parameter.data[1] = parameter.data[0]
        found[method] = gradients_of(ranker(batch)[0], ranker)
    changed = {name for name in found["fixed"] if not torch.allclose(found["fixed"][name], found["pcgrad"][name])}
    tables = [name for name in found["fixed"] if "embedding_bags" in name]
    assert {name for name in tables if "@shared" in name} <= changed
    assert not changed & {name for name in tables if "@shared" not in name}
