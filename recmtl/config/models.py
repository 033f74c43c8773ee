"""The sizes of every model and the registry of the models by name. Importing it imports no model, and so no PyTorch."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from recmtl.errors import UserError, nearest
from recmtl.typed import Fraction, NonNegative, Size


@dataclass
class ModelConfig:
    """Base of the models' sizes: the `model` section of a run's configuration."""

    name: str
    """Model name."""
    gateable: ClassVar[bool] = True
    """The model has towers that PEPNet can gate, and a loss that reads nothing but their logits."""

    @classmethod
    def resolve(cls, values: Mapping[str, Any]) -> type:
        """The class itself, or what it becomes for these values of the `model` section."""
        return cls


@dataclass
class SingleTaskConfig(ModelConfig):
    """Sizes of the single-task model."""

    name: str = "single_task"
    """Model name."""
    tower: tuple[Size, ...] = (128, 64)
    """Hidden widths of the tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""


@dataclass
class SharedBottomConfig(ModelConfig):
    """Sizes of the shared-bottom model."""

    name: str = "shared_bottom"
    """Model name."""
    bottom: tuple[Size, ...] = (256, 128)
    """Hidden widths of the shared MLP."""
    tower: tuple[Size, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""


@dataclass
class MMoEConfig(ModelConfig):
    """Sizes of MMoE."""

    name: str = "mmoe"
    """Model name."""
    experts: Size = 4
    """Number of experts K."""
    expert_widths: tuple[Size, ...] = (128,)
    """Hidden widths of each expert; the last one is its output."""
    gate: tuple[Size, ...] = ()
    """Hidden widths of each gate; none: the paper's linear gate."""
    tower: tuple[Size, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit in experts and towers."""


@dataclass
class OMoEConfig(ModelConfig):
    """Sizes of OMoE."""

    name: str = "omoe"
    """Model name."""
    experts: Size = 4
    """Number of experts K."""
    expert_widths: tuple[Size, ...] = (128,)
    """Hidden widths of each expert; the last one is its output."""
    gate: tuple[Size, ...] = ()
    """Hidden widths of the gate; none: the paper's linear gate."""
    tower: tuple[Size, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit in experts and towers."""


@dataclass
class CGCConfig(ModelConfig):
    """Sizes of CGC."""

    name: str = "cgc"
    """Model name."""
    shared_experts: Size = 2
    """Number of experts that all tasks share."""
    task_experts: Size = 1
    """Number of experts of each task's own."""
    expert_widths: tuple[Size, ...] = (128,)
    """Hidden widths of each expert; the last one is its output."""
    gate: tuple[Size, ...] = ()
    """Hidden widths of each gate; none: the paper's linear gate."""
    tower: tuple[Size, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit in experts and towers."""


@dataclass
class PLEConfig(CGCConfig):
    """Sizes of PLE."""

    name: str = "ple"
    """Model name."""
    levels: Size = 2
    """Number of levels, all of the same sizes; with one level it is CGC."""


@dataclass
class AdaTTConfig(ModelConfig):
    """Sizes of AdaTT."""

    name: str = "adatt"
    """Model name."""
    levels: Size = 2
    """Number of fusion levels, all of the same sizes."""
    task_experts: Size = 2
    """Number of experts of each task's own."""
    expert_widths: tuple[Size, ...] = (64,)
    """Hidden widths of each expert; the last one is its output."""
    gate: tuple[Size, ...] = ()
    """Hidden widths of each gate; none: the paper's linear gate."""
    tower: tuple[Size, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit in experts and towers."""


@dataclass
class HoMEConfig(ModelConfig):
    """Sizes of HoME."""

    name: str = "home"
    """Model name."""
    groups: dict[str, str] = field(default_factory=dict)
    """Group of each task, by the task's name: tasks of one kind share experts (click = "watch", like = "interact"). A
    task that is not named is a group of its own."""
    shared_experts: Size = 2
    """Number of experts that all tasks share, on both levels."""
    group_experts: Size = 1
    """Number of experts of each group's own, on both levels."""
    task_experts: Size = 1
    """Number of experts of each task's own, on the second level."""
    expert_widths: tuple[Size, ...] = (64,)
    """Hidden widths of each expert, on both levels; the last one is its output."""
    rank: Size = 16
    """Rank of the feature gates."""
    gate: tuple[Size, ...] = ()
    """Hidden widths of each gate and self-gate; none: linear ones."""
    tower: tuple[Size, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit in experts and towers."""


@dataclass
class STEMConfig(CGCConfig):
    """Sizes of STEM."""

    name: str = "stem"
    """Model name."""
    levels: Size = 1
    """Number of levels of gated experts, all of the same sizes."""
    cross_task: bool = True
    """A task's gate also mixes the experts of the other tasks."""
    stop_gradient: bool = True
    """It does so forward only: no task trains another one's experts or tables."""


@dataclass
class MEMMoEConfig(MMoEConfig):
    """Sizes of ME-MMoE."""

    name: str = "me_mmoe"
    """Model name."""


@dataclass
class MEPLEConfig(CGCConfig):
    """Sizes of ME-PLE."""

    name: str = "me_ple"
    """Model name."""
    levels: Size = 1
    """Number of levels, all of the same sizes."""


@dataclass
class ESMMConfig(ModelConfig):
    """Sizes of ESMM."""

    name: str = "esmm"
    """Model name."""
    tower: tuple[Size, ...] = (128, 64)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""


@dataclass
class ESCM2Config(ESMMConfig):
    """Sizes of ESCM²."""

    name: str = "escm2"
    """Model name."""
    regularizer: Literal["ips", "dr"] = "dr"
    """Loss of a conditional probability: inverse propensities, or doubly robust, with towers that impute errors."""
    counterfactual: NonNegative = 0.1
    """Weight λ of that loss; 0: ESMM."""
    clip: Annotated[float, Interval(ge=1e-4, le=1)] = 0.02
    """Least propensity p(parent) to divide by: the smaller, the less biased and the noisier."""
    gateable: ClassVar[bool] = False


@dataclass
class AITMConfig(ModelConfig):
    """Sizes of AITM."""

    name: str = "aitm"
    """Model name."""
    bottom: tuple[Size, ...] = (128, 64)
    """Hidden widths of each task's bottom MLP; the last one is K, the width of q and z."""
    transfer: tuple[Size, ...] = ()
    """Hidden widths of each transfer MLP before its last layer of width K; none: one layer, as the authors'."""
    tower: tuple[Size, ...] = ()
    """Hidden widths of each task's tower; none: the paper's one linear layer."""
    alpha: NonNegative = 0.6
    """Weight α of the calibrator, for tasks whose parent the recipe names with the relation `given`; 0: none."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit in bottoms, transfers and towers."""


@dataclass
class ResFlowConfig(ModelConfig):
    """Sizes of ResFlow."""

    name: str = "resflow"
    """Model name."""
    tower: tuple[Size, ...] = (128, 64)
    """Hidden widths of each task's tower."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""


@dataclass
class PEPNetConfig(ModelConfig):
    """Sizes of PEPNet. `backbone` holds those of the model it wraps, of whichever class that is."""

    name: str = "pepnet"
    """Model name."""
    prior: tuple[str, ...] = ()
    """Features to personalise by, by name: who and what it is about, such as user and item; none: all."""
    domain: tuple[str, ...] = ()
    """Features by which EPNet gates the embeddings: where a row comes from, such as page or country; none: `prior`."""
    gate: tuple[Size, ...] = (64,)
    """Hidden widths of each gate."""
    backbone: Any = field(default_factory=SharedBottomConfig)
    """The model section of the model to wrap: its name and its sizes."""
    gateable: ClassVar[bool] = False

    @classmethod
    def resolve(cls, values: Mapping[str, Any]) -> type:
        """With the sizes of the backbone that the section names.

        Raises:
            UserError: there is no such model, or it cannot be gated.
        """
        backbone = values.get("backbone")
        name = backbone.get("name", SharedBottomConfig.name) if isinstance(backbone, dict) else SharedBottomConfig.name
        sizes = find_model(name, "model.backbone.name").config
        if not sizes.gateable:
            raise UserError(f"model.backbone.name: {name} cannot be gated; choose another model")
        return _around(sizes)  # type: ignore[arg-type]  # mypy takes the class for unhashable, as its instances are


@functools.cache
def _around(backbone: type) -> type:
    """PEPNet's sizes with the backbone's typed, so that its keys are checked and shown in help."""
    return dataclasses.make_dataclass(
        "PEPNetConfig",
        [("backbone", backbone, field(default_factory=backbone))],
        bases=(PEPNetConfig,),
        namespace={"__doc__": PEPNetConfig.__doc__},
    )


@dataclass(frozen=True)
class ModelEntry:
    """A model of the registry."""

    config: type[Any]
    """Its sizes, a `ModelConfig`."""
    implementation: str | type
    """``module:Class``, which is imported when a model is built, or the class."""
    description: str
    """One line."""

    def load(self) -> type[Any]:
        """The model's class."""
        if isinstance(self.implementation, str):
            module, _, name = self.implementation.partition(":")
            return getattr(importlib.import_module(module), name)
        return self.implementation


MODELS: dict[str, ModelEntry] = {
    "single_task": ModelEntry(
        SingleTaskConfig, "recmtl.models.single_task:SingleTask", "one tower on the embeddings, for one task"
    ),
    "shared_bottom": ModelEntry(
        SharedBottomConfig,
        "recmtl.models.shared_bottom:SharedBottom",
        "one MLP for all tasks, then a tower each (Caruana, 1997)",
    ),
    "mmoe": ModelEntry(MMoEConfig, "recmtl.models.mmoe:MMoE", "multi-gate mixture of experts (Ma et al., KDD 2018)"),
    "omoe": ModelEntry(OMoEConfig, "recmtl.models.omoe:OMoE", "one mixture of experts for all (Ma et al., KDD 2018)"),
    "cgc": ModelEntry(
        CGCConfig, "recmtl.models.cgc:CGC", "experts of each task's own beside shared ones (Tang et al., RecSys 2020)"
    ),
    "ple": ModelEntry(PLEConfig, "recmtl.models.ple:PLE", "CGC in levels, step by step (Tang et al., RecSys 2020)"),
    "adatt": ModelEntry(
        AdaTTConfig,
        "recmtl.models.adatt:AdaTT",
        "every task takes from every task's experts and keeps its own (Li et al., KDD 2023)",
    ),
    "home": ModelEntry(
        HoMEConfig,
        "recmtl.models.home:HoME",
        "normalised experts of groups of tasks, then of tasks (Wang et al., KDD 2025)",
    ),
    "stem": ModelEntry(
        STEMConfig,
        "recmtl.models.stem:STEM",
        "embedding tables of every task's own beside shared ones (Su et al., AAAI 2024)",
    ),
    "me_mmoe": ModelEntry(
        MEMMoEConfig,
        "recmtl.models.me_mmoe:MEMMoE",
        "MMoE whose experts read different embedding tables (a baseline of Su et al., AAAI 2024)",
    ),
    "me_ple": ModelEntry(
        MEPLEConfig,
        "recmtl.models.me_ple:MEPLE",
        "PLE on embedding tables of every task's own (a baseline of Su et al., AAAI 2024)",
    ),
    "esmm": ModelEntry(
        ESMMConfig,
        "recmtl.models.esmm:ESMM",
        "probabilities multiplied along the funnel, over all rows (Ma et al., SIGIR 2018)",
    ),
    "escm2": ModelEntry(
        ESCM2Config,
        "recmtl.models.escm2:ESCM2",
        "ESMM with a counterfactual loss of the conditional probabilities (Wang et al., SIGIR 2022)",
    ),
    "aitm": ModelEntry(
        AITMConfig,
        "recmtl.models.aitm:AITM",
        "each task also attends to what the task before it learned (Xi et al., KDD 2021)",
    ),
    "resflow": ModelEntry(
        ResFlowConfig,
        "recmtl.models.resflow:ResFlow",
        "residuals from the parent's tower into the child's, layer by layer (Fu et al., KDD 2024)",
    ),
    "pepnet": ModelEntry(
        PEPNetConfig,
        "recmtl.models.pepnet:PEPNet",
        "another model, with gates on its features and its towers (Chang et al., KDD 2023)",
    ),
}
"""Add a model from outside the package before the command line runs:
``MODELS["linear"] = ModelEntry(LinearConfig, "my_package.linear:Linear", "what it is")``."""


def find_model(name: str, key: str = "model.name") -> ModelEntry:
    """The model called `name`.

    Raises:
        UserError: there is none; names the configuration's `key`.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{key}: no model '{name}'; {nearest(str(name), MODELS)}")
    return MODELS[name]
