"""bfloat16 autocast of the dense part: hidden layers round, logits do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recmtl.config import MODELS, load_config
from recmtl.config.models import SharedBottomConfig
from recmtl.models.layers import Towers
from recmtl.models.ranking_model import RankingModel
from recmtl.schema import Dataset, Feature, Table, Task

ROWS, WIDTH = 4096, 32


def model_of(name: str, amp: bool, **sizes: object) -> RankingModel:
    """A model with a preset's sizes, the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    tasks = (Task("click"), Task("buy", parent="click"), Task("like", parent="click", relation="given_not"))
    tasks = tasks[:1] if name == "single_task" else tasks
    config = replace(load_config(name).model, **sizes)
    if name == "home":
        config.groups = {}
    if name == "me_mmoe":
        config.experts = max(config.experts, len(tasks) + 1)
    dataset = Dataset("d", {}, (Table("user", 2),), (Feature("user", table="user"),), tasks)
    return RankingModel(dataset, tasks, config, dim=WIDTH, amp=amp).eval()


def logits_of(model: RankingModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = {name: torch.randn(ROWS, WIDTH, generator=generator) for name in model.embeddings.regroup.keys}
    with torch.no_grad():
        return model.score(x, torch.empty(ROWS, 0))


CASES = [*((name, {}) for name in MODELS), ("pepnet", {"backbone": SharedBottomConfig(bottom=(), tower=())})]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_rows_that_differ_have_logits_that_differ(name, sizes):
    precise, rounded = (logits_of(model_of(name, amp, **sizes)) for amp in (False, True))
    assert rounded.dtype == torch.float32
    for task in range(rounded.shape[1]):
        assert len(rounded[:, task].unique()) > 4000
        spread = precise[:, task].std()
        assert (rounded[:, task] - precise[:, task]).abs().max() < 0.1 * spread


@pytest.mark.parametrize("hidden", [(), (8,), (8, 8)])
@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (2, ROWS, WIDTH)])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_last_layer_of_a_tower_alone_is_float32(hidden, shape, scaled):
    torch.manual_seed(0)
    towers, x = Towers(2, WIDTH, hidden), torch.randn(shape)
    seen: list[torch.dtype] = []
    towers.mlps.dropout.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    scales = [torch.rand(2, ROWS, width).bfloat16() for width in towers.mlps.in_widths] if scaled else []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = towers(x, scales)
    assert logits.dtype == torch.float32
    assert seen == [torch.bfloat16] * len(hidden)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in towers.parameters())
