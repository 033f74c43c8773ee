"""Jobs on Slurm through TorchX. Needs root and Debian's Slurm, munge and MariaDB: `make test-slurm`."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import last_step, training
from launchers.slurm import slurm_cluster
from launchers.torchx import ranks_of, results_of, torchx_run, wait_for
from toy import write_toy

pytestmark = pytest.mark.slurm

SIZE = ("--cpu", 2, "--memMB", 3000)


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Environment of a user of a Slurm cluster."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder) / "s") as env:
        yield env


def logs(folder: Path, ending: str) -> str:
    """What the nodes of the jobs started in a folder wrote."""
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"slurm-*-*.{ending}")))


def test_demo_job_on_slurm(slurm, tmp_path, run_recmtl):
    assert run_recmtl("synth", "merrec", tmp_path / "raw", "--events", 300_000).returncode == 0
    places = ("--recipe", "merrec", "--raw", tmp_path / "raw", "--out", tmp_path / "out")
    models = ("--models", "mmoe,shared_bottom", "--ranks", 2)
    ended = torchx_run("slurm", "pipeline.py:pipeline", *places, *models, *SIZE, env=slurm, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr + logs(tmp_path, "err")
    for model in ("mmoe", "shared_bottom"):
        assert results_of(tmp_path / "out" / "runs" / model, 2)["model"] == model
    assert "| shared_bottom |" in (tmp_path / "out" / "report" / "report.md").read_text()


def test_one_job_on_two_nodes(slurm, tmp_path):
    write_toy(tmp_path / "data")
    train = ("--", "mmoe", "--data", tmp_path / "data", "--run", tmp_path / "run", "--training.max_epochs", 2)
    ended = torchx_run("slurm", "train.py:ddp", "--nodes", 2, *SIZE, *train, env=slurm, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr + logs(tmp_path, "err")
    results_of(tmp_path / "run", 2)
    # The second node ran a rank too, and it did not talk.
    assert {path.name.rpartition("-")[2] for path in tmp_path.glob("slurm-*.out")} >= {"0.out", "1.out"}
    assert "click" in logs(tmp_path, "out")


def test_failure_is_told_and_retried(slurm, tmp_path):
    train = ("--", "mmoe", "--data", tmp_path / "nowhere", "--run", tmp_path / "run")
    ended = torchx_run("slurm", "train.py:ddp", "--max_retries", 1, *SIZE, *train, env=slurm, folder=tmp_path)
    assert ended.returncode == 1
    assert "nowhere: no dataset.json in it" in logs(tmp_path, "err")
    job = ended.stdout.strip().rpartition("/")[2]
    show = subprocess.run(["scontrol", "show", "job", job], env=slurm, capture_output=True, text=True)
    assert "Restarts=1" in show.stdout
    assert "ExitCode=2:0" in show.stdout


def test_job_that_gets_sigterm_and_then_loses_a_rank_is_requeued_and_goes_on(slurm, tmp_path):
    run, steps = tmp_path / "run", 1000
    write_toy(tmp_path / "data")
    train = training(tmp_path / "data", run, training__max_steps=steps, checkpoint__every_steps=10)[1:]
    retried = ("--ranks", 2, "--max_retries", 2, *SIZE, "--", *train)
    env = slurm | {"SLURM_OPEN_MODE": "append"}
    submitted = torchx_run("slurm", "train.py:ddp", *retried, env=env, folder=tmp_path, options=())
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip().rpartition("/")[2]

    def state() -> str:
        shown = subprocess.run(["scontrol", "show", "job", job], env=slurm, capture_output=True, text=True).stdout
        return shown.split("JobState=")[1].split()[0] + " after " + shown.split("Restarts=")[1].split()[0]

    wait_for(lambda: last_step(run) >= 20)
    subprocess.run(["scancel", "--signal=TERM", job], env=slurm, check=True)
    wait_for(lambda: state() == "RUNNING after 1" and len(ranks_of(run)) == 2)
    assert "stopped and saved after step" in logs(tmp_path, "err")
    before = last_step(run)
    wait_for(lambda: last_step(run) > before + 20)
    ranks_of(run)[1].kill()
    wait_for(lambda: state() == "COMPLETED after 2")
    assert results_of(run, 2)["steps"] == steps
