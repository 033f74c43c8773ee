"""Loads ``model.pt2`` without running what may be in it."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from recmtl.errors import UserError
from recmtl.runtime.storage import local_path

Graph = Callable[..., Sequence[torch.Tensor]]
"""Probabilities from ids, numbers, lists and tables."""
PICKLED = ("custom_obj", "opaque_obj", "script_obj")
"""Parts of names of what `torch.export.load` unpickles."""


def check_archive(path: Path) -> None:
    """Refuse an archive of which `torch.export.load` would unpickle something: unpickling runs any code it names.

    Raises:
        UserError: it would, or the file is no such archive; names the entry.
    """
    try:
        with zipfile.ZipFile(local_path(path)) as archive:
            for entry in archive.infolist():
                parts = entry.filename.split("/")
                pickled = any(part.startswith(PICKLED) for part in parts) or entry.filename.endswith((".pkl", ".pth"))
                if pickled or ("sample_inputs" in parts and entry.file_size):
                    raise UserError(f"{path}: {entry.filename} would be unpickled, which may run code; refused")
                if entry.filename.endswith("_config.json"):
                    config = json.loads(archive.read(entry))
                    if _says_pickle(config):
                        raise UserError(f"{path}: {entry.filename} names pickled values, which may run code; refused")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an archive of torch.export ({error}); export the run again") from None


def _says_pickle(config: Any) -> bool:
    if isinstance(config, dict):
        return bool(config.get("use_pickle")) or any(_says_pickle(value) for value in config.values())
    return isinstance(config, list) and any(_says_pickle(value) for value in config)


def this_machine() -> str:
    """What compiled code depends on: processor, its instructions, and PyTorch's version."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def load_compiled(path: Path) -> Graph:
    """The function that AOTInductor compiled into a library of machine code.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return torch._inductor.aoti_load_package(str(local_path(path)))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be loaded ({reason}); export the run again") from None


def load_graph(path: Path) -> Graph:
    """The function that an archive holds.

    Raises:
        UserError: the archive is refused, damaged, or this version of PyTorch cannot read it.
    """
    check_archive(path)
    try:
        module: Any = torch.export.load(local_path(path)).module()
        # Tables are checked when they are opened, and what `Inputs` hold is known: of one row, checks took a third.
        module.validate_inputs = False
        return module
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: PyTorch {torch.__version__} cannot load it ({reason}); export the run again"
        ) from None
