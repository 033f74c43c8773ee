"""Data, runs, exports and predictions on servers of object stores that are slow and fail: they are those that a disk
holds.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import Job, free_port, running, standalone
from store_servers import BUCKET, PASSWORD, ROOTS, Fault, Proxy, store_server
from stores import put

from recmtl.runtime import remote
from recmtl.runtime.storage import (
    exists,
    is_file,
    list_files,
    list_folder,
    local_path,
    parse_path,
    read_json,
    read_text,
)

pytestmark = pytest.mark.stores

EVENTS, STEPS = 60_000, 60
SETTINGS = {
    "training.batch_size": 1024,
    "training.max_steps": STEPS,
    "training.max_epochs": 10,
    "training.device": "cpu",
    "model.dropout": 0.1,
    "checkpoint.every_steps": 7,
}
NUMBERS = ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum")


@pytest.fixture(scope="module", params=ROOTS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with store_server(request.param, tmp_path_factory.mktemp(request.param)) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def calm(store: Proxy) -> Iterator[None]:
    yield
    store.calm()


def do(*args: object, ranks: int = 1, code: int = 0, **options: Any) -> Job:
    with running(*args, launcher=standalone(ranks) if ranks > 1 else None, **options) as job:
        assert job.end() == code, job.stderr
        return job


def training(data: Path, run: Path, **settings: object) -> list[object]:
    chosen = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    return ["train", "mmoe", "--data", data, "--run", run, *(w for key, v in chosen.items() for w in (f"--{key}", v))]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files, data and a run of two ranks on a disk."""
    folder = tmp_path_factory.mktemp("disk")
    do("synth", "merrec", folder / "raw", "--events", EVENTS)
    do("prepare", "merrec", folder / "raw", folder / "data")
    do(*training(folder / "data", folder / "run"), ranks=2)
    return folder


@pytest.fixture(scope="module")
def root(store: Proxy, disk: Path) -> Path:
    """The bucket, with those raw files and data."""
    for name in ("raw", "data"):
        put(disk / name, store.root / name)
    return store.root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): local_path(path).read_bytes() for path in list_files(folder)}


def checkpoints(run: Path) -> list[str]:
    """Names of those that are whole."""
    return [path.name for path in list_folder(run / "checkpoints", "step-*") if exists(path / "manifest.json")]


def weights(run: Path, step: int = STEPS) -> dict[str, Any]:
    manifest = read_json(run / "checkpoints" / f"step-{step:09d}" / "manifest.json")
    return {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}


def assert_same_end(run: Path, other: Path) -> None:
    """No bit of the model differs, nor of what was measured."""
    assert weights(run) == weights(other)
    results, expected = (read_json(path / "results.json") for path in (run, other))
    assert {key: results[key] for key in NUMBERS} == {key: expected[key] for key in NUMBERS}
    curve, wanted = (
        [_without_clock(line) for line in read_text(path / "metrics.jsonl").splitlines()] for path in (run, other)
    )
    assert curve == wanted


def _without_clock(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key != "examples_per_second"}


def sometimes(share: float) -> Any:
    """A server of which a share of the requests fails in one way or another."""
    rng = random.Random(0)

    def fault(method: str, path: str) -> Fault:
        return rng.choice(("503", "429", "500", "cut")) if rng.random() < share else None

    return fault


def test_files_are_written_listed_copied_and_removed(store: Proxy):
    folder = store.root / "files" / "f"
    assert list_files(folder) == list_folder(folder) == []
    for name in ("x", "x2", "deep/y", "../f2", "a*b", "a[1]", "q?x", "h#1", "p%41", "sp ace", "plus+", "é"):
        path = parse_path(os.path.normpath(folder / name).replace(":/", "://"))
        remote.write_bytes(path, name.encode())
        assert is_file(path)
        assert path.name in [entry.name for entry in list_folder(path.parent)]
        assert remote.read_bytes(path) == name.encode()
        before = remote.describe(path)
        remote.write_bytes(path, name[::-1].encode() or b"-")
        assert remote.describe(path) != before or name[::-1] == name
        [entry] = [entry for entry in list_folder(path.parent) if entry.name == path.name]
        assert remote.describe(entry) == remote.describe(path)
    names = [str(path.relative_to(folder)) for path in list_files(folder)]
    assert names == sorted(("x", "x2", "deep/y", "a*b", "a[1]", "q?x", "h#1", "p%41", "sp ace", "plus+", "é"))
    assert list_folder(folder / "x") == list_files(folder / "x") == []
    remote.copy(folder / "deep" / "y", folder / "deep" / "z")
    assert remote.read_bytes(folder / "deep" / "z") == b"y/peed"
    remote.remove_folder(folder)
    assert [path.name for path in list_files(store.root / "files")] == ["f2"]
    remote.remove(folder)


def test_one_of_many_creates_a_file(store: Proxy):
    """Also on a server some of whose answers do not arrive."""
    rng = random.Random(0)
    for fault in (None, "cut"):
        store.fault = lambda method, path, fault=fault: fault if rng.random() < 0.1 else None
        for turn in range(5):
            path = store.root / "created" / f"{fault}-{turn}"
            with ThreadPoolExecutor(16) as pool:
                made = list(pool.map(lambda number, path=path: remote.create(path, b"%d" % number), range(16)))
            assert made.count(True) == 1
            assert remote.read_bytes(path) == b"%d" % made.index(True)


def test_a_file_of_several_parts_and_its_ranges(store: Proxy, tmp_path: Path):
    content = np.random.default_rng(0).bytes(130 * 2**20)
    (tmp_path / "large").write_bytes(content)
    path = store.root / "large"
    store.fault = sometimes(0.1)
    remote.upload(tmp_path / "large", path)
    assert remote.file_size(path) == len(content)
    assert local_path(path).read_bytes() == content
    for start, stop in ((0, 1), (50 * 2**20 - 3, 50 * 2**20 + 3), (len(content) - 8, len(content))):
        assert remote.read_bytes(path, start, stop) == content[start:stop]
    remote.copy(path, path.with_name("copy"))
    assert remote.read_bytes(path.with_name("copy"), 100 * 2**20) == content[100 * 2**20 :]


def test_the_whole_way_on_a_server_that_fails_and_with_kills(store: Proxy, root: Path, disk: Path, tmp_path: Path):
    store.fault = sometimes(0.05)
    do("prepare", "merrec", root / "raw", root / "way/data")
    assert contents(root / "way/data") == contents(disk / "data")

    run = root / "way/run"
    command = training(root / "way/data", run)
    for rank, step in ((0, 7), (1, 28)):  # the first rank holds the lease
        with running(*command, launcher=standalone(2)) as job:
            job.wait_for(lambda step=step: any(int(name[5:]) >= step for name in checkpoints(run)))
            job.ranks()[rank].kill()
            assert job.end() != 0
    do(*command, ranks=2)
    assert_same_end(run, disk / "run")

    said = do("evaluate", run, "--data", root / "way/data").stdout
    assert said == do("evaluate", disk / "run", "--data", disk / "data").stdout
    [measured] = list_files(run / "evaluations")
    assert read_json(measured)["test"] == read_json(disk / "run" / "evaluations" / measured.name)["test"]

    do("export", run, root / "way/export")
    do("export", disk / "run", tmp_path / "export")
    found, wanted = contents(root / "way/export"), contents(tmp_path / "export")
    assert found.keys() == wanted.keys()
    tables = [name for name in found if name.startswith(("tables/", "encoder/", "vocab/"))]
    assert {name: found[name] for name in tables} == {name: wanted[name] for name in tables}

    do("predict", root / "way/export", root / "raw", root / "way/scores")
    do("predict", tmp_path / "export", disk / "raw", tmp_path / "scores")
    found, wanted = scores(root / "way/scores"), scores(tmp_path / "scores")
    kept = [name for name in wanted.column_names if not name.startswith("p_")]
    assert found.select(kept).equals(wanted.select(kept))
    for name in ("p_view", "p_like"):  # rows come in any order, and the last digit depends on those beside them
        assert np.abs(found[name].to_numpy() - wanted[name].to_numpy()).max() < 1e-6

    do("report", run, "--out", root / "way/report")
    assert [path.name for path in list_files(root / "way/report")] == ["report.csv", "report.html", "report.md"]
    assert len(store.requests) > 500


def scores(folder: Path) -> pa.Table:
    parts = [pq.read_table(local_path(path)) for path in list_files(folder) if path.suffix == ".parquet"]
    table = pa.concat_tables(parts)
    return table.sort_by([(name, "ascending") for name in table.column_names if not name.startswith("p_")])


@pytest.mark.parametrize("name", ["__1_0.distcp", "manifest.json"])
def test_a_checkpoint_that_was_half_uploaded_is_none(store: Proxy, root: Path, disk: Path, name: str):
    """The upload of one of its files hangs until both ranks are killed."""
    run = root / f"half/{name}"
    held = []

    def fault(method: str, path: str) -> Fault:
        if method == "PUT" and path.endswith(f"step-000000021/{name}"):
            held.append(path)
            return "hold"
        return None

    store.fault = fault
    command = training(root / "data", run)
    with running(*command, launcher=standalone(2)) as job:
        job.wait_for(lambda: held)
        job.kill()
    assert checkpoints(run) == ["step-000000007", "step-000000014"]
    assert exists(run / "checkpoints" / "step-000000021" / "__0_0.distcp") or name != "manifest.json"
    store.calm()
    with running(*command, launcher=standalone(2)) as job:
        job.wait_for(lambda: any(method == "DELETE" or "step-000000014" in path for method, path in store.requests))
        assert job.end() == 0, job.stderr
    assert_same_end(run, disk / "run")
    assert not list_folder(run / "checkpoints", ".*")


def test_data_that_were_half_uploaded_are_none(store: Proxy, root: Path, disk: Path, tmp_path: Path):
    """The last file of a folder hangs until the process is killed; the next one clears what is there."""
    out, held = root / "half/data", []

    def fault(method: str, path: str) -> Fault:
        if method == "PUT" and path.endswith("half/data/dataset.json"):
            held.append(path)
            return "hold"
        return None

    store.fault = fault
    with running("prepare", "merrec", root / "raw", out) as job:
        job.wait_for(lambda: held)
        assert {str(path.relative_to(out)) for path in list_files(out)} == contents(disk / "data").keys() - {
            "dataset.json"
        }
        job.kill()
    store.calm()
    refused = do(*training(out, tmp_path / "run"), code=2)
    assert f"error: {out}: no dataset.json in it" in refused.stderr
    do("prepare", "merrec", root / "raw", out)
    assert contents(out) == contents(disk / "data")
    assert [path.name for path in list_folder(root / "half") if path.name.startswith(".")] == []


def test_a_second_run_at_once_is_refused(store: Proxy, root: Path):
    run = root / "twice/run"
    endless = training(root / "data", run, training__max_steps=0, training__max_epochs=1000, training__patience=0)
    with running(*endless) as job:
        job.wait_for(lambda: checkpoints(run))
        second = do(*endless, code=2)
        assert f"error: {run}: in use by process {job.process.pid} on " in second.stderr
        before = checkpoints(run)[-1]
        job.wait_for(lambda: checkpoints(run)[-1] > before)  # the first one goes on
        job.kill()


def test_who_lost_the_lease_writes_no_checkpoint_any_more(store: Proxy, root: Path):
    run = root / "lost/run"
    with running(*training(root / "data", run, training__max_steps=0, training__patience=0)) as job:
        job.wait_for(lambda: checkpoints(run))
        [lease] = list_folder(run / ".lock")
        other = {"pid": 1, "host": "other", "id": "other", "beat": 1}
        remote.write_bytes(lease.with_name(f"{int(lease.name) + 1:09d}"), json.dumps(other).encode())
        taken = time.monotonic()
        then = checkpoints(run)
        assert job.end() == 2
    assert time.monotonic() - taken < 60
    assert "another process took it over, as this one did not answer; it writes no more" in job.stderr
    assert "Traceback" not in job.stderr
    assert set(checkpoints(run)) <= {*then, f"step-{int(then[-1][5:]) + 7:09d}"}
    assert f"{int(lease.name) + 1:09d}" in [path.name for path in list_folder(run / ".lock")]


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_server_that_never_answers_is_one_line(store: Proxy, root: Path, tmp_path: Path, fault: str):
    store.fault = lambda method, path: fault if path.endswith("part-00000.parquet") and method == "GET" else None
    job = do(*training(root / "data", tmp_path / "run"), code=2)
    lines = [line for line in job.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert f"{root}/data/" in lines[0]
    assert "Traceback" not in job.stderr
    assert PASSWORD not in job.stdout + job.stderr


UNREACHABLE = {
    "bucket": "there is no bucket or container absent; make it first",
    "server": "connect",
    "rights": "",
    "credentials": "",
}
NO_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_EC2_METADATA_DISABLED": "true",
    "GOOGLE_APPLICATION_CREDENTIALS": "/absent",
    "AZURE_STORAGE_CONNECTION_STRING": "",
}


@pytest.mark.parametrize("wrong", UNREACHABLE)
def test_what_cannot_be_reached_is_one_line(store: Proxy, root: Path, disk: Path, wrong: str):
    out, env = root / "unreachable", {}
    if wrong == "bucket":
        out = parse_path(str(out).replace(BUCKET, "absent"))
    elif wrong == "server":
        elsewhere = f"http://127.0.0.1:{free_port()}"
        env = {name: value.replace(store.url, elsewhere) for name, value in os.environ.items() if store.url in value}
    elif wrong == "rights":
        store.fault = lambda *_: "403"
    else:
        env = NO_CREDENTIALS
    for source, target in ((out, disk / "absent"), (disk / "raw", out)):
        job = do("prepare", "merrec", source, target, env=env, code=2)
        lines = job.stderr.splitlines()
        print(lines)
        [line] = [line for line in lines if line.startswith("error")]
        assert line == lines[-1]
        assert "Traceback" not in job.stderr
        assert PASSWORD not in job.stdout + job.stderr
        assert not (disk / "absent").exists()
    assert UNREACHABLE[wrong] in line.lower()


def test_no_file_holds_a_password(store: Proxy, root: Path):
    run = root / "secret/run"
    do(*training(root / "data", run, training__max_steps=7))
    for content in itertools.chain(contents(run).values(), contents(root / "data").values()):
        assert PASSWORD.encode() not in content


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    do("synth", "merrec", folder / "raw", "--events", 600_000)
    do("prepare", "merrec", folder / "raw", folder / "data")
    return folder / "data"


def test_reading_ahead_hides_a_slow_server(store: Proxy, root: Path, many: Path):
    """With 50 ms added to every request, a step waits for its data a tenth of the time at most."""
    put(many, root / "slow/data")
    store.delay = 0.05
    once = {"training__max_steps": 0, "training__max_epochs": 1, "checkpoint__every_steps": 0}
    do(*training(root / "slow/data", root / "slow/run", **once), ranks=2)
    seconds = read_json(root / "slow/run" / "results.json")["seconds"]
    print(seconds, len(store.requests))
    assert seconds["data_wait"] <= 0.1 * seconds["train"]
