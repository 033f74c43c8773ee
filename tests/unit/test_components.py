"""The TorchX components, as TorchX itself reads, parses and schedules them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.runner.config import load
from torchx.schedulers import get_scheduler_factories
from torchx.specs import AppDef, named_resources
from torchx.specs.finder import get_component

CHECKOUT = Path(__file__).resolve().parents[2]
TRAIN = f"{CHECKOUT}/components/train.py:ddp"
PREPARE = f"{CHECKOUT}/components/prepare.py:prepare"


def dry_run(component: str, *args: str, scheduler: str = "local_cwd", **cfg: str):
    with get_runner() as runner:
        return runner.dryrun_component(component, list(args), scheduler, cfg)


def app_of(component: str, *args: str) -> AppDef:
    return dry_run(component, *args)._app


def script(info, node: int = 0) -> list[str]:
    """Words of the shell command that one node runs on local_cwd."""
    [replicas] = info.request.role_params.values()
    assert replicas[node].args[:2] == ["bash", "-c"]
    return shlex.split(replicas[node].args[2])


@pytest.mark.parametrize("component", [TRAIN, PREPARE])
def test_component_is_valid_and_documented(component):
    found = get_component(component)
    assert found.validation_errors == []
    assert "Everything after `--` goes to" in found.description


def test_train_starts_the_ranks_of_one_node():
    words = script(dry_run(TRAIN, "--ranks", "2", "--", "mmoe", "--data", "a b", "--run", "$HOME/x"))
    assert words[:4] == ["exec", "python", "-m", "recmtl.launch"]
    assert words[words.index("--nnodes") + 1] == "1"
    assert words[words.index("--nproc-per-node") + 1] == "2"
    assert words[words.index("--rdzv-endpoint") + 1] == "localhost:0"
    # torchrun must not read the options of recmtl as its own.
    assert words[words.index("--") :] == ["--", "train", "mmoe", "--data", "a b", "--run", "$HOME/x"]


def test_nodes_meet_at_the_first_and_wait_for_the_slowest():
    info = dry_run(TRAIN, "--nodes", "2", "--rdzv_port", "1234", "--rdzv_timeout", "99", "--", "mmoe")
    for node in (0, 1):
        words = script(info, node)
        assert words[words.index("--nnodes") + 1] == "2"
        assert words[words.index("--rdzv-endpoint") + 1] == "${TORCHX_RANK0_HOST:=localhost}:1234"
        assert words[words.index("--rdzv-conf") + 1] == "join_timeout=99,read_timeout=99"


def test_cores_are_shared_out_and_the_environment_can_say_otherwise():
    [role] = app_of(TRAIN, "--ranks", "4", "--cpu", "8", "--memMB", "100", "--gpu", "4", "--", "mmoe").roles
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (8, 4, 100)
    assert role.env["OMP_NUM_THREADS"] == "2"
    [role] = app_of(TRAIN, "--ranks", "4", "--env", "OMP_NUM_THREADS=7,A=b", "--", "mmoe").roles
    assert role.env["OMP_NUM_THREADS"] == "7"
    assert role.env["A"] == "b"


def test_job_takes_a_name_retries_and_mounts():
    mounts = "type=bind,src=/logs,dst=/data,readonly,type=bind,src=/runs,dst=/runs"
    [role] = app_of(TRAIN, "--name", "mmoe", "--max_retries", "3", "--mounts", mounts, "--", "mmoe").roles
    assert (role.name, role.max_retries) == ("mmoe", 3)
    assert [(mount.src_path, mount.read_only) for mount in role.mounts] == [("/logs", True), ("/runs", False)]


def test_prepare_runs_recmtl_prepare():
    [role] = app_of(PREPARE, "--cpu", "4", "--", "merrec", "raw", "out", "--memory-limit", "2GB").roles
    assert role.entrypoint == "python"
    assert role.args == ["-m", "recmtl", "prepare", "merrec", "raw", "out", "--memory-limit", "2GB"]
    assert role.resource.cpu == 4


@pytest.mark.parametrize(("name", "gpus"), [("cpu-2", 0), ("h100x1", 1), ("h100x8", 8), ("a100x8", 8)])
def test_named_resources_are_registered(name, gpus):
    assert named_resources[name].gpu == gpus
    [role] = app_of(TRAIN, "--h", name, "--ranks", str(max(1, gpus)), "--", "mmoe").roles
    assert role.resource == named_resources[name]


@pytest.mark.parametrize("path", sorted((CHECKOUT / "torchx_specs").glob("*.torchxconfig")), ids=lambda path: path.stem)
def test_scheduler_settings_are_known_to_the_scheduler(path):
    settings: dict = {}
    with path.open() as file:
        load(path.stem, file, settings)
    known = {name for name, _ in get_scheduler_factories()[path.stem]("test").run_opts()}
    assert settings.keys() <= known
    lines = [line.partition("=")[0].strip() for line in path.read_text().partition(f"[{path.stem}]")[2].splitlines()]
    assert settings.keys() == {line for line in lines if line and not line.startswith("#")}
