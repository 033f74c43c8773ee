"""What of a sharded model a checkpoint holds: weights, states of both optimisers, states of random generators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recmtl.distributed.context import DistContext
from recmtl.training.sharded import ShardedModel


def session_state(session: ShardedModel) -> dict[str, Any]:
    """All that goes into a checkpoint but ``train_state.json``; the tensors are those that training goes on with."""
    state = {"model": session.model.state_dict(), "optimizer": session.optimizer.state_dict()}
    return state | random_state(session.context)


def kind_of_ranks(context: DistContext) -> dict[str, Any]:
    """Their number and device: saved random states fit no others."""
    return {"world_size": context.world_size, "device": context.device.type}


def random_state(context: DistContext) -> dict[str, Tensor]:
    """State of this rank's random generators (dropout draws from them)."""
    state = {f"random/{context.rank}": torch.get_rng_state()}
    if context.device.type == "cuda":
        state[f"random/{context.rank}/cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(context: DistContext, state: dict[str, Tensor]) -> None:
    """Set this rank's random generators to what `random_state` gave."""
    torch.set_rng_state(state[f"random/{context.rank}"])
    if context.device.type == "cuda":
        torch.cuda.set_rng_state(state[f"random/{context.rank}/cuda"])
