"""A run's ``checkpoints`` folder: which there are, which counts, how one gets its name and how old ones go.

``step-<n>`` is a checkpoint, complete or absent. Names that begin with a dot are on their way: ``.step-<n>.tmp`` is
being written, ``.step-<n>.old`` replaced, ``.step-<n>.gone`` removed. In an object store, where no folder is renamed at
once, ``step-<n>`` is written itself, and is a checkpoint when its manifest is there.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from recmtl.errors import UserError
from recmtl.runtime.folders import discard_folder, is_whole, move_folder
from recmtl.runtime.storage import (
    exists,
    is_folder,
    list_folder,
    make_afresh,
    os_errors,
    remove_folder,
    rename,
    renames_folders,
    sync_folder,
)
from recmtl.training.manifest import MANIFEST
from recmtl.training.train_state import TRAIN_STATE, read_state


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint written after `step` steps."""
    return folder / f"step-{step:09d}"


def checkpoint_step(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def unfinished_path(final: Path) -> Path:
    """Where a checkpoint is written before it is complete."""
    return final.with_name(f".{final.name}.tmp") if renames_folders(final) else final


def make_unfinished(final: Path) -> None:
    """Make the empty folder where a checkpoint is written; one that is there already stays under another name."""
    unfinished = unfinished_path(final)
    if unfinished == final and is_whole(final, MANIFEST):
        move_folder(final, _replaced_path(final), MANIFEST)
    make_afresh(unfinished)


def _replaced_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    with os_errors(folder):
        return [path for path in list_folder(folder, "step-*") if is_whole(path, MANIFEST)]


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of a run's best epoch; the newest one when no epoch is complete.

    Raises:
        UserError: the run has none, or not that one.
    """
    folder = run / "checkpoints"
    paths = checkpoint_paths(folder)
    if not paths:
        raise UserError(f"{run}: no checkpoint in it; train the run first")
    newest = next((found for path in reversed(paths) if (found := read_state(path))), None)
    if newest is None:
        raise UserError(f"{paths[-1]}: {TRAIN_STATE} is missing or damaged")
    best = checkpoint_path(folder, newest.best_step) if newest.best_step else paths[-1]
    if best not in paths:
        raise UserError(f"{best}: missing; it is the checkpoint of the best epoch")
    return best


def give_name(unfinished: Path, final: Path) -> None:
    """Make a folder that is written the checkpoint `final`, in place of one of the same step where there is one."""
    replaced = _replaced_path(final)
    if unfinished != final:
        sync_folder(unfinished)
        if exists(final):  # the old one goes only when the new one is there
            rename(final, replaced)
        rename(unfinished, final)
        sync_folder(final.parent)
    remove_folder(replaced, ignore_errors=True)


def put_aside(path: Path, aside: Path) -> None:
    """Give a checkpoint a name under which it is none."""
    remove_folder(aside, ignore_errors=True)
    move_folder(path, aside, MANIFEST)


def prune(folder: Path, keep: int, best_steps: Set[int]) -> None:
    """Remove all checkpoints but the newest `keep` and those of `best_steps`; none is ever seen in part."""
    old = [path for path in checkpoint_paths(folder)[:-keep] if checkpoint_step(path) not in best_steps]
    for path in old:
        discard_folder(path, MANIFEST)


def tidy(folder: Path) -> None:
    """Bring back or remove what a killed process left on its way; only the holder of the run's lock may."""
    for old in list_folder(folder, ".step-*.old"):
        final = folder / old.name[1 : -len(".old")]
        if not is_whole(final, MANIFEST) and is_whole(old, MANIFEST):
            remove_folder(final, ignore_errors=True)
            move_folder(old, final, MANIFEST)
    half = [path for path in list_folder(folder, "step-*") if is_folder(path) and not is_whole(path, MANIFEST)]
    for left in (*list_folder(folder, ".step-*"), *half):
        remove_folder(left)
