"""Versions of the stack: torch, torchrec and fbgemm are built against each other and must match."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import recmtl
from recmtl.errors import UserError

MATCHING = {"2.11": "1.6", "2.12": "1.7", "2.13": "1.8"}
"""Release of torch → the release of both torchrec and fbgemm that is built for it."""

TRAINING = ("torchrec", "fbgemm_gpu", "psutil", "tensorboard", "matplotlib")
"""Modules of the extra `train`: whoever prepares data or uses an export does without."""

SERVING = ("fastapi", "uvicorn", "prometheus_client", "orjson")
"""Modules of the extra `serve`."""

SPARK = ("pyspark",)
"""Modules of the extra `spark`."""

DISTRIBUTIONS = {"torch": ("torch",), "torchrec": ("torchrec",), "fbgemm_gpu": ("fbgemm-gpu", "fbgemm-gpu-cpu")}
"""Module → the names of the distributions that bring it."""


def check_versions() -> None:
    """Refuse a stack whose parts don't match. Imports none of them, so it costs milliseconds.

    A module without metadata (unpacked on PYTHONPATH, say) is taken on trust; those of `TRAINING` may be absent.

    Raises:
        UserError: torch is missing, or torch, torchrec and fbgemm are not built for each other.
    """
    installed = {module: found for module in DISTRIBUTIONS if (found := _distribution(module)) is not None}
    if "torch" not in installed:
        if find_spec("torch") is None:
            raise UserError("torch is not installed; the README says how to install the stack")
        return
    torch = installed.pop("torch")[1]
    wanted = MATCHING.get(_release(torch))
    if wanted is None:
        raise UserError(f"torch {torch} is installed; recmtl runs on torch {', '.join(MATCHING)}")
    wrong = [f"{name} {number}" for name, number in installed.values() if _release(number) != wanted]
    if wrong:
        names = " ".join(f"{name}=={wanted}.*" for name, _ in installed.values())
        raise UserError(f"torch {torch} does not go with {' and '.join(wrong)}; it wants {names}")


def check_training() -> None:
    """Refuse to go on without the extra `train`; imports nothing.

    Raises:
        UserError: a module of it is missing; says what to install.
    """
    _check_extra("train", TRAINING, "runs and reports need it")


def check_serving() -> None:
    """Refuse to go on without the extra `serve`; imports nothing.

    Raises:
        UserError: a module of it is missing; says what to install.
    """
    _check_extra("serve", SERVING, "serving needs it")


def check_spark() -> None:
    """Refuse to go on without the extra `spark`; imports nothing.

    Raises:
        UserError: a module of it is missing; says what to install.
    """
    _check_extra("spark", SPARK, "--engine spark needs it")


def _check_extra(extra: str, modules: tuple[str, ...], need: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            name = DISTRIBUTIONS.get(module, (module,))[0]
            raise UserError(f"{name} is not installed; {need}: pip install 'recmtl[{extra}]'")


def versions() -> dict[str, str]:
    """Version of each part of the stack, for the record of a run. `cuda` is there where torch is built for it."""
    import torch

    found = {"python": platform.python_version(), "recmtl": recmtl.__version__}
    for module, name in (("torch", "torch"), ("torchrec", "torchrec"), ("fbgemm_gpu", "fbgemm")):
        distribution = _distribution(module)
        found[name] = distribution[1] if distribution else "unknown"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _distribution(module: str) -> tuple[str, str] | None:
    """Name and version of the installed distribution that brings a module."""
    for name in DISTRIBUTIONS[module]:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def _release(number: str) -> str:
    """Major and minor part: 2.13.0+cpu → 2.13."""
    return ".".join(number.split(".")[:2])
