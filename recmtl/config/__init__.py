"""The configuration of a run: typed sections, models by name, TOML files and presets. It imports no PyTorch."""

from recmtl.config.interaction import InteractionConfig
from recmtl.config.load import (
    PRESETS,
    config_class,
    config_path,
    load_config,
    load_run_config,
    parse_config,
    preset_names,
)
from recmtl.config.models import MODELS, ModelConfig, ModelEntry, find_model
from recmtl.config.resume import RESUME_KEYS, check_continues, check_starts, sha256
from recmtl.config.sections import (
    CheckpointConfig,
    Config,
    DenseConfig,
    EmbeddingConfig,
    MetricsConfig,
    ReaderConfig,
    ShardingConfig,
    ShardingType,
    TrainingConfig,
    WeightingConfig,
)
from recmtl.config.sequence import SequenceConfig
from recmtl.config.toml import read_toml, to_toml, tomllib

__all__ = [
    "MODELS",
    "PRESETS",
    "RESUME_KEYS",
    "CheckpointConfig",
    "Config",
    "DenseConfig",
    "EmbeddingConfig",
    "InteractionConfig",
    "MetricsConfig",
    "ModelConfig",
    "ModelEntry",
    "ReaderConfig",
    "SequenceConfig",
    "ShardingConfig",
    "ShardingType",
    "TrainingConfig",
    "WeightingConfig",
    "check_continues",
    "check_starts",
    "config_class",
    "config_path",
    "find_model",
    "load_config",
    "load_run_config",
    "parse_config",
    "preset_names",
    "read_toml",
    "sha256",
    "to_toml",
    "tomllib",
]
