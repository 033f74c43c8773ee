"""bfloat16 autocast of the dense part: hidden layers round, logits do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recmtl.config import MODELS, WeightingConfig, load_config
from recmtl.config.models import SharedBottomConfig
from recmtl.data.batch import Batch
from recmtl.data.dataset import Task
from recmtl.models import Inputs
from recmtl.models.head import Head
from recmtl.models.layers import Towers

ROWS, WIDTH = 4096, 32


def head_of(name: str, amp: bool, **sizes: object) -> Head:
    """A model with a preset's sizes, the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    tasks = (Task("click"), Task("buy", parent="click"), Task("like", parent="click", relation="given_not"))
    tasks = tasks[:1] if name == "single_task" else tasks
    config = replace(load_config(name).model, **sizes)
    if name == "home":
        config.groups = {}
    if name == "me_mmoe":
        config.experts = max(config.experts, len(tasks) + 1)
    model = MODELS[name].load()(config, Inputs(tasks, WIDTH, {}))
    return Head(model, amp, WeightingConfig()).eval()


def logits_of(head: Head) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    groups = head.model.embedding_groups(head.model.config, head.model.inputs.tasks)
    x = {group: torch.randn(ROWS, WIDTH, generator=generator) for group in groups}
    labels = torch.zeros(ROWS, len(head.model.inputs.tasks))
    batch = Batch(None, torch.empty(ROWS, 0), labels, torch.full((ROWS,), 1 / ROWS), ROWS)  # type: ignore[arg-type]
    with torch.no_grad():
        return head(x, batch)[1][1]


CASES = [*((name, {}) for name in MODELS), ("pepnet", {"backbone": SharedBottomConfig(bottom=(), tower=())})]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_rows_that_differ_have_logits_that_differ(name, sizes):
    precise, rounded = (logits_of(head_of(name, amp, **sizes)) for amp in (False, True))
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
