"""What a run is tied to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from recmtl.config.sections import Config
from recmtl.config.toml import read_toml, to_toml, tomllib
from recmtl.errors import UserError

RESUME_KEYS = (
    "model",
    "embedding.dim",
    "embedding.dtype",
    "embedding.optimizer",
    "interaction",
    "sequence",
    "dense.optimizer",
    "weighting.method",
    "training.batch_size",
    "training.seed",
    "training.tasks",
    "metrics.monitor",
    "reader.streams",
    "reader.shuffle",
)
"""Sections and keys that a run is tied to: its checkpoints hold weights of these sizes, a place in this order of rows,
and the best value so far of what is monitored."""


START_KEYS = ("model", "embedding.dim", "embedding.optimizer", "interaction", "sequence", "dense.optimizer")
"""Sections and keys that a run has in common with the one that it starts from: weights and states fit no others."""


def check_continues(path: Path, config: Config) -> None:
    """Refuse to go on with a run under another configuration than its own, where that matters.

    Args:
        path: the run's ``config.toml``.
        config: what to go on with; learning rates, lengths and places may differ.

    Raises:
        UserError: a key of `RESUME_KEYS` differs; names it and both values.
    """
    _check_keys(path, config, RESUME_KEYS, "go on with that, or name another --run folder")


def check_starts(path: Path, config: Config) -> None:
    """Refuse to start a run from another one whose weights or optimiser states would not fit.

    Args:
        path: ``config.toml`` of the run to start from.
        config: of the run to start.

    Raises:
        UserError: a key of `START_KEYS` differs; names it and both values.
    """
    _check_keys(path, config, START_KEYS, "start with that, or train anew without --start-from")


def _check_keys(path: Path, config: Config, keys: tuple[str, ...], advice: str) -> None:
    before, now = read_toml(path), tomllib.loads(to_toml(config))
    for fixed in keys:
        section, _, key = fixed.partition(".")
        old, new = before.get(section, {}), now[section]
        for name in [key] if key else new:
            if name in old and old[name] != new[name]:
                raise UserError(f"{path}: the run has {section}.{name} {old[name]}, not {new[name]}; {advice}")


def sha256(config: Config) -> str:
    """Fingerprint of the resolved configuration."""
    return hashlib.sha256(to_toml(config).encode()).hexdigest()
