"""From a module whose tables are on the meta device to one that is sharded; its optimisers; values of its tables."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Set
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from recmtl.config import Config
from recmtl.distributed.plan import Plan, sharders
from recmtl.errors import UserError
from recmtl.models.embeddings import table_of
from recmtl.objectives.train_module import TrainModule
from recmtl.optim.dense import dense_optimizer
from recmtl.optim.replicated import ReplicatedTables
from recmtl.optim.sparse import DENSE_EQUALS_FUSED, sparse_optimizer
from recmtl.runtime.private_api import ShardedTensor, apply_optimizer_in_backward

INIT_ROWS = 65536
"""Rows that one random generator fills: a shard draws the blocks it holds rows of, and no others."""


def parallelize(
    train_module: TrainModule, plan: Plan, config: Config, device: torch.device
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Shard the tables by `plan`, replicate the rest, and build the optimisers. The tables' values are not drawn.

    Sharded tables are updated inside backward. Data-parallel ones get their (dense) gradients averaged over ranks
    and the same optimiser as a dense one, in float32.

    Args:
        train_module: its tables are on the meta device, all else on `device`.
        plan: of its tables.
        config: of the run.
        device: of this rank.

    Returns:
        The model and one optimiser over everything, keyed by parameter name.

    Raises:
        UserError: the embeddings' optimiser is not there on this device, or not for data-parallel tables.
    """
    replicated = _replicated(plan)
    cls, arguments = sparse_optimizer(config.embedding, device.type)
    if replicated and config.embedding.optimizer not in DENSE_EQUALS_FUSED:
        # The fused ones move only the rows of a batch, a dense one all rows: results would depend on the placement.
        names = ", ".join(sorted(replicated))
        raise UserError(
            f"embedding.optimizer: no {config.embedding.optimizer} for data-parallel tables ({names}); choose "
            f"{', '.join(DENSE_EQUALS_FUSED)}, or embedding.placement sharded"
        )
    for module in train_module.modules():
        if isinstance(module, EmbeddingBagCollection):
            fused = [bag.weight for name, bag in module.embedding_bags.items() if name not in replicated]
            apply_optimizer_in_backward(cls, fused, dict(arguments))  # TorchRec renames its entries
        elif isinstance(module, EmbeddingCollection):
            fused = [embedding.weight for embedding in module.embeddings.values()]
            apply_optimizer_in_backward(cls, fused, dict(arguments))
    model = shard(train_module, plan, device)

    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    tables = {name: p for name, p in rest.items() if table_of(name)}
    # What a task weighting learns is no part of the network: no weight decay, no clipping, a rate of its own.
    weighting = {name: p for name, p in rest.items() if "weighting" in name.split(".")}
    dense = {name: p for name, p in rest.items() if name not in tables and name not in weighting}
    keyed = dense_optimizer(config.dense, dense, config.training.clip_norm)
    optimizers = [("embedding", model.fused_optimizer), ("dense", keyed)]
    if weighting:
        adam = KeyedOptimizerWrapper(weighting, lambda params: torch.optim.Adam(params, lr=config.weighting.lr))
        optimizers.append(("weighting", adam))
    if tables:
        # Under the same name as the sharded ones, so that a checkpoint fits either.
        dtype = getattr(torch, config.embedding.dtype)
        rounded = dtype if dtype != torch.float32 and device.type == "cpu" else None
        replicas = ReplicatedTables(tables, cls(list(tables.values()), **arguments), rounded)
        optimizers.append(("embedding", replicas))
    return model, CombinedOptimizer(optimizers)


class UndrawnTables(TorchFunctionMode):
    """Keeps TorchRec and FBGEMM from drawing the values of tables, each of them once, before they are drawn here."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.uniform_, Tensor.uniform_):
            return self.leave(args[0] if args else kwargs["tensor"])
        if func is torch.randn:
            return self.leave(torch.empty(*args, **kwargs))
        return func(*args, **kwargs)

    @staticmethod
    def leave(tensor: Tensor) -> Tensor:
        """What is done in place of drawing values: nothing."""
        return tensor


def shard(module: nn.Module, plan: Plan, device: torch.device) -> DistributedModelParallel:
    """Give the tables of a module memory where a plan puts them, not initialised, and replicate the rest.

    Args:
        module: its tables are on the meta device, all else on `device`.
        plan: of its tables.
        device: of this rank.
    """
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection):
            replicate_in_float32(part, _replicated(plan))
    with UndrawnTables():
        return DistributedModelParallel(
            module=module,
            device=device,
            plan=plan.sharding_plan,
            sharders=sharders(),
            # A single rank has nobody to average gradients with: it is spared the copies into buckets and the call.
            init_data_parallel=dist.get_world_size() > 1,
        )


def _replicated(plan: Plan) -> set[str]:
    """The tables that every rank holds whole."""
    return {table for table, kind in plan.table_types().items() if kind == "data_parallel"}


def replicate_in_float32(collection: EmbeddingBagCollection, tables: Set[str]) -> None:
    """Give tables that will be replicated float32 weights; see `ReplicatedTables`."""
    for table in collection.embedding_bag_configs():
        if table.name in tables:
            table.data_type = DataType.FP32
            collection.embedding_bags[table.name].float()


def table_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, int, int, int, int]]:
    """The pieces of tables on this rank: (table, piece, first row, first column, rows of the table, its dimension)."""
    for key, value in model.state_dict().items():
        if (table := table_of(key)) is None:
            continue
        if isinstance(value, ShardedTensor):
            rows, dim = value.size()
            for shard in value.local_shards():
                row, column = shard.metadata.shard_offsets
                yield table, shard.tensor, row, column, rows, dim
        else:
            yield table, value, 0, 0, value.shape[0], value.shape[1]


@torch.no_grad()
def initialize_tables(
    model: nn.Module,
    seed: int,
    scale: float,
    dtype: torch.dtype = torch.float32,
    stored: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Fill every table uniformly in ±scale/√rows, the same values of type `dtype` whatever the plan and the device.

    Args:
        model: sharded.
        seed: of the run.
        scale: largest absolute value, times √rows.
        dtype: what values are rounded to.
        stored: by table, how many of its first rows stay as they are; those of other tables are all filled.
    """
    for table, piece, first_row, first_column, rows, dim in table_weights(model):
        columns = slice(first_column, first_column + piece.shape[1])
        start, stop = max(first_row, stored.get(table, 0)), first_row + piece.shape[0]
        for low, values in _drawn(seed, table, scale / math.sqrt(rows), start, stop, dim):
            piece[low - first_row : low - first_row + len(values)].copy_(values[:, columns].to(dtype))


@torch.no_grad()
def draw_rows(
    model: nn.Module,
    chosen: Mapping[str, np.ndarray],
    seed: int,
    bounds: Mapping[str, float],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fill some rows as `initialize_tables` does: a row's value depends on seed, table, id and bound alone.

    Args:
        model: sharded.
        chosen: by table, whether to fill a row: bool [rows].
        seed: of the run.
        bounds: by table, the largest absolute value.
        dtype: what values are rounded to.
    """
    for table, piece, first_row, first_column, _, dim in table_weights(model):
        if table not in chosen:
            continue
        columns = slice(first_column, first_column + piece.shape[1])
        mine = chosen[table][first_row : first_row + piece.shape[0]]
        for start, stop in _block_bounds(first_row, first_row + len(mine)):
            places = np.flatnonzero(mine[start - first_row : stop - first_row])
            if len(places):
                [(_, values)] = _drawn(seed, table, bounds[table], start, start + int(places[-1]) + 1, dim)
                rows = torch.from_numpy(places)
                piece[(rows + (start - first_row)).to(piece.device)] = (
                    values[rows][:, columns].to(piece.device, dtype).to(piece.dtype)
                )


@torch.no_grad()
def copy_row(model: nn.Module, chosen: Mapping[str, np.ndarray], row: int) -> None:
    """Fill some rows of tables with what one row of the table holds.

    Args:
        model: sharded; all ranks call this together.
        chosen: by table, whether to fill a row: bool [rows].
        row: the one to copy.
    """
    pieces = [found for found in table_weights(model) if found[0] in chosen]
    device = next(model.parameters()).device
    for table in sorted(chosen):
        dim = next(value.size()[1] for key, value in model.state_dict().items() if key.endswith(f".{table}.weight"))
        # Whoever holds a part of the row says what is in it; the others say less than any number.
        values = torch.full((dim,), -math.inf, device=device)
        mine = [(piece, first, column) for name, piece, first, column, *_ in pieces if name == table]
        for piece, first, column in mine:
            if first <= row < first + len(piece):
                values[column : column + piece.shape[1]] = piece[row - first].float()
        dist.all_reduce(values, dist.ReduceOp.MAX)
        for piece, first, column in mine:
            rows = torch.from_numpy(chosen[table][first : first + len(piece)]).to(device)
            piece[rows] = values[column : column + piece.shape[1]].to(piece.dtype)


def _block_bounds(first: int, last: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts of rows first … last − 1 that lie in one block; none where there is no such row."""
    for block in range(first // INIT_ROWS, -(-last // INIT_ROWS) if first < last else 0):
        yield max(first, block * INIT_ROWS), min(last, (block + 1) * INIT_ROWS)


def _drawn(seed: int, table: str, bound: float, first: int, last: int, dim: int) -> Iterator[tuple[int, Tensor]]:
    """The initial values [n, dim] of rows first … last − 1, block by block, each with its first row."""
    for low, high in _block_bounds(first, last):
        block = low // INIT_ROWS
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{table}/{block}".encode()))
        # Rows are drawn in order: how many follow does not change them.
        values = torch.rand(high - block * INIT_ROWS, dim, generator=generator).mul_(2 * bound).sub_(bound)
        yield low, values[low - block * INIT_ROWS :]
