"""Several ranks through `recmtl.launch`."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest
from jobs import free_port, last_step, running, standalone, training
from launchers.torchx import ranks_of, results_of, torchx_run, torchx_start, wait_for
from torch.distributed import TCPStore
from toy import write_toy


def test_a_mistake_on_several_ranks_is_told_once(run_recmtl, tmp_path):
    ended = run_recmtl("train", "mmoe", "--data", tmp_path / "nowhere", "--run", tmp_path / "run", ranks=2)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'nowhere'}: no dataset.json in it")
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_one_rank_finds_is_told_once(run_recmtl, tmp_path):
    """The second rank looks at the second file."""
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50})
    bad = tmp_path / "data" / "val" / "part-00001.parquet"
    bad.write_bytes(bad.read_bytes()[:-100])
    ended = run_recmtl("train", "mmoe", "--data", tmp_path / "data", "--run", tmp_path / "run", ranks=2)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"error: {bad}: not readable as Parquet")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "the '--' is missing in python -m recmtl.launch TORCHRUN-OPTIONS -- COMMAND ..."),
        (["--nproc-per-node=x", "--", "train"], "recmtl.launch: Unsupported nproc_per_node value: x"),
        (["--nproc-per-node", "0", "--", "train"], "recmtl.launch: --nproc-per-node: from 1 to 4096, not 0"),
        (["--nnodes", "3:2", "--", "train"], "recmtl.launch: --nnodes: from 3 to 4096, not 2"),
        (["--nope", "--", "train"], "recmtl.launch: unrecognized arguments: --nope"),
    ],
)
def test_a_mistake_in_the_launchers_options_is_one_line(arguments, said):
    ended = subprocess.run([sys.executable, "-m", "recmtl.launch", *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, f"error: {said}\n")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("is_host=0,read_timeout=1", "no answer from {place}, where the machines meet; the log there may say why"),
        ("join_timeout=1", "not all machines came to {place} in time; see which of them have not started"),
    ],
)
def test_another_machine_that_does_not_come_is_one_line(settings, said):
    place = f"localhost:{free_port()}"
    ended = launch_at(place, "--nnodes=2", f"--rdzv-conf={settings}")
    assert (ended.returncode, ended.stderr) == (1, f"error: recmtl.launch: {said.format(place=place)}\n")


def test_a_job_that_has_ended_takes_no_other_machine():
    meeting = TCPStore("localhost", 0, is_master=True)
    place = f"localhost:{meeting.port}"
    first, late = (launch_at(place, "--nnodes=1", "--rdzv-conf=is_host=0") for _ in range(2))
    assert (first.returncode, late.returncode) == (2, 1)
    said = f"the job that met at {place} has ended; give the next one another --rdzv-id"
    assert late.stderr == f"error: recmtl.launch: {said}\n"


def launch_at(place: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Start a machine's part of a job, which is a mistake, that meets at a place."""
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}", "--rdzv-id=job", *options]
    command = [sys.executable, "-m", "recmtl.launch", *meet, "--", "trian"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("restarts", [0, 1])
def test_the_launcher_holds_the_port_where_ranks_meet(tmp_path, restarts):
    """Until then another process might take it. Over a restart ranks must not find what the ones before them left."""
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50})
    train = training(tmp_path / "data", tmp_path / "run")
    with running(*train, launcher=standalone(2, restarts)) as job:
        rank = job.wait_for(lambda: job.ranks().get(0))
        held = {place.laddr.port for place in psutil.Process(job.process.pid).net_connections("tcp")}
        assert (int(rank.environ()["MASTER_PORT"]) in held) == (restarts == 0)


def test_a_port_that_another_process_took(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with running(*training(tmp_path / "data", tmp_path / "run"), env={**ranks, **place}) as job:
            assert job.end() == 2
    assert job.stderr == f"error: another process has port {port}, where the ranks were to meet; start again\n"


def test_an_interrupt_is_no_error_of_torchruns(tmp_path):
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50})
    launch = [sys.executable, "-m", "recmtl.launch", "--standalone", "--nproc-per-node=2", "--", "train", "mmoe"]
    places = ["--data", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--metrics.tensorboard", "False"]
    endless = ["--training.max_epochs", "1000000", "--training.patience", "0", "--training.device", "cpu"]
    process = subprocess.Popen([*launch, *places, *endless], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "SignalException" not in said


@pytest.mark.slow
def test_a_torchx_job_whose_rank_is_killed_goes_on(tmp_path):
    """On this machine no scheduler starts a job again: the launcher does."""
    run, steps = tmp_path / "run", 300
    write_toy(tmp_path / "data")
    train = training(tmp_path / "data", run, training__max_steps=steps, checkpoint__every_steps=10)[1:]
    with torchx_start(
        *("local_cwd", "train.py:ddp", "--ranks", 2, "--max_restarts", 1, "--", *train), env={}, folder=tmp_path
    ) as job:
        try:
            wait_for(lambda: last_step(run) >= 20)
            ranks_of(run)[1].kill()
            _, said = job.communicate(timeout=900)
        finally:
            job.terminate()
    assert job.returncode == 0, said
    assert results_of(run, 2)["steps"] == steps


@pytest.mark.slow
def test_torchx_jobs_that_score_with_an_export_and_on_two_ranks_with_its_run(run_recmtl, tmp_path):
    raw, data, run, export = (tmp_path / name for name in ("raw", "data", "run", "export"))
    for step in (
        ("synth", "merrec", raw, "--events", 3000),
        ("prepare", "merrec", raw, data),
        ("train", "mmoe", "--data", data, "--run", run, "--training.max_steps", 2),
        ("export", run, export),
    ):
        ended = run_recmtl(*step)
        assert ended.returncode == 0, ended.stderr

    def score(model, out, *options):
        arguments = ("--", model, raw, tmp_path / out)
        job = torchx_run("local_cwd", "predict.py:predict", *options, *arguments, env={}, folder=tmp_path)
        assert job.returncode == 0, job.stderr
        table = pq.read_table(tmp_path / out)
        kept = [name for name in table.column_names if not name.startswith("p_")]
        return table.sort_by([(name, "ascending") for name in kept]).to_pydict()

    one, two = score(export, "one"), score(run, "two", "--ranks", 2)
    assert len(one["p_like"]) > 1000
    assert one.keys() == two.keys()
    for name in one:
        assert two[name] == (pytest.approx(one[name], abs=1e-5) if name.startswith("p_") else one[name])


def test_an_export_takes_one_process(run_recmtl, tmp_path):
    (tmp_path / "signature.json").touch()
    ended = run_recmtl("predict", tmp_path, tmp_path, tmp_path / "out", ranks=2)
    assert ended.returncode == 2
    said = "an export is scored by one process; start one, or name the run folder"
    assert ended.stderr == f"error: {tmp_path}: {said}\n"
    assert not (tmp_path / "out").exists()
