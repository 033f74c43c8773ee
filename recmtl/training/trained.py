"""A run folder as something to use: its model, and all that turns raw files into what the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recmtl.config import Config, load_run_config
from recmtl.data.recipe import Recipe, load_recipe
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.models.ranking_model import RankingModel
from recmtl.runtime.storage import exists, read_json
from recmtl.schema import ENCODER, RECIPE, Dataset, Task
from recmtl.training.checkpoint_folder import best_checkpoint
from recmtl.training.results import RESULTS
from recmtl.training.runs import trained_dataset


@dataclass(frozen=True)
class TrainedRun:
    """The best model of a run.

    Args:
        folder: of the run.

    Raises:
        UserError: a file of the run is missing or damaged; so do the properties.
    """

    folder: Path

    @cached_property
    def config(self) -> Config:
        """The run's configuration."""
        return load_run_config(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        """What it was trained on."""
        return trained_dataset(self.folder)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that it predicts."""
        return self.dataset.select_tasks(tuple(self.config.training.tasks))

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of its data."""
        return load_recipe(str(self._there(RECIPE)))

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of its data."""
        return Encoder.load(self._there(ENCODER))

    @cached_property
    def checkpoint(self) -> Path:
        """Of the best epoch."""
        return best_checkpoint(self.folder)

    @property
    def results(self) -> dict[str, Any] | None:
        """What was measured at the end; None: the run is not finished."""
        path = self.folder / RESULTS
        try:
            return read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}); train the run to its end again") from None

    def make_model(self) -> RankingModel:
        """The model before its weights, its tables on the meta device."""
        return RankingModel.from_config(self.config, self.dataset, self.tasks)

    def _there(self, name: str) -> Path:
        path = self.folder / name
        if not exists(path):
            raise UserError(f"{path}: missing; the run was trained on data that `recmtl prepare` did not write")
        return path
