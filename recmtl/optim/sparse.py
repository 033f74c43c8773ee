"""The optimiser of the embedding tables, which runs inside the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from recmtl.config import EmbeddingConfig
from recmtl.errors import UserError

CPU_SPARSE_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd")
"""Those that FBGEMM has on CPUs."""
DENSE_EQUALS_FUSED = ("rowwise_adagrad", "adagrad", "sgd")
"""Those that leave a row without a gradient as it is, so that a dense one does what the fused one does."""


def sparse_optimizer(config: EmbeddingConfig, device: str) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and arguments of the embeddings' optimiser.

    Raises:
        UserError: FBGEMM has it on GPUs only, or its states cannot begin anew with the tables.
    """
    if device == "cpu" and config.optimizer not in CPU_SPARSE_OPTIMIZERS:
        names = ", ".join(CPU_SPARSE_OPTIMIZERS)
        raise UserError(f"embedding.optimizer: no {config.optimizer} on the CPU; choose one of {names}")
    if config.reinitialize and config.optimizer not in DENSE_EQUALS_FUSED:
        # FBGEMM's Adam counts steps for all tables together, and would take states of 0 for old ones.
        names = ", ".join(DENSE_EQUALS_FUSED)
        raise UserError(
            f"embedding.reinitialize: not with embedding.optimizer {config.optimizer}; choose one of {names}"
        )
    if config.optimizer == "rowwise_adam":
        from torchrec.optim import PartialRowWiseAdam  # imports a CUDA-only kernel's front end

        return PartialRowWiseAdam, {"lr": config.lr, "eps": config.eps}
    classes: dict[str, type[torch.optim.Optimizer]] = {
        "rowwise_adagrad": RowWiseAdagrad,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
    }
    arguments = {"lr": config.lr} if config.optimizer == "sgd" else {"lr": config.lr, "eps": config.eps}
    return classes[config.optimizer], arguments
