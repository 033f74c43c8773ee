"""docs/models.md: a section a model, and an example that works as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import torch

from recmtl.config import MODELS, ModelEntry, parse_config
from recmtl.models import Inputs, Model
from recmtl.schema import Task

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_every_model_has_a_section_and_no_other():
    assert sorted(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == sorted(MODELS)


def test_the_example_is_a_model(monkeypatch):
    [source] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = types.ModuleType("linear_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(source, module.__dict__)
    name = module.LinearConfig().name
    assert name not in MODELS
    monkeypatch.setitem(MODELS, name, ModelEntry(module.LinearConfig, f"{module.__name__}:Linear", "linear"))
    config = parse_config({"model": {"name": name}}, "here").model
    model: Model = MODELS[name].load()(config, Inputs((Task("a"), Task("b")), 6, {}))
    logits = model({"shared": torch.randn(5, 6)})
    assert logits.shape == (5, 2)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
