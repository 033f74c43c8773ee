"""HoME against its equations, written in NumPy with the model's own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import assert_all_have_gradients
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS
from recmtl.errors import UserError
from recmtl.models import Inputs, Model
from recmtl.schema import Task

WIDTH, BATCH = 11, 16
NAMES = ("click", "view", "like", "follow")

CASES = {
    "default groups": {"expert_widths": (8,), "tower": (5,), "rank": 3},
    "two groups": {
        "groups": {"click": "watch", "view": "watch", "like": "interact"},
        "shared_experts": 1,
        "group_experts": 2,
        "task_experts": 3,
        "expert_widths": (10, 8),
        "rank": 2,
        "gate": (24,),
        "tower": (),
    },
    "one group": {
        "groups": dict.fromkeys(NAMES, "all"),
        "group_experts": 2,
        "expert_widths": (8,),
        "rank": 4,
        "tower": (9, 8),
    },
}
each_case = pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
each_count = pytest.mark.parametrize("tasks", [1, 2, 3, 4])


def build(tasks: int, **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS["home"]
    if "groups" in sizes:
        sizes["groups"] = {name: group for name, group in sizes["groups"].items() if name in NAMES[:tasks]}
    model = entry.load()(entry.config(**sizes), Inputs(tuple(Task(name) for name in NAMES[:tasks]), WIDTH, {})).double()
    for name, value in model.named_parameters():  # not the 1 and 0 they start at
        if name.endswith((".scale", ".shift")):
            torch.nn.init.normal_(value)
    return model


def inputs() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


class Equations:
    """The model in NumPy: level by level, expert by expert, gate by gate."""

    def __init__(self, model: Model, tasks: int, sizes: dict, training: bool) -> None:
        self.weights = {key: value.double().numpy().copy() for key, value in model.state_dict().items()}
        self.training = training
        groups = {name: sizes.get("groups", {}).get(name, name) for name in NAMES[:tasks]}
        self.groups = list(dict.fromkeys(groups.values()))
        self.group_of = [self.groups.index(groups[name]) for name in NAMES[:tasks]]
        self.numbers = [
            sizes.get(f"{kind}_experts", 2 if kind == "shared" else 1) for kind in ("task", "group", "shared")
        ]
        self.layers = len(sizes["expert_widths"])

    def mlp(self, name: str, i: int, x: np.ndarray) -> np.ndarray:
        layers = sum(key.startswith(name + ".weights.") for key in self.weights)
        for layer in range(layers):
            x = x @ self.weights[f"{name}.weights.{layer}"][i] + self.weights[f"{name}.biases.{layer}"][i]
            if layer < layers - 1:
                x = x * (x > 0)
        return x

    def expert(self, at: str, i: int, x: np.ndarray) -> np.ndarray:
        w = self.weights
        h = x * 2 * sigmoid(x @ w[f"{at}.experts.b"][i] @ w[f"{at}.experts.a"][i])
        for layer in range(self.layers):
            norm = f"{at}.experts.norms.{layer}"
            z = h @ w[f"{at}.experts.weights.{layer}"][i]
            mean, variance = (
                (z.mean(0), z.var(0)) if self.training else (w[f"{norm}.mean"][i], w[f"{norm}.variance"][i])
            )
            z = w[f"{norm}.scale"][i] * (z - mean) / np.sqrt(variance + 1e-5) + w[f"{norm}.shift"][i]
            h = z * sigmoid(z)
        return h

    def gate(self, at: str, kind: str, gate: int, counts: list[int]) -> tuple[str, int]:
        """Where gate `gate` lies when gate i chooses among counts[i]: neighbours of one count lie together."""
        run = 0
        place = 0
        for i in range(1, gate + 1):
            same = counts[i] == counts[i - 1]
            run, place = (run, place + 1) if same else (run + 1, 0)
        return f"{at}.{kind}.{run}.logits", place

    def mixed(
        self, at: str, i: int, read: np.ndarray, seen: list[np.ndarray], own: list[np.ndarray], counts
    ) -> np.ndarray:
        shares = softmax(self.mlp(*self.gate(at, "gates", i, counts[0]), read))
        assert shares.shape[1] == len(seen)
        scores = self.mlp(*self.gate(at, "self_gates", i, counts[1]), read)
        assert scores.shape[1] == len(own)
        own_shares = sigmoid(scores) if len(own) == 1 else softmax(scores)
        z = sum(shares[:, [k]] * expert for k, expert in enumerate(seen))
        return z + sum(own_shares[:, [k]] * expert for k, expert in enumerate(own))

    def logits(self, x: np.ndarray) -> np.ndarray:
        of_task, of_group, of_all = self.numbers
        groups, tasks = len(self.groups), len(self.group_of)

        number = iter(range(1000))
        experts = [[self.expert("group_level", next(number), x) for _ in range(of_group)] for _ in range(groups)]
        shared = [self.expert("group_level", next(number), x) for _ in range(of_all)]
        everything = [out for outs in experts for out in outs] + shared
        counts = ([of_group + of_all] * groups + [len(everything)], [of_group] * groups + [of_all])
        z = [self.mixed("group_level", g, x, experts[g] + shared, experts[g], counts) for g in range(groups)]
        z_shared = self.mixed("group_level", groups, x, everything, shared, counts)

        number = iter(range(1000))
        own = [[self.expert("task_level", next(number), z[g]) for _ in range(of_task)] for g in self.group_of]
        experts = [[self.expert("task_level", next(number), z[g]) for _ in range(of_group)] for g in range(groups)]
        shared = [self.expert("task_level", next(number), z_shared) for _ in range(of_all)]
        counts = ([of_task + of_group + of_all] * tasks, [of_task] * tasks)
        return np.column_stack(
            [
                self.mlp(
                    "towers.mlps", t, self.mixed("task_level", t, z[g], own[t] + experts[g] + shared, own[t], counts)
                )
                for t, g in enumerate(self.group_of)
            ]
        )


@each_count
@each_case
def test_forward_is_the_equation(sizes, tasks):
    model, x = build(tasks, **sizes), inputs()
    for training in (True, False):  # the second with the running means of the first
        model.train(training)
        wanted = Equations(model, tasks, sizes, training).logits(x.numpy())
        np.testing.assert_allclose(model({"shared": x}).detach().numpy(), wanted, rtol=0, atol=1e-10)
        # And in the precision it trains in.
        single = build(tasks, **sizes).float()
        single.load_state_dict(model.state_dict())
        logits = single.train(training)({"shared": x.float()}).detach().numpy()
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
        assert np.ptp(wanted, axis=0).min() > 0


@each_count
@each_case
def test_every_parameter_gets_a_gradient(sizes, tasks):
    model = build(tasks, **sizes)
    labels = torch.randint(0, 2, (BATCH, tasks)).double()
    F.binary_cross_entropy_with_logits(model({"shared": inputs()}), labels).backward()
    assert_all_have_gradients(model)


def reached(model: Model, task: int, level: str) -> list[bool]:
    """The experts of a level that a task's logit depends on."""
    model.zero_grad()
    model({"shared": inputs()})[:, task].square().sum().backward()
    return [bool(gradient.any()) for gradient in getattr(model, level).experts.weights[0].grad]


def test_a_task_reaches_its_own_experts_its_groups_and_the_shared_ones():
    groups = {"click": "watch", "view": "watch", "like": "interact"}
    model = build(3, groups=groups, shared_experts=2, group_experts=1, task_experts=1, expert_widths=(8,))
    # Experts of click, view, like; of watch, interact; two shared.
    assert reached(model, 0, "task_level") == [True, False, False, True, False, True, True]
    assert reached(model, 1, "task_level") == [False, True, False, True, False, True, True]
    assert reached(model, 2, "task_level") == [False, False, True, False, True, True, True]
    # Through z_S, on level 1 all.
    assert reached(model, 0, "group_level") == [True] * 4
    # Not without the shared experts of level 2: watch, interact; two shared.
    with torch.no_grad():
        for stack in (*model.task_level.experts.weights, *(norm.shift for norm in model.task_level.experts.norms)):
            stack[-2:] = 0
    assert reached(model, 0, "group_level") == [True, False, True, True]


def test_tasks_that_are_not_named_are_groups_of_their_own():
    assert build(4, groups={"like": "x", "click": "x"}).group_of == [0, 1, 0, 2]
    assert build(4).group_of == [0, 1, 2, 3]


def test_unknown_task_in_groups_is_an_error():
    entry = MODELS["home"]
    with pytest.raises(UserError, match=r"model.groups: no task 'clik'; did you mean 'click'"):
        entry.load()(entry.config(groups={"clik": "watch"}), Inputs((Task("click"), Task("view")), WIDTH, {}))


def test_experts_are_normalised_and_features_gated():
    experts, x = build(2, expert_widths=(8,)).group_level.experts, inputs()
    with torch.no_grad():
        experts.norms[0].scale.fill_(1)
        experts.norms[0].shift.fill_(0)
        experts.b.fill_(0)  # so all gates are 1: features come as they are
        z = x @ experts.weights[0]
        z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, unbiased=False)
        torch.testing.assert_close(experts(x), z * z.sigmoid(), rtol=1e-3, atol=1e-3)  # but for ε
        # A gate far below 0 shuts its feature out; far above, it doubles it, which normalisation takes back.
        experts.b.fill_(1)
        experts.a.fill_(0)
        experts.a[:, :, 3] = -1e6
        x[:, 0] = 100
        shut = experts(x)
        x[:, 3] = torch.randn(BATCH)
        torch.testing.assert_close(experts(x), shut)
        x[:, 4] = torch.randn(BATCH)
        assert not torch.allclose(experts(x), shut)


def test_a_self_gate_adds_own_experts_beside_the_softmax():
    level = build(2, shared_experts=2, group_experts=1, expert_widths=(8,)).group_level
    x = 3 * inputs()
    shares, own = level.gates(x), level.self_gates(x)
    torch.testing.assert_close(shares.sum(2), torch.ones(3, BATCH, dtype=torch.float64))
    # Experts: one of each group, two shared. A lone expert's self-gate is a sigmoid, two share a softmax.
    assert (own > 0).all(1).int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]
    assert (own[:2].sum(2) < 1).all()
    torch.testing.assert_close(own[2].sum(1), torch.ones(BATCH, dtype=torch.float64))
    assert own[0, :, 0].std() > 0.01


@each_case
def test_autocast_changes_logits_a_little(sizes):
    model, x = build(4, **sizes).float(), {"shared": inputs().float()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x)
    rounded.float().sum().backward()
    torch.testing.assert_close(rounded.float(), model(x), rtol=0.05, atol=0.05)
