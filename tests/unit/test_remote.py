"""Paths in object stores, and that functions of `recmtl.runtime.storage` do the same there as on a disk."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from stores import empty_store, failing, names

from recmtl.errors import StorageError, UserError
from recmtl.runtime import object_stores, remote
from recmtl.runtime.cache import local_copy
from recmtl.runtime.ranges import BLOCK_BYTES, TAIL_BYTES, Ahead, RemoteFile
from recmtl.runtime.scratch import scratch_folder
from recmtl.runtime.storage import (
    copy_file,
    exists,
    file_size,
    is_file,
    is_folder,
    list_files,
    list_folder,
    make_afresh,
    make_folder,
    open_append,
    open_read,
    open_write,
    parse_path,
    publish,
    read_json,
    read_text,
    real_path,
    remove,
    remove_folder,
    rename,
    write_json,
    write_whole,
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RECMTL_CACHE", str(folder))
    return folder


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "folder" if request.param == "disk" else empty_store()


def test_a_url_is_taken_apart_and_put_together():
    path = parse_path("s3://bucket/data/train/part-0.parquet")
    assert str(path) == f"{path}" == path.as_posix() == str(path.absolute()) == "s3://bucket/data/train/part-0.parquet"
    assert str(path.parent / "x") == "s3://bucket/data/train/x"
    assert (path.name, path.stem, path.suffix) == ("part-0.parquet", "part-0", ".parquet")
    assert str(path.with_name("y")) == "s3://bucket/data/train/y"
    assert str(path.with_suffix(".csv")) == "s3://bucket/data/train/part-0.csv"
    assert str(path.relative_to(parse_path("s3://bucket/data"))) == "train/part-0.parquet"
    assert path.is_relative_to(parse_path("s3://bucket/data"))
    assert not path.is_relative_to(parse_path("gs://bucket/data"))
    assert not path.is_relative_to(Path("/bucket"))
    assert real_path(path) == path == parse_path(str(path))
    assert pickle.loads(pickle.dumps(path)) == path
    assert str(parse_path("abfs://box@account.dfs.core.windows.net/a")) == "abfs://box@account.dfs.core.windows.net/a"


def test_what_is_no_url_is_a_path_of_this_machine():
    assert parse_path("data/s3:/x") == Path("data/s3:/x")
    assert type(parse_path("/data")) is type(Path("/data"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/data", "ftp://host/data: no store that recmtl knows; it takes s3://, gs://, abfs://, hf:// and"),
        ("s3://", "s3://: names no bucket; write s3://BUCKET/FOLDER"),
        ("S3://bucket/data", "no store that recmtl knows"),
    ],
)
def test_a_url_of_no_store_is_refused(url: str, said: str):
    with pytest.raises(UserError, match="^" + said if said.startswith(url) else said):
        parse_path(url)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    import fsspec

    def absent(scheme: str, **_: object) -> None:
        raise ImportError(scheme)

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(UserError, match=r"gs://: gcsfs is not installed; run pip install 'recmtl\[gs\]'"):
        exists(parse_path("gs://bucket/x"))


@pytest.mark.parametrize(
    ("url", "said"),
    [("hf://datasets/a/b/c", "hf:// is read, not written"), ("memory://bucket", "is a whole bucket")],
)
def test_what_cannot_be_written_is_refused(url: str, said: str):
    path = parse_path(url)
    for write in (
        lambda: write_whole(path, ""),
        lambda: make_folder(path),
        lambda: make_afresh(path),
        lambda: open_write(path),
        lambda: open_append(path),
        lambda: remove(path),
        lambda: copy_file(Path(__file__), path),
    ):
        with pytest.raises(UserError, match=said):
            write()


def test_files_are_written_read_and_listed(folder: Path):
    assert list_folder(folder) == list_files(folder) == []
    assert not exists(folder)
    make_folder(folder / "deep")
    write_whole(folder / "b.txt", "é")
    write_json(folder / "a.json", {"x": [1]})
    with open_write(folder / "deep" / "c.bin") as file:
        file.write(b"12")
        file.write(b"3")
    assert read_text(folder / "b.txt") == "é"
    assert read_json(folder / "a.json") == {"x": [1]}
    with open_read(folder / "deep" / "c.bin") as file:
        assert file.read() == b"123"
    assert [path.name for path in list_folder(folder)] == ["a.json", "b.txt", "deep"]
    assert [path.name for path in list_folder(folder, "*.txt")] == ["b.txt"]
    assert [str(path.relative_to(folder)) for path in list_files(folder)] == ["a.json", "b.txt", "deep/c.bin"]
    assert list_folder(folder / "b.txt") == []
    for path in (*list_folder(folder), *(folder / name for name in ("a.json", "b.txt", "deep"))):
        assert exists(path)
        assert is_folder(path) == (path.name == "deep") != is_file(path)
    assert file_size(folder / "deep" / "c.bin") == 3
    rename(folder / "deep" / "c.bin", folder / "d.bin")
    assert not exists(folder / "deep" / "c.bin")
    remove(folder / "b.txt")
    remove(folder / "absent")
    remove_folder(folder / "absent", ignore_errors=True)
    assert [path.name for path in list_files(folder)] == ["a.json", "d.bin"]
    make_folder(folder.with_name("other"))
    rename(folder, folder.with_name("other") / "moved")
    assert [path.name for path in list_files(folder.with_name("other") / "moved")] == ["a.json", "d.bin"]
    make_afresh(folder.with_name("other"))
    assert list_files(folder.with_name("other")) == []


@pytest.mark.parametrize(
    "request_",
    [
        lambda path: read_text(path),
        lambda path: file_size(path),
        lambda path: open_read(path).read(),
        lambda path: remove_folder(path),
        lambda path: rename(path, path.with_name("other")),
    ],
)
def test_what_is_not_there_is_not_found(folder: Path, request_):
    make_folder(folder)
    with pytest.raises(FileNotFoundError):
        request_(folder / "absent")


def test_names_with_the_letters_of_patterns(folder: Path):
    make_folder(folder)
    for name in ("a*b", "a[1]", "axb"):
        write_whole(folder / name, name)
    remove(folder / "a*b")
    assert [path.name for path in list_files(folder)] == ["a[1]", "axb"]
    assert read_text(folder / "a[1]") == "a[1]"
    remove_folder(folder)
    assert list_files(folder) == []


def test_what_is_appended_is_there_when_it_is_published(folder: Path):
    make_folder(folder)
    path = folder / "metrics.jsonl"
    write_whole(path, "1\n")
    with open_append(path) as file:
        file.write("2\n")
        publish(file)
        assert read_text(path) == "1\n2\n"
        file.write("3\n")
    assert read_text(path) == "1\n2\n3\n"


def test_a_file_that_an_error_leaves_is_not_there():
    path = empty_store() / "x"
    with suppress(KeyError), open_write(path) as file:
        file.write(b"1")
        raise KeyError
    assert not exists(path)
    assert list(scratch_folder().iterdir()) == [scratch_folder() / "lock"]


@pytest.mark.parametrize("places", ["disk store", "store disk"])
def test_files_are_copied_between_places(places: str, tmp_path: Path):
    source, target = ({"disk": tmp_path, "store": empty_store()}[place] / place for place in places.split())
    write_whole(source, "content")
    copy_file(source, target)
    assert read_text(target) == "content"


def test_a_request_that_fails_for_a_while_is_made_again():
    path = empty_store() / "x"
    left = {"pipe_file": 3, "cat_file": 4}

    def fails(name: str, _: str) -> Exception | None:
        left[name] = left.get(name, 0) - 1
        return OSError(16, "Please reduce your request rate.") if left[name] >= 0 else None

    with failing(fails):
        write_whole(path, "x")
        assert read_text(path) == "x"


def test_what_goes_on_failing_names_the_url():
    path = empty_store() / "x"
    with failing(lambda *_: ConnectionError("cut")) as store, pytest.raises(StorageError) as caught:
        read_text(path)
    assert str(caught.value) == f"{path}: cut"
    assert len(store.requests) == 5


@pytest.mark.parametrize("error", [PermissionError(13, "Access Denied"), ValueError("no such key")])
def test_what_another_try_does_not_mend_is_tried_once(error: Exception):
    with failing(lambda *_: error) as store, pytest.raises(StorageError):
        read_text(empty_store() / "x")
    assert len(store.requests) == 1


def test_no_password_of_an_endpoint_is_said():
    error = ValueError("cannot reach https://me:secret@host:9000/x")
    with failing(lambda *_: error), pytest.raises(StorageError) as caught:
        read_text(empty_store() / "x")
    assert str(caught.value).endswith("/x: cannot reach https://host:9000/x")


def test_one_of_several_creates_a_file():
    path = empty_store() / "x"
    assert remote.create(path, b"mine")
    assert not remote.create(path, b"other")
    assert remote.read_bytes(path) == b"mine"


def test_a_create_whose_answer_was_lost_is_known_by_its_content():
    path = empty_store() / "x"
    whole = object_stores.file_system("memory")
    sent = []

    def fails(name: str, where: str) -> Exception | None:
        if name == "pipe_file" and not sent:
            sent.append(where)
            whole.pipe_file(where, b"mine")
            return ConnectionError("cut")
        return None

    with failing(fails):
        assert remote.create(path, b"mine")
    assert sent


def test_a_copy_is_fetched_once_and_again_when_the_file_is_another():
    path = empty_store() / "x.npy"
    write_whole(path, "one")
    with failing(lambda *_: None) as store:
        first = local_copy(path)
        assert local_copy(path) == first
        assert [name for name, _ in store.requests].count("cat_file") == 1
    assert (first.name, first.read_text()) == ("x.npy", "one")
    write_whole(path, "longer")
    assert local_copy(path).read_text() == "longer"
    with pytest.raises(FileNotFoundError):
        local_copy(path.with_name("absent"))


def test_a_copy_that_is_cut_off_is_none():
    path = empty_store() / "x"
    write_whole(path, "content")
    with failing(lambda name, _: ConnectionError("cut") if name == "cat_file" else None), pytest.raises(StorageError):
        local_copy(path)
    assert local_copy(path).read_text() == "content"


def test_copies_used_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch):
    from recmtl.runtime import cache

    monkeypatch.setenv("RECMTL_CACHE_GB", "0.000000025")  # 25 bytes
    copies = []
    for _ in range(3):
        path = empty_store() / "x"
        write_whole(path, "0123456789")
        copies.append(local_copy(path))
        cache._used.clear()  # as if other processes had used them
    assert [copy.exists() for copy in copies] == [False, True, True]
    monkeypatch.setenv("RECMTL_CACHE_GB", "much")
    write_whole(path, "new")
    with pytest.raises(UserError, match="RECMTL_CACHE_GB: 'much' is no number"):
        local_copy(path)


def test_ranges_of_a_file_are_what_is_in_it():
    path = empty_store() / "x"
    content = np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 12345)
    remote.write_bytes(path, content)
    places = [(0, 10), (5, 2 * BLOCK_BYTES), (3 * BLOCK_BYTES, 20000), (len(content) - 8, 8), (len(content) - 4, 100)]
    with RemoteFile(path) as file:
        for start, count in (*places, (len(content) - TAIL_BYTES - 5, 10), (len(content), 1)):
            file.seek(start)
            assert file.read(count) == content[start : start + count]
            assert file.tell() == min(start + count, len(content))
        file.seek(-5, 2)
        assert file.read() == content[-5:]
        file.seek(0)
        assert file.read() == content


def test_what_is_expected_is_fetched_once_and_before_it_is_read():
    path = empty_store() / "x"
    content = np.random.default_rng(0).bytes(BLOCK_BYTES)
    remote.write_bytes(path, content)
    with failing(lambda *_: None) as store:
        ahead = Ahead()
        ahead.expect(path, 1000, 5000)
        ahead.expect(path, 1000, 5000)
        with RemoteFile(path, ahead) as file:
            for start in range(1000, 5000, 500):
                file.seek(start)
                assert file.read(500) == content[start : start + 500]
        ahead.close()
        assert [name for name, _ in store.requests].count("cat_file") == 1


def test_what_is_expected_and_fails_says_so_where_it_is_read():
    path = empty_store() / "x"
    remote.write_bytes(path, bytes(BLOCK_BYTES))
    with failing(lambda name, _: ConnectionError("cut") if name == "cat_file" else None):
        ahead = Ahead()
        ahead.expect(path, 0, 1000)
        with RemoteFile(path, ahead) as file, pytest.raises(StorageError, match="cut"):
            file.read(10)


def test_a_folder_in_a_store_is_listed_by_names():
    folder = empty_store()
    write_whole(folder / "a" / "b", "")
    assert names(folder) == ["a/b"]
