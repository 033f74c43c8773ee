"""ESCM² and its counterfactual loss against their equations, written in NumPy with the model's own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import Weights, assert_all_have_gradients, mlp, weights_of
from torch import Tensor, nn

from recmtl.config import MODELS
from recmtl.errors import UserError
from recmtl.models import Inputs, Model
from recmtl.objectives.losses import auxiliary_loss, learned_labels, learned_logits, task_losses
from recmtl.schema import Task

WIDTH, BATCH, CLIP, LAMBDA = 11, 40, 0.3, 1.7

FUNNELS = {
    "pair": (Task("click"), Task("buy", parent="click")),
    "conditional label": (Task("click"), Task("buy", parent="click", conditional=True)),
    "exclusive": (Task("view"), Task("like", parent="view", relation="given_not", conditional=True)),
    "child first": (Task("buy", parent="click"), Task("click")),
    "chain backwards": (Task("d", parent="c"), Task("c", parent="b"), Task("b", parent="a"), Task("a")),
    "conditional chain": (
        Task("a"),
        Task("b", parent="a", conditional=True),
        Task("c", parent="b", conditional=True),
    ),
    "tree and a loner": (Task("a"), Task("b", parent="a"), Task("c"), Task("d", parent="a", relation="given_not")),
}
each_funnel = pytest.mark.parametrize("tasks", FUNNELS.values(), ids=FUNNELS)
each_regularizer = pytest.mark.parametrize("regularizer", ["ips", "dr"])


def build(tasks: tuple[Task, ...], regularizer: str = "dr", **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS["escm2"]
    sizes = {"clip": CLIP, "counterfactual": LAMBDA, "tower": (8, 6), **sizes}
    return entry.load()(entry.config(regularizer=regularizer, **sizes), Inputs(tasks, WIDTH, {})).double()


def inputs() -> Tensor:
    return 2 * torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def labels_of(tasks: tuple[Task, ...]) -> Tensor:
    """Labels that obey the funnel; a conditional one is missing where the parent shuts the task out."""
    rng, names = np.random.default_rng(2), [task.name for task in tasks]
    happened: dict[str, np.ndarray] = {}
    given: dict[str, np.ndarray] = {}
    while len(given) < len(tasks):
        for task in tasks:
            if task.name in given or (task.parent is not None and task.parent not in given):
                continue
            drawn, open_ = rng.integers(0, 2, BATCH).astype(float), np.ones(BATCH, bool)
            if task.parent is not None:
                open_ = happened[task.parent] == (task.relation == "given")
            happened[task.name] = drawn * open_
            given[task.name] = np.where(open_ | (not task.conditional), happened[task.name], np.nan)
    return torch.tensor(np.column_stack([given[name] for name in names]))


ROW_WEIGHTS = torch.rand(BATCH, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / BATCH


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def joint(weights: Weights, tasks: tuple[Task, ...], task: Task, x: np.ndarray) -> np.ndarray:
    """p(task) by recursion."""
    own = sigmoid(mlp(weights, "towers.mlps", tasks.index(task), x, True)[:, 0])
    parents = [other for other in tasks if other.name == task.parent]
    if not parents:
        return own
    p = joint(weights, tasks, parents[0], x)
    return (p if task.relation == "given" else 1 - p) * own


def wanted_loss(model: Model, tasks: tuple[Task, ...], labels: np.ndarray, regularizer: str) -> float:
    """The sums of the paper, row by row."""
    weights, x, total = weights_of(model), inputs().numpy(), 0.0
    linked = [task for task in tasks if task.parent is not None]
    for number, task in enumerate(linked):
        place = tasks.index(task)
        parent = next(other for other in tasks if other.name == task.parent)
        q = sigmoid(mlp(weights, "towers.mlps", place, x, True)[:, 0])
        p = joint(weights, tasks, parent, x)
        if regularizer == "dr":
            imputed = np.log1p(np.exp(mlp(weights, "imputers.mlps", number, x, True)[:, 0]))
        for row in range(BATCH):
            happened = labels[row, tasks.index(parent)] == (1 if task.relation == "given" else 0)
            propensity = max(p[row] if task.relation == "given" else 1 - p[row], CLIP)
            error = 0.0
            if happened:
                error = -np.log(q[row] if labels[row, place] else 1 - q[row])
            if regularizer == "ips":
                loss = error / propensity
            else:
                loss = imputed[row] + happened * (error - imputed[row]) / propensity
                loss += happened * (error - imputed[row]) ** 2 / propensity
            total += ROW_WEIGHTS[row].item() * loss
    return LAMBDA * total


def loss_of(model: Model, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the tasks [T], and the model's own."""
    outputs, tasks = model({"shared": inputs()}), model.inputs.tasks
    learned, logits = learned_labels(model, labels), outputs[:, : len(tasks)]
    weights = ROW_WEIGHTS.unsqueeze(1) * ~learned.isnan()
    own = auxiliary_loss(model, outputs, learned, weights)
    assert own is not None
    return task_losses(learned_logits(model, logits), learned, weights, tasks), own


@each_funnel
@each_regularizer
def test_the_loss_is_the_equation(tasks, regularizer):
    model, labels = build(tasks, regularizer), labels_of(tasks)
    learned = learned_labels(model, labels).numpy()
    assert not np.isnan(learned).any()
    _, own = loss_of(model, labels)
    assert own.item() == pytest.approx(wanted_loss(model, tasks, learned, regularizer), rel=1e-9)


@each_funnel
@each_regularizer
def test_predictions_are_esmms(tasks, regularizer):
    model, x = build(tasks, regularizer), {"shared": inputs()}
    esmm = MODELS["esmm"].load()(MODELS["esmm"].config(tower=(8, 6)), Inputs(tasks, WIDTH, {})).double()
    esmm.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("imputers")})
    wanted = esmm(x)
    links = sum(task.parent is not None for task in tasks)
    assert model(x).shape == (BATCH, len(tasks) + links * (2 if regularizer == "dr" else 1))
    assert torch.equal(model(x)[:, : len(tasks)], wanted)
    model.eval()
    assert torch.equal(model(x), wanted)
    assert auxiliary_loss(model, wanted, labels_of(tasks), torch.ones_like(wanted)) is None


@each_funnel
@each_regularizer
def test_every_parameter_gets_a_gradient(tasks, regularizer):
    model = build(tasks, regularizer)
    losses, own = loss_of(model, labels_of(tasks))
    (losses.sum() + own).backward()
    assert_all_have_gradients(model)


@each_regularizer
def test_the_propensity_gets_no_gradient(regularizer):
    """The counterfactual loss moves the conditional tower (and the imputer), not that of the parent."""
    tasks = FUNNELS["conditional label"]
    model = build(tasks, regularizer)
    _, own = loss_of(model, labels_of(tasks))
    own.backward()
    for parameter in model.towers.parameters():
        assert not parameter.grad[0].any()
        assert parameter.grad[1].any()


def test_imputed_errors_are_trained_towards_the_errors_and_not_the_reverse():
    tasks = FUNNELS["conditional label"]
    found = {}
    for regularizer in ("ips", "dr"):
        model = build(tasks, regularizer)
        _, own = loss_of(model, labels_of(tasks))
        own.backward()
        found[regularizer] = [parameter.grad[1] for parameter in model.towers.parameters()]
    # What reaches the conditional tower is ∂(o e / p), whatever the imputer says.
    for ips, dr in zip(found["ips"], found["dr"], strict=True):
        torch.testing.assert_close(ips, dr)


class Given(nn.Module):
    """In place of towers: logits of one's choice."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


@each_regularizer
def test_with_true_propensities_it_is_unbiased_for_the_loss_over_all_rows(regularizer):
    """What drives clicks drives conversions: the mean error over clicked rows is far off, the loss is not."""
    rng, rows, draws = np.random.default_rng(4), 2000, 400
    z = rng.normal(size=rows)
    click, buy = sigmoid(1.5 * z - 1), sigmoid(2 * z)
    model = build(FUNNELS["conditional label"], regularizer, clip=1e-4, counterfactual=1.0)
    b = torch.tensor(0.3 * z + 0.2)
    model.towers = Given(torch.stack([torch.tensor(np.log(click / (1 - click))), b], dim=1))
    if regularizer == "dr":
        model.imputers = Given(torch.tensor(rng.normal(size=(rows, 1)) - 1))
    outputs = model({"shared": torch.zeros(rows, WIDTH, dtype=torch.float64)})
    q = sigmoid(b.numpy())
    over_all = np.mean(-buy * np.log(q) - (1 - buy) * np.log(1 - q))
    found, naive = [], []
    weights = torch.full((rows, 2), 1 / rows, dtype=torch.float64)
    for _ in range(draws):
        clicked = rng.random(rows) < click
        bought = (rng.random(rows) < buy) & clicked
        labels = torch.tensor(np.column_stack([clicked, bought]), dtype=torch.float64)
        loss = auxiliary_loss(model, outputs, labels, weights).item()
        errors = np.where(bought, -np.log(q), -np.log(1 - q))
        if regularizer == "dr":
            # The last sum is the imputer's own loss.
            loss -= np.mean(clicked * (errors - outputs[:, 3].numpy()) ** 2 / click)
        found.append(loss)
        naive.append(errors[clicked].mean())
    error = np.std(found) / np.sqrt(draws)
    assert error < 0.01
    assert abs(np.mean(found) - over_all) < 4 * error
    assert abs(np.mean(naive) - over_all) > 20 * error


def test_clip_bounds_the_weight_of_a_row():
    tasks = FUNNELS["pair"]
    labels, weights = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    model = build(tasks, "ips", clip=0.25, counterfactual=1.0)
    for parent, inverse in ((-9.0, 4.0), (0.0, 2.0)):
        model.towers = Given(torch.tensor([[parent, 0.0]], dtype=torch.float64))
        outputs = model({"shared": torch.zeros(1, WIDTH, dtype=torch.float64)})
        assert auxiliary_loss(model, outputs, labels, weights).item() == pytest.approx(inverse * np.log(2))


def test_rows_without_the_parents_label_do_not_count():
    tasks = FUNNELS["pair"]
    model, labels = build(tasks, "ips"), labels_of(tasks)
    assert (labels[:20] == 1).all(1).any()
    _, whole = loss_of(model, labels)
    labels[:20] = torch.nan
    _, part = loss_of(model, labels)
    assert 0 < part < whole
    labels[:] = torch.nan
    losses, none = loss_of(model, labels)
    assert none == 0
    assert not losses.any()


def test_one_task_is_its_own_tower():
    model = build((Task("buy", parent="click", conditional=True),))
    assert model({"shared": inputs()}).shape == (BATCH, 1)
    assert auxiliary_loss(model, model({"shared": inputs()}), torch.ones(BATCH, 1), torch.ones(BATCH, 1)) is None


def test_several_tasks_without_a_parent_are_an_error():
    with pytest.raises(UserError, match=r"escm2 needs a task with a parent; name it in the recipe \(training a, b\)"):
        build((Task("a"), Task("b")))
