"""Where the host would wait for a GPU in the dense part of a training step, told without one: `python host_waits.py`.

Fake tensors have a device and a shape and no values, here on a stand-in for a GPU. So whatever asks for a value raises,
as `item` and an index by a mask do, and so does whatever makes a tensor on the device out of Python numbers, a copy
from the host. Copies between devices that are asked for are found by looking at every operation.

Prints a line for every model and weighting of which the host waits: model, method, what for.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from toy import write_toy

from recmtl.config import MODELS, SequenceConfig, WeightingConfig
from recmtl.data.read.batch import Batch
from recmtl.models.ranking_model import RankingModel
from recmtl.models.sequences import ENCODERS
from recmtl.objectives.train_module import TrainModule
from recmtl.objectives.weighting import METHODS
from recmtl.schema import Dataset, Feature, Table, Task

TASKS = (Task("click", weight=2.0), Task("like", weight=0.5, parent="click"), Task("follow", parent="click"))
ROWS = 8
DEVICE = "gpu"


class Backend(_DummyBackendModule):
    """The stand-in."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Asked for where autocast is switched off."""
        return [torch.bfloat16]


class Copies(TorchDispatchMode):
    """Collects operations that read one device and write another, but for copies that do not hold up the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._pin_memory.default:
            return args[0]
        out = func(*args, **(kwargs or {}))
        copy = func is torch.ops.aten._to_copy.default
        # A single number of the host is handed to a kernel as it is.
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor) and (t.dim() or copy)]
        if len({tensor.device.type for tensor in tensors}) > 1 and not (copy and (kwargs or {}).get("non_blocking")):
            self.found.append(str(func))
        return out


def like(tensor: Tensor) -> Tensor:
    """On the stand-in."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def move(module: nn.Module) -> None:
    """As `module.to(DEVICE)`, which fake parameters refuse."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(like(parameter))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = like(buffer)


def waits_of(dataset: Dataset, name: str, method: str, uneven: bool) -> list[str]:
    """What the host waits for in a step of a model."""
    tasks = TASKS if name != "single_task" else TASKS[:1]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = RankingModel(dataset, tasks, MODELS[name].config(), dim=8)
        train_module = TrainModule(model, WeightingConfig(method=method), uneven=uneven)  # type: ignore[arg-type]
        move(model.dense)
        move(train_module.weighting)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, device=DEVICE)

        numbers = len(dataset.dense_features)
        pooled = {
            table_set: draw(ROWS, model.embeddings.width - numbers).requires_grad_()
            for table_set in model.embeddings.regroup.keys
        }
        weights = draw(ROWS, len(tasks)) if uneven else None
        ids = KeyedJaggedTensor([], draw(0), lengths=draw(0))
        batch = Batch(ids, draw(ROWS, numbers), draw(ROWS, len(tasks)), draw(ROWS), ROWS, row_weights=weights)
        with Copies() as copies:
            try:
                loss, _ = train_module.loss(pooled, batch)
                loss.backward()
            except (NotImplementedError, RuntimeError) as error:
                # Of the two, PyTorch raises either where a value is asked for.
                copies.found.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return copies.found


HISTORIES = Dataset(
    "histories",
    {},
    (Table("user", 9), Table("item", 9)),
    (
        Feature("user", table="user"),
        Feature("item", table="item"),
        Feature("tags", "list", table="item", pooling="mean"),
        Feature("last", "sequence", table="item", history="before", target="item"),
    ),
    TASKS[:1],
)


def waits_of_encoder(encoder: str) -> list[str]:
    """What the host waits for where histories are encoded."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        sequence = SequenceConfig(encoder=encoder, layers=2)  # type: ignore[arg-type]
        model = RankingModel(HISTORIES, HISTORIES.tasks, MODELS["mmoe"].config(), dim=8, sequence=sequence)
        assert model.histories is not None
        move(model.histories)
        counts = {"user": ROWS, "item": ROWS, "tags": 3 * ROWS, "last": 5 * ROWS}
        lengths = torch.empty(len(counts) * ROWS, dtype=torch.int32, device=DEVICE)
        ids = torch.empty(sum(counts.values()), dtype=torch.int32, device=DEVICE)
        sparse = KeyedJaggedTensor(list(counts), ids, lengths=lengths, length_per_key=list(counts.values()))
        rows = {
            name: JaggedTensor(torch.rand(counts[name], 8, device=DEVICE).requires_grad_(), lengths=lengths[:ROWS])
            for name in ("item", "tags", "last")
        }
        pooled = torch.rand(ROWS, 8, device=DEVICE).requires_grad_()
        with Copies() as copies:
            try:
                model.histories({"shared": pooled}, [rows], sparse, {"last": 7})["shared"].sum().backward()
            except (NotImplementedError, RuntimeError) as error:
                copies.found.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return copies.found


def cases() -> Iterator[tuple[str, str, bool]]:
    """Every model, and every method with the model that needs most of it."""
    for name in MODELS:
        for uneven in (False, True):
            yield name, "fixed", uneven
    for method in METHODS:
        yield "aitm", method, True


def main() -> None:
    """Print what is found."""
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=Backend())
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_toy(Path(folder) / "data", {"train": 8, "val": 0, "test": 0})
    for encoder in ENCODERS:
        for found in waits_of_encoder(encoder):
            print(encoder, found)
    for name, method, uneven in cases():
        tasks = TASKS if name != "single_task" else TASKS[:1]
        for found in waits_of(replace(dataset, tasks=tasks), name, method, uneven):
            print(name, method, found)


if __name__ == "__main__":
    sys.exit(main())
