"""PEPNet against its equations, written in plain torch with the model's own weights, around several backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS, parse_config
from recmtl.config.models import PEPNetConfig
from recmtl.errors import UserError
from recmtl.models import Inputs, Model
from recmtl.models.base import SHARED
from recmtl.objectives.losses import auxiliary_loss
from recmtl.schema import Task

BATCH = 7
COLUMNS = {"user": slice(0, 4), "item": slice(4, 8), "page": slice(8, 10), "price": slice(10, 11)}
WIDTH = 11

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "all features": ("shared_bottom", {"bottom": (12, 8), "tower": (9,)}, {}),
    "the paper's backbone": (
        "shared_bottom",
        {"bottom": (), "tower": (9, 8)},
        {"prior": ("user", "item"), "domain": ("page",), "gate": (16,)},
    ),
    "linear towers and gates": ("shared_bottom", {"bottom": (12,), "tower": ()}, {"prior": ("item",), "gate": ()}),
    "mmoe": (
        "mmoe",
        {"experts": 3, "expert_widths": (12, 10), "tower": (9,)},
        {"prior": ("price", "user"), "gate": (16, 14)},
    ),
    "tables of tasks' own": ("me_mmoe", {"experts": 5, "expert_widths": (12,), "tower": (9,)}, {"prior": ("user",)}),
}
each_case = pytest.mark.parametrize(("backbone", "sizes", "options"), CASES.values(), ids=CASES)
each_count = pytest.mark.parametrize("tasks", [1, 2, 3, 4])
each_backbone = pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.config.gateable])


def tasks_of(count: int) -> tuple[Task, ...]:
    """Each one but the first with a parent, for the backbones that ask for an order."""
    return tuple(Task(f"task_{i}", parent=f"task_{i - 1}" if i else None) for i in range(count))


def build(backbone: str, tasks: int, sizes: dict[str, Any] | None = None, **options) -> Model:
    torch.manual_seed(0)
    config = PEPNetConfig(backbone=MODELS[backbone].config(**(sizes or {})), **options)
    return MODELS["pepnet"].load()(config, Inputs(tasks_of(tasks), WIDTH, COLUMNS)).double()


def inputs(model: Model) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sets = model.table_sets(model.config, model.inputs.tasks)
    return {s: torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64).requires_grad_() for s in sets}


class Equations:
    """The model with weights of any precision: table set by table set, task by task, layer by layer."""

    def __init__(self, model: Model, tasks: int, backbone: str, sizes: dict, options: dict) -> None:
        self.weights = {key: value.detach().double() for key, value in model.state_dict().items()}
        self.tasks, self.backbone, self.sizes, self.options = tasks, backbone, sizes, options

    def mlp(self, name: str, i: int, x: Tensor, last_is_linear: bool) -> Tensor:
        layers = sum(key.startswith(name + ".weights.") for key in self.weights)
        for layer in range(layers):
            x = x @ self.weights[f"{name}.weights.{layer}"][i] + self.weights[f"{name}.biases.{layer}"][i]
            if layer < layers - 1 or not last_is_linear:
                x = x.clamp(min=0)
        return x

    def gate(self, name: str, i: int, features: tuple[str, ...], e: Tensor, looked_at: Tensor) -> Tensor:
        named = [e[:, COLUMNS[feature]] for feature in features] or [e]
        return 2 / (1 + torch.exp(-self.mlp(f"{name}.mlps", i, torch.cat([*named, looked_at.detach()], 1), True)))

    def reads(self, o: dict[str, Tensor]) -> list[Tensor]:
        """What each task's tower reads of the embeddings after EPNet."""
        if self.backbone == "shared_bottom":
            return [self.mlp("backbone.bottom", 0, o[SHARED], False)] * self.tasks
        tables = list(o.values())
        read = [tables[e % len(tables)] for e in range(self.sizes["experts"])]
        if len(tables) > 1:  # experts lie in the order of the tables they read
            read = [tables[t] for t in range(len(tables)) for _ in range(t, self.sizes["experts"], len(tables))]
        names = "experts", "gates.logits"
        if len(tables) == 1:
            names = "level.experts", "level.gates.0.logits"
        experts = [self.mlp(f"backbone.{names[0]}", e, x, False) for e, x in enumerate(read)]
        z = []
        for t in range(self.tasks):
            shares = torch.softmax(self.mlp(f"backbone.{names[1]}", t, torch.cat(tables, 1), True), 1)
            z.append(sum(shares[:, [e]] * expert for e, expert in enumerate(experts)))
        return z

    def logits(self, x: dict[str, Tensor]) -> Tensor:
        prior = self.options.get("prior", ())
        domain = self.options.get("domain", prior)
        o = {name: e * self.gate("epnet", i, domain, e, e) for i, (name, e) in enumerate(x.items())}
        logits = []
        for t, h in enumerate(self.reads(o)):
            layers = len(self.sizes["tower"]) + 1
            for layer in range(layers):
                both = self.gate(f"ppnet.{layer}", 0, prior, x[SHARED], o[SHARED])
                delta = both[:, t * h.shape[1] : (t + 1) * h.shape[1]]
                at = "backbone.towers.mlps"
                h = (h * delta) @ self.weights[f"{at}.weights.{layer}"][t] + self.weights[f"{at}.biases.{layer}"][t]
                if layer < layers - 1:
                    h = h.clamp(min=0)
            logits.append(h)
        return torch.cat(logits, 1)


@each_count
@each_case
def test_forward_and_gradients_are_the_equations(backbone, sizes, options, tasks):
    """Gradients too: they tell the stop-gradients."""
    model = build(backbone, tasks, sizes, **options)
    x = inputs(model)
    wanted = Equations(model, tasks, backbone, sizes, options).logits(x)
    logits = model(x)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-10)
    direction = torch.randn(BATCH, tasks, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * direction).sum(), list(x.values())) for y in (logits, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
        assert mine.any()
    # And in the precision it trains in.
    single = model.float()({name: value.float() for name, value in x.items()})
    torch.testing.assert_close(single.double(), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted.max(0).values - wanted.min(0).values > 0).all()


@each_count
@each_case
def test_every_parameter_gets_a_gradient(backbone, sizes, options, tasks):
    model = build(backbone, tasks, sizes, **options)
    labels = torch.randint(0, 2, (BATCH, tasks)).double()
    F.binary_cross_entropy_with_logits(model(inputs(model)), labels).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        for i, gradient in enumerate(parameter.grad):
            assert gradient.any(), f"{key}[{i}]"


@each_backbone
def test_with_gate_weights_0_it_is_the_backbone(name):
    """Of every model there is: 2σ(0) = 1. Towers that read one input may add up in another order, no more."""
    tasks = 1 if name == "single_task" else 3
    model = build(name, tasks, prior=("user",))
    x = inputs(model)
    backbone = model.backbone
    assert model.table_sets(model.config, model.inputs.tasks) == type(backbone).table_sets(
        backbone.config, model.inputs.tasks
    )
    with torch.no_grad():
        assert not torch.allclose(model(x), backbone(x))
        for gates in (model.epnet, model.ppnet):
            for parameter in gates.parameters():
                parameter.zero_()
        torch.testing.assert_close(model(x), backbone(x), rtol=0, atol=1e-14)
        torch.testing.assert_close(model.conditional_logits(x), backbone.conditional_logits(x), rtol=0, atol=1e-14)
    logits = model(x)
    weights = torch.full_like(logits, 1 / BATCH)
    mine, theirs = (auxiliary_loss(m, m(x), torch.zeros_like(logits), weights) for m in (model, backbone))
    assert (mine is None) == (theirs is None) == (name != "aitm")
    if mine is not None:
        torch.testing.assert_close(mine, theirs)


def test_gates_lie_between_0_and_2():
    model = build("shared_bottom", 2)
    delta = model.epnet(100 * torch.randn(BATCH, 2 * WIDTH, dtype=torch.float64))
    assert ((delta >= 0) & (delta <= 2)).all()
    assert delta.min() < 0.5
    assert delta.max() > 1.5


def test_stem_inside_keeps_other_tasks_tables_untouched():
    """∂L_i/∂E_j = 0 for i ≠ j, through the gates too."""
    model = build("stem", 3, prior=("user",), domain=("page",))
    for task in range(3):
        x = inputs(model)
        model(x)[:, task].sum().backward()
        for other in range(3):
            assert bool(x[f"task_{other}"].grad.any()) == (other == task)
        assert x[SHARED].grad.any()


def test_unknown_feature_is_an_error():
    for key in ("prior", "domain"):
        with pytest.raises(UserError, match=rf"model.{key}: no feature 'usr'; the data has user, item, page, price"):
            build("shared_bottom", 2, **{key: ("user", "usr")})


def test_backbone_is_a_section_of_the_configuration():
    config = parse_config({"model": {"name": "pepnet", "backbone": {"name": "mmoe", "experts": 7}}}, "here")
    assert config.model.backbone == MODELS["mmoe"].config(experts=7)
    assert parse_config({"model": {"name": "pepnet"}}, "here").model.backbone == MODELS["shared_bottom"].config()


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("mmoe", "here: model.backbone: write a section, not 'mmoe'"),
        ({"name": "mmo"}, "here: model.backbone.name: no model 'mmo'; did you mean 'mmoe'"),
        ({"name": "pepnet"}, "here: model.backbone.name: pepnet cannot be gated"),
        ({"name": "mmoe", "bottom": [8]}, "here: unknown key 'model.backbone.bottom'"),
        (
            {"name": "mmoe", "expert_widths": [8, 0]},
            "here: model.backbone.expert_widths: write one whole number from 1 to 65536, not 0",
        ),
    ],
)
def test_mistakes_in_the_backbone(backbone, message):
    with pytest.raises(UserError, match=message):
        parse_config({"model": {"name": "pepnet", "backbone": backbone}}, "here")


def test_another_name_without_its_sizes_is_an_error():
    with pytest.raises(UserError, match=r"model.backbone.name: mmoe has other sizes; name it in a TOML file"):
        build("shared_bottom", 2, {"name": "mmoe"})


@each_case
def test_autocast_changes_logits_a_little(backbone, sizes, options):
    model = build(backbone, 3, sizes, **options)
    x = {name: value.detach().float() for name, value in inputs(model).items()}
    model = model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x)
    rounded.float().sum().backward()
    torch.testing.assert_close(rounded.float(), model(x), rtol=0.05, atol=0.02)
