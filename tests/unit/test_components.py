"""The TorchX components, as TorchX itself reads, parses and schedules them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.runner.config import load
from torchx.schedulers import get_scheduler_factories
from torchx.specs import AppDef, macros, named_resources
from torchx.specs.finder import get_component

CHECKOUT = Path(__file__).resolve().parents[2]
TRAIN = f"{CHECKOUT}/components/train.py:ddp"
PREPARE = f"{CHECKOUT}/components/prepare.py:prepare"
BENCHMARK = f"{CHECKOUT}/components/benchmark.py:benchmark"
SPARK = f"{CHECKOUT}/components/spark.py:prepare"
PREDICT = f"{CHECKOUT}/components/predict.py:predict"
SERVE = f"{CHECKOUT}/components/serve.py:serve"
PIPELINE = f"{CHECKOUT}/components/pipeline.py:pipeline"
ROLLING = f"{CHECKOUT}/components/rolling.py:rolling"
EVERY_DAY = ("--recipe", "merrec_time", "--raw", "raw", "--out", "out", "--config", "conf/my ple.toml")
WHOLE = ("--recipe", "merrec", "--raw", "raw", "--out", "out", "--models", "mmoe,conf/my ple.toml")


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


@pytest.mark.parametrize("component", [TRAIN, PREPARE, SPARK, PREDICT, SERVE, BENCHMARK, PIPELINE, ROLLING])
def test_component_is_valid_and_documented(component):
    found = get_component(component)
    assert found.validation_errors == []
    assert "Everything after `--` goes to" in found.description


COMMANDS = {
    "local_cwd": lambda request: [node.args for nodes in request.role_params.values() for node in nodes],
    "local_docker": lambda request: [container.command for container in request.containers],
    "slurm": lambda request: [[node.entrypoint, *node.args] for node in request.replicas.values()],
    "kubernetes": lambda request: [
        task["template"].spec.containers[0].command for task in request.resource["spec"]["tasks"]
    ],
}
"""What each node would run, by scheduler."""


@pytest.mark.parametrize("scheduler", COMMANDS)
@pytest.mark.parametrize(
    ("component", "args", "nodes"),
    [
        (TRAIN, ("--nodes", "3", "--ranks", "2", "--", "mmoe", "--data", "a b"), 3),
        (PREPARE, ("--", "merrec", "raw", "out"), 1),
        (SPARK, ("--master", "spark://host:7077", "--conf", "spark.a=1", "--", "merrec", "a b", "out"), 1),
        (PREDICT, ("--", "export", "a b", "out"), 1),
        (PREDICT, ("--nodes", "2", "--ranks", "2", "--", "run", "raw", "out"), 2),
        (SERVE, ("--port", "9000", "--", "a b"), 1),
        (BENCHMARK, ("--script", "reader", "--", "--out", "out"), 1),
        (PIPELINE, (*WHOLE, "--", "--training.seed", "3"), 1),
        (ROLLING, (*EVERY_DAY, "--", "--gate", "like.auc >= 0.7"), 1),
    ],
)
def test_every_scheduler_runs_the_same_command_for_the_same_arguments(component, args, nodes, scheduler):
    info = dry_run(component, *args, scheduler=scheduler, **({"queue": "default"} if scheduler == "kubernetes" else {}))
    [role] = info._app.roles
    command = re.escape("\n".join([role.entrypoint, *role.args])).replace(r"\$\$", r"\$")
    # What the scheduler puts in: the job's name, and the variable that names the first node.
    command = command.replace(re.escape(macros.app_id), r"[^ ]+").replace(re.escape(macros.rank0_env), "[A-Z0-9_]+")
    ran = COMMANDS[scheduler](info.request)
    assert len(ran) == nodes
    for words in ran:
        assert re.fullmatch(command, "\n".join(words))


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


def test_spark_has_its_master_and_settings():
    settings = "spark.executor.cores=4,spark.executor.memoryOverhead=9g"
    [role] = app_of(SPARK, "--master", "spark://host:7077", "--conf", settings, "--", "merrec", "raw", "out").roles
    words = ["prepare", "merrec", "raw", "out", "--engine", "spark", "--master", "spark://host:7077"]
    assert [role.entrypoint, *role.args] == ["python", "-m", "recmtl", *words]
    wanted = "--conf spark.executor.cores=4 --conf spark.executor.memoryOverhead=9g pyspark-shell"
    assert role.env["PYSPARK_SUBMIT_ARGS"] == wanted


def test_prepare_runs_recmtl_prepare():
    [role] = app_of(PREPARE, "--cpu", "4", "--", "merrec", "raw", "out", "--memory-limit", "2GB").roles
    assert role.entrypoint == "python"
    assert role.args == ["-m", "recmtl", "prepare", "merrec", "raw", "out", "--memory-limit", "2GB"]
    assert role.resource.cpu == 4


@pytest.mark.parametrize(
    ("options", "ranks"),
    [((), "1"), (("--h", "h100x8"), "1"), (("--ranks", "2"), "2"), (("--ranks", "0", "--gpu", "4"), "4")],
)
def test_predict_is_one_process_unless_asked_for_more(options, ranks):
    words = script(dry_run(PREDICT, *options, "--", "runs/shop", "new logs", "out", "--keep", "user,item"))
    assert words[words.index("--nproc-per-node") + 1] == ranks
    assert words[words.index("--") :] == ["--", "predict", "runs/shop", "new logs", "out", "--keep", "user,item"]


@pytest.mark.parametrize(
    ("options", "host", "port"), [((), "0.0.0.0", 8080), (("--host", "127.0.0.1", "--port", "9000"), "127.0.0.1", 9000)]
)
def test_serve_listens_at_the_port_that_the_container_opens(options, host, port):
    [role] = app_of(SERVE, *options, "--", "models/shop", "--workers", "2").roles
    words = ["--host", host, "--port", str(port), "models/shop", "--workers", "2"]
    assert (role.entrypoint, role.args) == ("python", ["-m", "recmtl", "serve", *words])
    assert role.port_map == {"http": port}


def test_benchmark_runs_a_script_beside_the_components():
    [role] = app_of(BENCHMARK, "--script", "reader", "--", "--events", "5").roles
    assert (role.entrypoint, role.args) == ("python", ["benchmarks/reader.py", "--events", "5"])
    assert (CHECKOUT / role.args[0]).exists()


def test_pipeline_prepares_trains_each_model_and_reports():
    info = dry_run(PIPELINE, *WHOLE, "--h", "h100x8", "--", "--training.seed", "3")
    [[replica]] = info.request.role_params.values()
    assert replica.args[:2] == ["bash", "-c"]
    *_, prepare, mmoe, ple, report = replica.args[2].splitlines()
    train = "python -m recmtl.launch --standalone --nproc-per-node 8 -- train"
    place = "--data out/data --run out/runs"
    waited = "{{ {} & wait $!; }}".format
    assert prepare == f"test -e out/data/dataset.json || {waited('python -m recmtl prepare merrec raw out/data')}"
    assert mmoe == waited(f"{train} mmoe {place}/mmoe --training.seed 3")
    assert ple == waited(
        f"{train} 'conf/my ple.toml' {place.replace('out/runs', '')}'out/runs/my ple' --training.seed 3"
    )
    assert report == waited("python -m recmtl report out/runs/mmoe 'out/runs/my ple' --out out/report")


def test_rolling_is_one_command_whose_words_may_hold_blanks():
    info = dry_run(ROLLING, *EVERY_DAY, "--h", "h100x8", "--", "--gate", "like.auc >= 0.7", "--training.seed", "3")
    [role] = info._app.roles
    assert role.entrypoint == "python"
    places = ["-m", "recmtl", "roll", "merrec_time", "raw", "out", "conf/my ple.toml"]
    assert role.args == [*places, "--ranks", "8", "--gate", "like.auc >= 0.7", "--training.seed", "3"]


def test_pipeline_passes_sigterm_on_and_waits_for_the_checkpoint(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ntrap 'sleep 1; touch saved; exit 5' TERM\ntouch started\nwhile :; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    [[replica]] = dry_run(PIPELINE, *WHOLE).request.role_params.values()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shell = subprocess.Popen(replica.args, env=env, cwd=tmp_path)
    try:
        while not (tmp_path / "started").exists() and shell.poll() is None:
            time.sleep(0.05)
        shell.terminate()
        assert shell.wait(timeout=60) == 5
        assert (tmp_path / "saved").exists()
    finally:
        shell.kill()


def refusal(capsys, component: str, *args: str) -> str:
    """The one line with which a component refuses its options."""
    with pytest.raises(SystemExit) as ended:
        app_of(component, *args)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_models_of_a_pipeline_must_not_share_a_run_folder(capsys):
    line = refusal(capsys, PIPELINE, *WHOLE[:-1], "mmoe,mine/mmoe.toml")
    assert line.startswith("error: --models mmoe,mine/mmoe.toml: two of them have the same name")


@pytest.mark.parametrize(
    ("component", "option", "value", "least"),
    [
        *(
            (TRAIN, option, value, 0)
            for option in ("ranks", "gpu", "max_retries", "max_restarts")
            for value in (-1, -9)
        ),
        *((PREDICT, option, -1, 0) for option in ("ranks", "gpu", "max_retries")),
        *((PREDICT, option, 0, 1) for option in ("nodes", "cpu", "memMB", "rdzv_port", "rdzv_timeout")),
        *((TRAIN, option, 0, 1) for option in ("nodes", "cpu", "memMB", "rdzv_port", "rdzv_timeout")),
        *(
            (component, option, -1, 0)
            for component in (PIPELINE, ROLLING)
            for option in ("ranks", "gpu", "max_retries")
        ),
        (SERVE, "port", 0, 1),
        (SERVE, "max_retries", -1, 0),
        *((component, "cpu", 0, 1) for component in (PREPARE, SERVE, PIPELINE, ROLLING, BENCHMARK)),
        *((component, "memMB", -1, 1) for component in (PREPARE, SERVE, PIPELINE, ROLLING, BENCHMARK)),
    ],
)
def test_numbers_out_of_range_are_one_line(capsys, component, option, value, least):
    whole = {PIPELINE: WHOLE, ROLLING: EVERY_DAY}.get(component, ())
    line = refusal(capsys, component, *whole, f"--{option}", str(value))
    assert line == f"error: --{option}: {least} or more, not {value}"


AS_TYPED = (
    "$",
    "$$",
    "${app_id}",
    "$${app_id}",
    "${img_root} ${replica_id}",
    "$HOME",
    "a b",
    "",
    "'\"\\",
    "ü→",
    "`id`",
    "*",
)
"""Words that TorchX or a shell might take for more than they are."""


@pytest.mark.parametrize(
    ("component", "args"),
    [
        (TRAIN, ()),
        (PREPARE, ()),
        (PREDICT, ()),
        (SERVE, ()),
        (BENCHMARK, ()),
        (PIPELINE, (*WHOLE[:-3], "$${app_id} out", "--models", "mmoe")),
        (ROLLING, EVERY_DAY),
    ],
)
def test_arguments_and_environment_arrive_as_typed(tmp_path, component, args):
    """In the place of Python, a script writes down what it is given."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" "$VALUE" >> {said}\n')
    python.chmod(0o755)
    env = f"PATH={tmp_path}:{os.environ['PATH']},VALUE=$${{app_id}} $HOME"
    with get_runner() as runner:
        handle = runner.run_component(component, [*args, "--env", env, "--", *AS_TYPED], "local_cwd", {})
        status = runner.wait(handle, wait_interval=0.05)
    assert status is not None
    assert status.state.name == "SUCCEEDED"
    words = said.read_text().split("\0")[:-1]
    start = words.index(AS_TYPED[0])
    assert tuple(words[start : start + len(AS_TYPED)]) == AS_TYPED
    assert words[start + len(AS_TYPED)] == "$${app_id} $HOME"
    assert ("$${app_id} out/data" in words) == (component == PIPELINE)


@pytest.mark.parametrize(("name", "gpus"), [("cpu-2", 0), ("h100x1", 1), ("h100x8", 8), ("a100x8", 8)])
def test_named_resources_are_registered(name, gpus):
    assert named_resources[name].gpu == gpus
    [role] = app_of(TRAIN, "--h", name, "--", "mmoe").roles
    assert role.resource == named_resources[name]
    assert f"--nproc-per-node {max(1, gpus)} " in role.args[1]


@pytest.mark.parametrize("path", sorted((CHECKOUT / "torchx_specs").glob("*.torchxconfig")), ids=lambda path: path.stem)
def test_scheduler_settings_are_known_to_the_scheduler(path):
    settings: dict = {}
    with path.open() as file:
        load(path.stem, file, settings)
    known = {name for name, _ in get_scheduler_factories()[path.stem]("test").run_opts()}
    assert settings.keys() <= known
    lines = [line.partition("=")[0].strip() for line in path.read_text().partition(f"[{path.stem}]")[2].splitlines()]
    assert settings.keys() == {line for line in lines if line and not line.startswith("#")}
