"""Folders of object stores that are complete or absent, and leases: who may write them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from stores import empty_store, failing, names

from recmtl.data.prepare.replaceable import check_replaceable
from recmtl.errors import StorageError, UserError
from recmtl.runtime import leases, remote
from recmtl.runtime.folders import complete_or_absent, file_complete_or_absent, link_folder, scratch_folder
from recmtl.runtime.locks import locked
from recmtl.runtime.storage import list_files, read_text, write_json, write_whole


def write(out: Path, *files: str, **options: object) -> None:
    with complete_or_absent(out, **options) as work:
        for name in files:
            (work / "data" / name).parent.mkdir(exist_ok=True)
            (work / "data" / name).write_text(name)


def test_the_marker_comes_last():
    out = empty_store()
    with failing(lambda *_: None) as store:
        write(out, "dataset.json", "train/part-0", "vocab/x", marker="dataset.json")
    uploaded = [where for name, where in store.requests if name == "put_file"]
    assert uploaded[-1] == str(out / "dataset.json")
    assert names(out) == ["dataset.json", "train/part-0", "vocab/x"]
    assert list_files(out.parent) == list_files(out)


def test_a_folder_without_a_main_file_gets_a_marker():
    out = empty_store()
    write(out, "part-0")
    assert names(out) == ["_SUCCESS", "part-0"]


def test_an_upload_that_fails_leaves_a_folder_without_its_marker_and_the_next_one_clears_it():
    out = empty_store()
    with (
        failing(lambda name, where: ConnectionError("cut") if name == "put_file" and where.endswith("c") else None),
        pytest.raises(StorageError, match="cut"),
    ):
        write(out, "a", "b", "c", "manifest.json", marker="manifest.json")
    assert "manifest.json" not in names(out)
    write(out, "a", "manifest.json", marker="manifest.json")
    assert names(out) == ["a", "manifest.json"]


def test_other_files_are_never_taken_for_what_an_upload_left():
    out = empty_store()
    write_whole(out / "mine", "")
    with pytest.raises(UserError, match="exists and is not empty"):
        write(out, "a")
    assert names(out) == ["mine"]


def test_a_file_is_not_taken_for_an_absent_folder():
    out = empty_store()
    write_whole(out, "mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        write(out, "a")
    with pytest.raises(UserError, match="is no folder that `recmtl prepare` wrote"):
        write(out, "dataset.json", check_replaceable=check_replaceable, marker="dataset.json")
    assert read_text(out) == "mine"


def test_work_that_fails_uploads_nothing():
    out = empty_store()
    with pytest.raises(ZeroDivisionError), complete_or_absent(out):
        1 / 0  # noqa: B018
    assert list_files(out) == []


def test_what_is_replaced_loses_its_marker_first_and_its_other_files(monkeypatch: pytest.MonkeyPatch):
    out = empty_store()
    described = {"format": 1, "data_fingerprint": ""}
    write_json(out / "dataset.json", described)
    write_whole(out / "vocab" / "old.parquet", "")
    with failing(lambda *_: None) as store:
        write(out, "dataset.json", "recipe.toml", check_replaceable=check_replaceable, marker="dataset.json")
    changes = [
        (name, where) for name, where in store.requests if name.startswith(("rm", "put")) and str(out) + "/" in where
    ]
    assert changes[0] == ("rm_file", str(out / "dataset.json"))
    assert names(out) == ["dataset.json", "recipe.toml"]
    write_whole(out / "mine", "")
    with pytest.raises(UserError, match="is no folder that `recmtl prepare` wrote"):
        write(out, "dataset.json", check_replaceable=check_replaceable, marker="dataset.json")
    assert names(out) == ["dataset.json", "mine", "recipe.toml"]


def test_a_file_is_complete_or_absent():
    out = empty_store() / "x.parquet"
    with pytest.raises(ZeroDivisionError), file_complete_or_absent(out):
        1 / 0  # noqa: B018
    assert list_files(out.parent) == []
    with file_complete_or_absent(out) as path:
        path.write_text("x")
    assert read_text(out) == "x"
    with pytest.raises(UserError, match="exists"), file_complete_or_absent(out):
        pass


def test_work_for_a_store_lies_on_this_machine():
    with scratch_folder(empty_store()) as folder:
        (folder / "x").touch()
    assert not folder.exists()


@pytest.mark.parametrize("places", ["disk store", "store disk"])
def test_files_of_a_folder_are_linked_or_copied(places: str, tmp_path: Path):
    source, target = ({"disk": tmp_path, "store": empty_store()}[place] / place for place in places.split())
    for name in ("a", "b"):
        remote.write_whole(source / name, name) if places.split()[0] == "store" else _touch(source / name, name)
    link_folder(source, target)
    link_folder(source, target)
    assert [(path.name, read_text(path)) for path in list_files(target)] == [("a", "a"), ("b", "b")]


def _touch(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)


@pytest.mark.usefixtures("quick")
def test_a_second_holder_is_refused_and_told_of_the_first():
    run = empty_store()
    with locked(run / ".lock", run) as check:
        check()
        said = f"{run}: in use by process {os.getpid()} on .*; wait for it to end or name another folder"
        with pytest.raises(UserError, match=said), locked(run / ".lock", run):
            pass
        check()
    with locked(run / ".lock", run) as check:
        check()
    assert names(run) == []


@pytest.mark.usefixtures("quick")
def test_a_lease_that_was_not_renewed_expires():
    run = empty_store()
    _write_lease(run, 7, machine="another")
    began = time.monotonic()
    with locked(run / ".lock", run) as check:
        check()
        assert names(run) == [f".lock/{8:09d}"]
    assert time.monotonic() - began > 0.5


def test_a_lease_of_a_process_of_this_machine_ends_with_it():
    run = empty_store()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    _write_lease(run, 1, pid=int(ended.stdout), machine=leases._machine(), started="1")
    began = time.monotonic()
    with locked(run / ".lock", run):
        pass
    assert time.monotonic() - began < leases.LEASE_SECONDS / 2


def _write_lease(run: Path, token: int, **holder: object) -> None:
    described = {"pid": 1, "host": "host", "id": "other", "beat": 1, **holder}
    remote.write_bytes(run / ".lock" / f"{token:09d}", json.dumps(described).encode())


@pytest.mark.usefixtures("quick")
def test_who_lost_a_lease_learns_of_it_before_it_writes():
    run = empty_store()
    with locked(run / ".lock", run) as check:
        _write_lease(run, 2)
        with pytest.raises(UserError, match="another process took it over"):
            check()
    assert json.loads(read_text(run / ".lock" / f"{2:09d}"))["id"] == "other"


@pytest.mark.usefixtures("quick")
def test_who_cannot_renew_a_lease_stops_before_others_may_take_it():
    run = empty_store()
    with locked(run / ".lock", run) as check:
        with failing(lambda name, _: ConnectionError("cut") if name == "pipe_file" else None):
            time.sleep(1.0)
            with pytest.raises(UserError, match="another process took it over"):
                check()
        time.sleep(0.2)
        check()  # it is renewed again, and nobody took it


@pytest.mark.usefixtures("quick")
def test_one_of_many_gets_a_lease():
    run = empty_store()
    got, refused, done = [], [], threading.Event()

    def take() -> None:
        try:
            with locked(run / ".lock", run) as check:
                check()
                got.append(1)
                done.wait(10)
                check()
        except UserError as error:
            refused.append(error)
            if len(refused) == 3:
                done.set()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)
