"""Encoders of histories, one file each, by the names that `sequence.encoder` takes."""

from __future__ import annotations

from collections.abc import Sequence

from recmtl.config import SequenceConfig
from recmtl.errors import UserError
from recmtl.models.sequences.base import History, SequenceEncoder
from recmtl.models.sequences.hstu import HSTU
from recmtl.models.sequences.mean import Mean
from recmtl.models.sequences.target_attention import TargetAttention
from recmtl.models.sequences.transformer import Transformer

ENCODERS: dict[str, type[SequenceEncoder]] = {
    "mean": Mean,
    "target_attention": TargetAttention,
    "transformer": Transformer,
    "hstu": HSTU,
}


def encoder_class(history: History, config: SequenceConfig) -> type[SequenceEncoder]:
    """What encodes a history: what the configuration names, or, where there is no target to attend to, their mean."""
    without_target = config.encoder == "target_attention" and not history.targets
    return Mean if without_target else ENCODERS[config.encoder]


def check_histories(histories: Sequence[History], config: SequenceConfig) -> None:
    """Refuse an encoder that does not go with the histories.

    Raises:
        UserError: no history has a target to attend to, or the heads do not share the width.
    """
    if config.encoder == "target_attention" and not any(history.targets for history in histories):
        raise UserError(
            "sequence.encoder: target_attention compares events with the row, and no sequence of the recipe has a "
            "target; give one a target and prepare the data again, or choose another encoder"
        )
    if config.encoder in ("transformer", "hstu") and config.dim % config.heads:
        raise UserError(f"sequence.dim: {config.dim} is no multiple of sequence.heads {config.heads}; choose another")


__all__ = ["ENCODERS", "History", "SequenceEncoder", "check_histories", "encoder_class"]
