"""The versions of torch, torchrec and fbgemm must match each other."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

import recmtl.runtime.versions
from recmtl.errors import UserError
from recmtl.runtime.versions import TRAINING, check_training, check_versions, versions


@pytest.fixture
def pretend(monkeypatch):
    """Pretend that these distributions, and these modules without metadata, are all there is."""

    def install(distributions: dict[str, str], modules: tuple[str, ...] = ()) -> None:
        def version(name: str) -> str:
            if name not in distributions:
                raise PackageNotFoundError(name)
            return distributions[name]

        monkeypatch.setattr(recmtl.runtime.versions, "version", version)
        monkeypatch.setattr(recmtl.runtime.versions, "find_spec", lambda name: "found" if name in modules else None)

    return install


@pytest.mark.parametrize(
    "stack",
    [
        {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"},
        {"torch": "2.13.1", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.2"},
        {"torch": "2.12.0+cu128", "torchrec": "1.7.0", "fbgemm-gpu": "1.7.0+cu128"},
        {"torch": "2.11.0", "torchrec": "1.6.1", "fbgemm-gpu": "1.6.0"},
    ],
)
def test_matching_stack_passes(pretend, stack):
    pretend(stack)
    check_versions()


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ({"torch": "2.13.0", "torchrec": "1.6.1", "fbgemm-gpu": "1.8.0"}, ["torch 2.13.0", "torchrec 1.6.1"]),
        ({"torch": "2.11.0", "torchrec": "1.6.1", "fbgemm-gpu-cpu": "1.8.0"}, ["fbgemm-gpu-cpu 1.8.0", "==1.6.*"]),
        ({"torch": "2.1.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"}, ["torch 2.1.0", "2.11", "2.13"]),
        ({}, ["torch is not installed"]),
    ],
)
def test_other_stack_is_one_clear_line(pretend, stack, words):
    pretend(stack)
    with pytest.raises(UserError) as problem:
        check_versions()
    assert "\n" not in str(problem.value)
    assert all(word in str(problem.value) for word in words)


def test_what_only_training_needs_may_be_absent(pretend):
    pretend({"torch": "2.13.0"})
    check_versions()
    assert versions()["torchrec"] == "unknown"


@pytest.mark.parametrize("module", TRAINING)
def test_training_without_a_part_says_what_to_install(pretend, module):
    pretend({}, modules=tuple(name for name in TRAINING if name != module))
    with pytest.raises(UserError, match=r"^[\w-]+ is not installed; .* pip install 'recmtl\[train\]'$") as error:
        check_training()
    assert str(error.value).startswith(module.replace("_", "-"))
    pretend({}, modules=TRAINING)
    check_training()


def test_modules_without_metadata_are_trusted(pretend):
    pretend({"torch": "2.13.0", "torchrec": "1.8.0"}, modules=("fbgemm_gpu",))
    check_versions()
    pretend({}, modules=("torch", "torchrec", "fbgemm_gpu"))
    check_versions()
    assert versions()["fbgemm"] == "unknown"


def test_installed_stack_is_recorded():
    check_versions()
    assert {"python", "recmtl", "torch", "torchrec", "fbgemm"} <= versions().keys()
