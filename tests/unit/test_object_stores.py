"""What errors of the stores' libraries mean, and what sets one store apart from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import empty_store, failing

from recmtl.errors import StorageError, UserError
from recmtl.runtime import object_stores, remote, storage
from recmtl.runtime.object_stores import attempt
from recmtl.runtime.storage import copy_file, parse_path


class LibraryError(Exception):
    """As libraries of stores raise them: with the status of HTTP in one place or another."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("said\nRequestId:1\nTime:2")
        vars(self).update(attributes)


def with_status(status: int) -> list[Exception]:
    """The same as Azure's library, gcsfs, botocore and that of Hugging Face say it."""
    return [
        LibraryError(status_code=status),
        LibraryError(code=str(status)),
        LibraryError(response={"ResponseMetadata": {"HTTPStatusCode": status}}),
        LibraryError(response=LibraryError(status_code=status)),
    ]


@pytest.mark.parametrize("status", [400, 401, 403, 412, 416])
def test_what_the_store_refuses_is_asked_for_once(status: int):
    for error in with_status(status):
        with failing(lambda *_, error=error: error) as store, pytest.raises(StorageError) as caught:
            remote.read_bytes(empty_store() / "x")
        assert len(store.requests) == 1
        assert str(caught.value).endswith("/x: said")


def test_what_gcsfs_forbids_is_asked_for_once():
    error = OSError("Forbidden: b/bucket/o\nno right")
    with failing(lambda *_: error) as store, pytest.raises(StorageError, match="no right"):
        remote.read_bytes(empty_store() / "x")
    assert len(store.requests) == 1


def test_an_answer_without_words_is_its_status():
    with failing(lambda *_: ValueError(", 416")), pytest.raises(StorageError, match=r": HTTP status 416$"):
        remote.read_bytes(empty_store() / "x")


@pytest.mark.parametrize("status", [206, 408, 409, 429, 500, 503])
def test_what_may_pass_is_asked_for_again(status: int):
    for error in with_status(status):
        with failing(lambda *_, error=error: error) as store, pytest.raises(StorageError):
            remote.read_bytes(empty_store() / "x")
        assert len(store.requests) == 5


def test_a_library_that_tries_for_long_is_asked_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(object_stores, "WAITS", {"gs": (0.0,)})
    asked = []
    with pytest.raises(StorageError):
        attempt(parse_path("gs://bucket/x"), lambda: asked.append(1) or 1 / 0)
    assert len(asked) == 2


def test_what_is_not_there_has_the_words_of_a_disk():
    for error in (*with_status(404), FileNotFoundError("b/bucket/o/x")):
        with failing(lambda *_, error=error: error), pytest.raises(FileNotFoundError) as caught:
            remote.read_bytes(empty_store() / "x")
        assert caught.value.strerror == "No such file or directory"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: remote.write_bytes(path, b""),
        lambda path: remote.create(path, b""),
        lambda path: remote.upload(Path(__file__), path),
    ],
)
def test_a_bucket_that_is_not_there_is_named(write):
    path = empty_store() / "x"
    with (
        failing(lambda *_: FileNotFoundError("404")),
        pytest.raises(StorageError, match=f"^{path}: there is no bucket or container {path.parts[1]}; make it first$"),
    ):
        write(path)


def test_a_url_without_an_account_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name in object_stores.AZURE_ACCOUNT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"^abfs://box: names no account; write abfs://box@ACCOUNT\."):
        remote.exists(parse_path("abfs://box/x"))


def test_a_store_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch):
    import fsspec

    class Store:
        _get_kwargs_from_urls = staticmethod(lambda url: {})

        def __init__(self, **_: object) -> None:
            raise ValueError("this is no\nkey")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: Store)
    for function in (remote.list_folder, remote.list_files, remote.exists, remote.read_bytes):
        with pytest.raises(UserError, match=r"^s3://absent-box: this is no key$"):
            function(parse_path("s3://absent-box/x"))


class Copying:
    """Azure's file system as far as it copies."""

    def cp_file(self, source: str, target: str) -> None:
        self.copied = source, target


def test_a_copy_that_azure_has_not_made_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    store, states = Copying(), ["pending", "pending", "success", "aborted"]
    monkeypatch.setattr(remote, "fs_of", lambda path: store)
    monkeypatch.setattr(remote, "azure_copy", lambda path: states.pop(0))
    source, target = (parse_path(f"abfs://box@one.dfs.core.windows.net/{name}") for name in "xy")
    remote.copy(source, target)
    assert store.copied == (str(source), str(target))
    assert states == ["aborted"]
    with pytest.raises(StorageError, match=r"y: the copy of .*/x came to nothing \(aborted\)"):
        remote.copy(source, target)


def test_between_two_accounts_files_go_through_this_machine(monkeypatch: pytest.MonkeyPatch):
    done = []
    monkeypatch.setattr(storage, "local_copy", lambda path: Path("/copies") / path.name)
    monkeypatch.setattr(remote, "upload", lambda source, target: done.append(("upload", str(source))))
    monkeypatch.setattr(remote, "copy", lambda source, target: done.append(("copy", str(source))))
    one, two = (parse_path(f"abfs://box@{name}.dfs.core.windows.net/x") for name in ("one", "two"))
    copy_file(one, two)
    copy_file(one, one.with_name("y"))
    copy_file(parse_path("s3://one/x"), parse_path("s3://two/x"))
    assert done == [("upload", "/copies/x"), ("copy", str(one)), ("copy", "s3://one/x")]
