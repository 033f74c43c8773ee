"""The image, and jobs in it through TorchX. Needs root and Debian's docker.io and debootstrap: `make test-docker`."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from jobs import last_step, training
from launchers.docker import IMAGE, Docker, build_image, docker_daemon
from launchers.torchx import ranks_of, results_of, torchx_run, torchx_start, wait_for
from toy import write_toy

pytestmark = pytest.mark.docker

USER = 1000


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """A daemon with the project's image."""
    with tempfile.TemporaryDirectory(prefix="docker-") as folder, docker_daemon(Path(folder) / "d") as running:
        build_image(running, Path(folder) / "build")
        yield running


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder that the image's user may write, with prepared data in it."""
    work = tmp_path / "work"
    write_toy(work / "data")
    os.chown(work, USER, USER)
    return work


def inspect(docker: Docker, image: str) -> dict:
    """What Docker knows of an image."""
    return json.loads(docker("image", "inspect", image).stdout)[0]


def test_image_runs_recmtl_as_a_user_and_adds_three_layers(docker):
    image, base = inspect(docker, IMAGE), inspect(docker, "recmtl-base")
    # The user, the stack, recmtl; and a folder for WORKDIR.
    assert len(image["RootFS"]["Layers"]) - len(base["RootFS"]["Layers"]) <= 4
    assert docker("run", "--rm", "--network=none", "--entrypoint=id", IMAGE, "-u").stdout.strip() == str(USER)
    assert "usage: recmtl COMMAND" in docker("run", "--rm", "--network=none", IMAGE).stdout
    assert "mmoe" in docker("run", "--rm", "--network=none", IMAGE, "presets").stdout
    assert "--events" in docker("run", "--rm", "--network=none", IMAGE, "python", "benchmarks/reader.py", "-h").stdout
    wrong = docker("run", "--rm", "--network=none", IMAGE, "trian", check=False)
    assert (wrong.returncode, wrong.stderr.strip()) == (2, "error: no command 'trian'; did you mean 'train'?")


def test_nothing_but_the_mounted_folder_is_written(docker, work):
    def read_only(*args: object) -> subprocess.CompletedProcess[str]:
        return docker("run", "--rm", "--read-only", "--network=none", "--volume", f"{work}:/mnt", IMAGE, *args)

    read_only("synth", "merrec", "/mnt/raw", "--events", 3000)
    read_only("prepare", "merrec", "/mnt/raw", "/mnt/merrec")
    read_only("train", "mmoe", "--data", "/mnt/data", "--run", "/mnt/one", "--training.max_epochs", 1)
    read_only("evaluate", "/mnt/one", "--data", "/mnt/data")
    two = ("python", "-m", "recmtl.launch", "--standalone", "--nproc-per-node=2", "--")
    read_only(*two, "train", "mmoe", "--data", "/mnt/data", "--run", "/mnt/two", "--training.max_epochs", 1)
    read_only("report", "/mnt/one", "/mnt/two", "--out", "/mnt/report")
    one, two = results_of(work / "one", 1), results_of(work / "two", 2)
    assert one["logloss_sum"] == pytest.approx(two["logloss_sum"], rel=1e-3)
    assert (work / "report" / "report.md").exists()


def test_predict_on_an_export(docker, work):
    def in_image(*args: object) -> None:
        docker("run", "--rm", "--network=none", "--volume", f"{work}:/mnt", IMAGE, *args)

    in_image("synth", "merrec", "/mnt/raw", "--events", 3000)
    in_image("prepare", "merrec", "/mnt/raw", "/mnt/merrec")
    in_image("train", "mmoe", "--data", "/mnt/merrec", "--run", "/mnt/run", "--training.max_steps", 2)
    in_image("export", "/mnt/run", "/mnt/export", "--dtype", "int8")
    mount = ("--mounts", f"type=bind,src={work},dst=/mnt")
    score = ("--", "/mnt/export", "/mnt/raw", "/mnt/predictions", "--keep", "user_id")
    ended = torchx_run("local_docker", "predict.py:predict", *mount, *score, env=docker.env, folder=work)
    assert ended.returncode == 0, ended.stderr
    predictions = pq.read_table(work / "predictions")
    assert predictions.column_names == ["user_id", "p_view", "p_like"]
    rows = json.loads((work / "merrec" / "dataset.json").read_text())["rows"]
    assert predictions.num_rows == sum(rows.values())


ASK = """
import json, os, time, urllib.request
at = "http://127.0.0.1:8080"
for _ in range(600):
    try:
        urllib.request.urlopen(at + "/v2/health/ready")
        break
    except OSError:
        time.sleep(0.1)
inputs = json.load(urllib.request.urlopen(at + "/v2/models/merrec"))["inputs"]
body = {"common": {column["name"]: None for column in inputs}, "rows": [{}, {}]}
answer = json.load(urllib.request.urlopen(at + "/predict", json.dumps(body).encode()))
metrics = urllib.request.urlopen(at + "/metrics").read().decode()
print(json.dumps({"user": os.getuid(), "answer": answer, "metrics": metrics}))
"""


def test_an_export_is_served_from_read_only_files(docker, work):
    for words in (
        ("synth", "merrec", "/mnt/raw", "--events", 3000),
        ("prepare", "merrec", "/mnt/raw", "/mnt/merrec"),
        ("train", "mmoe", "--data", "/mnt/merrec", "--run", "/mnt/run", "--training.max_steps", 2),
        ("export", "/mnt/run", "/mnt/export"),
    ):
        docker("run", "--rm", "--network=none", "--volume", f"{work}:/mnt", IMAGE, *words)
    # As torchx_specs/serve/deployment.yaml has it.
    rights = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp", "--workdir=/tmp")
    serve = ("serve", "/mnt/export", "--host", "0.0.0.0", "--workers", 2)
    name = "serves"
    docker("run", "--detach", "--name", name, "--network=none", *rights, "--volume", f"{work}:/mnt:ro", IMAGE, *serve)
    try:
        told = json.loads(docker("exec", name, "python", "-c", ASK).stdout)
        assert told["user"] == USER
        assert [list(row) for row in told["answer"]["predictions"]] == [["view", "like"]] * 2
        assert "recmtl_rows_total 2.0" in told["metrics"]
        docker("stop", "--time", 30, name)
        state = json.loads(docker("inspect", name).stdout)[0]["State"]
        assert state["ExitCode"] in (0, 143), docker("logs", name).stderr
        assert "Traceback" not in docker("logs", name).stderr
    finally:
        docker("rm", "--force", name)


def test_demo_job_on_local_docker(docker, work):
    docker(
        "run",
        "--rm",
        "--volume",
        f"{work}:/mnt",
        "--network=none",
        IMAGE,
        *["synth", "merrec", "/mnt/raw", "--events", "300000"],
    )
    places = ("--recipe", "merrec", "--raw", "/mnt/raw", "--out", "/mnt/out", "--models", "mmoe,shared_bottom")
    mount = ("--mounts", f"type=bind,src={work},dst=/mnt")
    ended = torchx_run(
        "local_docker", "pipeline.py:pipeline", *places, "--ranks", 2, *mount, env=docker.env, folder=work
    )
    assert ended.returncode == 0, ended.stderr
    for model in ("mmoe", "shared_bottom"):
        results = results_of(work / "out" / "runs" / model, 2)
        assert results["model"] == model
    assert "| shared_bottom |" in (work / "out" / "report" / "report.md").read_text()


def test_one_job_in_two_containers(docker, work):
    mount = ("--mounts", f"type=bind,src={work},dst=/mnt")
    train = ("--", "mmoe", "--data", "/mnt/data", "--run", "/mnt/run", "--training.max_epochs", 2)
    nodes = ("--nodes", 2, "--ranks", 1, "--cpu", 1)
    ended = torchx_run("local_docker", "train.py:ddp", *nodes, *mount, *train, env=docker.env, folder=work)
    assert ended.returncode == 0, ended.stderr
    results_of(work / "run", 2)


def test_failure_is_told_and_retried(docker, work):
    mount = ("--mounts", f"type=bind,src={work},dst=/mnt")
    train = ("--", "mmoe", "--data", "/mnt/nowhere", "--run", "/mnt/run")
    ended = torchx_run("local_docker", "train.py:ddp", "--max_retries", 1, *mount, *train, env=docker.env, folder=work)
    assert ended.returncode == 1
    container = docker("ps", "--all", "--quiet", "--latest").stdout.strip()
    assert docker("logs", container).stderr.count("/mnt/nowhere: no dataset.json in it") == 2
    assert docker("inspect", "--format={{.State.ExitCode}}", container).stdout.strip() == "2"


def test_container_that_loses_a_rank_starts_again_and_goes_on(docker, work):
    run, steps = work / "run", 300
    train = training(Path("/mnt/data"), Path("/mnt/run"), training__max_steps=steps, checkpoint__every_steps=10)[1:]
    mount = ("--mounts", f"type=bind,src={work},dst=/mnt")
    retried = ("--ranks", 2, "--max_retries", 1, *mount, "--", *train)
    with torchx_start("local_docker", "train.py:ddp", *retried, env=docker.env, folder=work) as job:
        try:
            wait_for(lambda: last_step(run) >= 20)
            ranks_of("/mnt/run")[1].kill()
            _, said = job.communicate(timeout=900)
        finally:
            job.terminate()
    container = docker("ps", "--all", "--quiet", "--latest").stdout.strip()
    wait_for(lambda: docker("inspect", "--format={{.State.Running}}", container).stdout.strip() == "false")
    assert docker("inspect", "--format={{.RestartCount}}", container).stdout.strip() == "1", said
    assert results_of(run, 2)["steps"] == steps
