"""The models: dense networks on pooled embeddings, one file each. `recmtl.config.MODELS` has them by name."""

from recmtl.models.base import Inputs, Model

__all__ = ["Inputs", "Model"]
