"""Object stores, as fsspec reaches them: their URLs, their file systems, and requests that are made again.

Credentials and endpoints are those of the stores' own libraries.
"""

from __future__ import annotations

import errno
import functools
import random
import re
import time
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any, TypeVar

from recmtl.errors import StorageError, UserError

SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "hf": "huggingface_hub", "memory": "fsspec"}
"""What object stores are called in URLs, and the package that reaches each; ``memory`` is this process's, for tests."""
READ_ONLY = ("hf",)
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before a request is tried again, on average; botocore tries each of these five times by itself."""
PERMANENT = (errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENAMETOOLONG, errno.ENOSYS, errno.ENOSPC)
"""What another try does not mend."""
MISTAKES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")
"""Names of botocore's errors that another try does not mend."""

T = TypeVar("T")


class RemotePath(PosixPath):
    """The place of a file or folder in an object store, such as ``s3://bucket/data/dataset.json``.

    It is taken apart and put together as any path; its parts are ``s3:``, ``bucket``, ``data`` and so on. Whoever opens
    it by itself finds no such file on this machine: functions of `recmtl.runtime.storage` do.
    """

    listed: dict[str, Any] | None = None
    """What the listing that the path comes from said of it."""

    def __str__(self) -> str:
        text = super().__str__()
        scheme, colon, rest = text.partition(":/")
        return f"{scheme}://{rest}" if colon and scheme in SCHEMES else text

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def as_posix(self) -> str:
        return str(self)

    def absolute(self) -> RemotePath:
        """The path itself: it depends on no current folder."""
        return self

    def is_absolute(self) -> bool:
        return True

    @property
    def scheme(self) -> str:
        """The store, such as ``s3``."""
        return self.parts[0].rstrip(":")


def parse_url(text: str) -> RemotePath:
    """The path that a URL names.

    Raises:
        UserError: there is no such kind of store, or no name within one.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
        raise UserError(f"{text}: no store that recmtl knows; it takes {known} and paths of this machine")
    if not rest.strip("/"):
        raise UserError(f"{text}: names no bucket; write {scheme}://BUCKET/FOLDER")
    return RemotePath(text)


@functools.cache
def file_system(scheme: str, bucket: str = "") -> Any:
    """The fsspec file system of a store; credentials and endpoint are those of its own library.

    Args:
        scheme: of URLs.
        bucket: as URLs name it; with abfs it may name an account.

    Raises:
        UserError: the package that reaches it is not installed.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        # The standard mode waits between tries, twice as long each time.
        retries = {"mode": "standard", "total_max_attempts": 5}
        options["config_kwargs"] = {"retries": retries, "read_timeout": 30, "max_pool_connections": 64}
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
        found = kind(**options, **kind._get_kwargs_from_urls(f"{scheme}://{bucket}/x"))
    except ImportError:
        extra = f"recmtl[{scheme}]" if scheme != "memory" else "fsspec"
        raise UserError(f"{scheme}://: {SCHEMES[scheme]} is not installed; run pip install '{extra}'") from None
    if scheme == "s3":
        found.retries = 1  # it would try at once what botocore has waited for
    return found


def attempt(path: Path, request: Callable[[], T]) -> T:
    """Make a request, again where it fails for a reason that may pass.

    Raises:
        FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError: as for any file.
        StorageError: it failed for good.
    """
    for wait in (*WAITS, None):
        try:
            return request()
        except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise type(error)(error.errno or errno.ENOENT, _reason(error), str(path)) from None
        except (UserError, TypeError):
            raise
        except Exception as error:
            if wait is None or not _may_pass(error):
                raise StorageError(path, _reason(error)) from None
            time.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    if isinstance(error, PermissionError | ValueError) or type(error).__name__ in MISTAKES:
        return False
    return not (isinstance(error, OSError) and error.errno in PERMANENT)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = re.sub(r"(https?://)[^/@\s]+@", r"\1", text)  # an endpoint may hold a password
    return " ".join(text.split()) or type(error).__name__


def fs_of(path: Path) -> Any:
    """The file system that a remote path is in."""
    return file_system(path.scheme, path.parts[1])  # type: ignore[attr-defined]
