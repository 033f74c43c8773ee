"""A standalone cluster of Spark writes what one machine writes. Needs Java 17: `make test-spark`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spark_cluster import Cluster, children, command, spark_cluster
from spark_raw import RECIPE, write_raw

pytestmark = pytest.mark.spark

Run = Callable[..., subprocess.CompletedProcess[str]]
ENV = {"SPARK_LOCAL_IP": "127.0.0.1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with spark_cluster(tmp_path_factory.mktemp("spark")) as running:
        yield running


@pytest.fixture
def prepare(run_recmtl: Run, cluster: Cluster) -> Run:
    """Run `recmtl prepare` on the cluster."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return run_recmtl("prepare", *words, "--engine", "spark", "--master", cluster.master, env=ENV, timeout=600)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(one: Path, other: Path) -> None:
    """Every file has the same bytes."""
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    assert [name for name, data in first.items() if data != second[name]] == []


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory, run_recmtl: Run) -> Path:
    """A folder with raw/, and what one machine makes of it in `merrec` and `merrec_time`."""
    folder = tmp_path_factory.mktemp("events")
    assert run_recmtl("synth", "merrec", folder / "raw", "--events", 700_000).returncode == 0
    for recipe in ("merrec", "merrec_time"):
        assert run_recmtl("prepare", recipe, folder / "raw", folder / recipe).returncode == 0
    return folder


@pytest.mark.parametrize("recipe", ["merrec", "merrec_time"])
def test_merrec_is_that_of_one_machine(events: Path, prepare: Run, tmp_path: Path, recipe: str) -> None:
    ended = prepare(recipe, events / "raw", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert len(list((events / recipe / "train").iterdir())) > 1
    assert_same(events / recipe, tmp_path / "out")
    # Nothing of Spark's own is on the terminal, and nothing is left beside the output.
    assert all("Spark" not in line and "WARN" not in line for line in ended.stderr.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("recipe", ["census", "kuairand"])
def test_real_data_are_those_of_one_machine(
    real_data: Path, run_recmtl: Run, prepare: Run, tmp_path: Path, recipe: str
) -> None:
    raw = real_data / recipe
    for ended in (run_recmtl("prepare", recipe, raw, tmp_path / "one"), prepare(recipe, raw, tmp_path / "other")):
        assert ended.returncode == 0, ended.stderr
    assert_same(tmp_path / "one", tmp_path / "other")


def test_lists_and_types_are_those_of_one_machine(run_recmtl: Run, prepare: Run, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 20_000)
    (tmp_path / "mine.toml").write_text(RECIPE)
    first = (tmp_path / "mine.toml", tmp_path / "raw")
    for run, name in ((run_recmtl, "one"), (prepare, "other")):
        begin = ("prepare",) if run is run_recmtl else ()
        ended = run(*begin, *first, tmp_path / name, "--until", "2024-01-15")
        assert ended.returncode == 0, ended.stderr
        grown = ("--extend", tmp_path / name, "--lookback", "3 days", "--test", 0.2)
        ended = run(*begin, *first, tmp_path / f"{name}-grown", *grown)
        assert ended.returncode == 0, ended.stderr
    assert_same(tmp_path / "one", tmp_path / "other")
    assert_same(tmp_path / "one-grown", tmp_path / "other-grown")


def test_executors_that_do_not_see_the_output(run_recmtl: Run, tmp_path: Path) -> None:
    """Files go through the driver."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    write_raw(tmp_path / "raw", 5000)
    (tmp_path / "mine.toml").write_text(RECIPE)
    first = (tmp_path / "mine.toml", tmp_path / "raw")
    assert run_recmtl("prepare", *first, tmp_path / "one").returncode == 0
    with spark_cluster(tmp_path, hidden=hidden) as cluster:
        words = (*first, hidden / "out", "--engine", "spark", "--master", cluster.master)
        ended = run_recmtl("prepare", *words, env=ENV, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert "not all executors see the disk of the output" in ended.stderr
    assert_same(tmp_path / "one", hidden / "out")


def test_raw_files_and_output_in_an_object_store(run_recmtl: Run, tmp_path: Path) -> None:
    from store_servers import store_server
    from stores import put

    from recmtl.runtime.storage import list_files, local_path

    write_raw(tmp_path / "raw", 5000)
    (tmp_path / "mine.toml").write_text(RECIPE)
    assert run_recmtl("prepare", tmp_path / "mine.toml", tmp_path / "raw", tmp_path / "one").returncode == 0
    with store_server("s3", tmp_path) as store, spark_cluster(tmp_path) as cluster:
        raw, out = store.root / "raw", store.root / "out"
        put(tmp_path / "raw", raw)
        words = (tmp_path / "mine.toml", raw, out, "--engine", "spark", "--master", cluster.master)
        ended = run_recmtl("prepare", *words, env=ENV, timeout=600)
        assert ended.returncode == 0, ended.stderr
        found = {str(path.relative_to(out)): local_path(path).read_bytes() for path in list_files(out)}
    assert found == contents(tmp_path / "one")


def test_an_executor_that_is_killed_changes_nothing(events: Path, cluster: Cluster, tmp_path: Path) -> None:
    words = (
        "prepare",
        "merrec_time",
        events / "raw",
        tmp_path / "out",
        "--engine",
        "spark",
        "--master",
        cluster.master,
    )
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "recmtl", *map(str, words)], env={**os.environ, **ENV}, stderr=stderr
        )
        try:
            kill_one(cluster, process, tmp_path / "stderr", "looking for shared disks: ")  # while rows are read
            kill_one(cluster, process, tmp_path / "stderr", "running the query on every partition: ")
            assert process.wait(600) == 0, (tmp_path / "stderr").read_text()
        finally:
            process.kill()
            process.wait()
    assert_same(events / "merrec_time", tmp_path / "out")


def kill_one(cluster: Cluster, process: subprocess.Popen[bytes], said: Path, after: str) -> None:
    """Kill an executor with SIGKILL while tasks of the stage run that follows what the process says."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        executors = cluster.executors()
        if executors and after in said.read_text():
            time.sleep(1)
            os.kill(executors[0], signal.SIGKILL)
            return
        time.sleep(0.1)
    raise AssertionError(f"no executor to kill: {said.read_text()}")


def test_mistakes_in_tasks_are_one_line(prepare: Run, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 2000)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE.replace("from events\nleft", "from events\nleft", 1))
    number = 'name = "number_of_tab"\n[[feature]]\nname = "user"\n[[feature]]'
    cast = RECIPE.replace("as huge from raw", "as huge, cast(tab as int) as number_of_tab from raw")
    broken = {
        "cast": (cast.replace('name = "user"\n[[feature]]', number, 1), "mine.toml: sql: Conversion Error"),
        "label": (RECIPE.replace('label = "clicked"', 'label = "number"'), "'number' is 2 at log/0.parquet, row 2"),
    }
    for name, (text, message) in broken.items():
        recipe.write_text(text)
        ended = prepare(recipe, tmp_path / "raw", tmp_path / name)
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.splitlines()[-1] == errors[0]
        assert message in errors[0]
        assert "java" not in ended.stderr
        assert not (tmp_path / name).exists()

    recipe.write_text(RECIPE)
    damaged = tmp_path / "raw" / "log" / "2.parquet"
    whole = bytearray(damaged.read_bytes())
    whole[4 : len(whole) // 2] = b"\xff" * (len(whole) // 2 - 4)
    damaged.write_bytes(whole)
    ended = prepare(recipe, tmp_path / "raw", tmp_path / "damaged")
    assert ended.returncode == 2
    assert "2.parquet: not readable as Parquet" in ended.stderr.splitlines()[-1]


def test_a_master_that_is_not_there_is_one_line(run_recmtl: Run, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 2000)
    (tmp_path / "mine.toml").write_text(RECIPE)
    words = (tmp_path / "mine.toml", tmp_path / "raw", tmp_path / "out", "--engine", "spark")
    ended = run_recmtl("prepare", *words, "--master", "spark://127.0.0.1:1", env=ENV)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: --engine spark: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_java_starts_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    write_raw(tmp_path / "raw", 400)
    (tmp_path / "mine.toml").write_text(RECIPE)
    words = ("prepare", tmp_path / "mine.toml", tmp_path / "raw", tmp_path / "out", "--engine", "spark")
    process = subprocess.Popen(
        [sys.executable, "-m", "recmtl", *map(str, words), "--master", "local[1]"],
        env={**os.environ, **ENV},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while not (started := children(process.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert said == ("interrupted\n" if number == signal.SIGINT else "")
    assert started
    end = time.monotonic() + 10
    while any(command(pid) for pid in started) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(command(pid) for pid in started)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "raw"]


def test_spark_submit(prepare: Run, cluster: Cluster, run_recmtl: Run, tmp_path: Path) -> None:
    import pyspark

    write_raw(tmp_path / "raw", 2000)
    (tmp_path / "mine.toml").write_text(RECIPE)
    (tmp_path / "main.py").write_text("from recmtl.cli import main\n\nmain()\n")
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    words = (submit, "--master", cluster.master, tmp_path / "main.py", "prepare", tmp_path / "mine.toml")
    ended = subprocess.run(
        list(map(str, (*words, tmp_path / "raw", tmp_path / "out", "--engine", "spark"))),
        env={**os.environ, **ENV, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert run_recmtl("prepare", tmp_path / "mine.toml", tmp_path / "raw", tmp_path / "one").returncode == 0
    assert_same(tmp_path / "one", tmp_path / "out")
