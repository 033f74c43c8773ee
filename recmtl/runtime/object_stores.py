"""Object stores, as fsspec reaches them: their URLs, their file systems, and requests that are made again.

Credentials and endpoints are those of the stores' own libraries.
"""

from __future__ import annotations

import errno
import functools
import os
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
WAITS: dict[str, tuple[float, ...]] = {"gs": (0.5,)}
DEFAULT_WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before a request is tried again, on average. The stores' libraries try each of these several times by
themselves, for some ten seconds; gcsfs does for half a minute, which cannot be changed."""
PERMANENT = (errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENAMETOOLONG, errno.ENOSYS, errno.ENOSPC)
"""What another try does not mend."""
PASSING = (408, 409, 425, 429)
"""Statuses of HTTP below 500 that another try may mend: time is out, another write is under way, too many requests."""
MISTAKES = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "ParamValidationError",
    "AzureSigningError",
    "ClientAuthenticationError",
)
"""Names of botocore's and Azure's errors that another try does not mend and that have no status."""
AZURE_ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING")
"""Variables that name an account for URLs that do not."""
ERRNO = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
}

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
        """The kind of store, such as ``s3``."""
        return self.parts[0].rstrip(":")

    @property
    def account(self) -> str:
        """The server that the URL names, an account of Azure's; empty: it names none."""
        return self.parts[1].partition("@")[2]


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
        UserError: the package that reaches it is not installed, or finds no account or credentials.
    """
    if scheme == "gs":
        # Objects alone: by default gcsfs asks over gRPC before every request what kind of bucket it is, again and again
        # where the answer is refused. It looks when it is imported.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    elif scheme == "abfs" and "@" not in bucket and not any(os.environ.get(name) for name in AZURE_ACCOUNT):
        whole = f"abfs://{bucket}@ACCOUNT.dfs.core.windows.net/FOLDER"
        raise UserError(f"abfs://{bucket}: names no account; write {whole} or set {AZURE_ACCOUNT[0]}")
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
        found = kind(**_options(scheme), **kind._get_kwargs_from_urls(f"{scheme}://{bucket}/x"))
    except ImportError:
        extra = f"recmtl[{scheme}]" if scheme != "memory" else "fsspec"
        raise UserError(f"{scheme}://: {SCHEMES[scheme]} is not installed; run pip install '{extra}'") from None
    except Exception as error:
        raise UserError(f"{scheme}://{bucket}: {_reason(error)}") from None
    if scheme == "s3":
        found.retries = 1  # it would try at once what botocore has waited for
    elif scheme == "gs":
        _check_google_credentials(found)
    elif scheme == "abfs":
        _check_azure_account(found, bucket)
        # Its own default waits for 15 s before the second try, longer than a lease can wait.
        policy = found.service_client._config.retry_policy
        policy.initial_backoff, policy.increment_base = 1, 2
    return found


def _options(scheme: str) -> dict[str, Any]:
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        # The standard mode waits between tries, twice as long each time.
        retries = {"mode": "standard", "total_max_attempts": 5}
        options["config_kwargs"] = {"retries": retries, "read_timeout": 30, "max_pool_connections": 64}
    elif scheme == "gs":
        import aiohttp

        # By default a request may take five minutes in all, however much it sends.
        options["requests_timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=30)
    elif scheme == "abfs":
        options["max_concurrency"] = 8  # parts of one file, each in memory; the default is 128
    return options


def _check_google_credentials(found: Any) -> None:
    """Raise UserError where gcsfs passed over the credentials that the user named: it goes on without any."""
    name = "GOOGLE_APPLICATION_CREDENTIALS"
    if os.environ.get(name) and found.credentials.credentials is None:
        raise UserError(f"{name}: {os.environ[name]} holds no credentials that Google's library can use")


def _check_azure_account(found: Any, bucket: str) -> None:
    """Raise UserError where the account of a URL is not the one that adlfs takes."""
    named, other = bucket.partition("@")[2].partition(".")[0], found.service_client.account_name
    if named and other and named != other:
        raise UserError(f"abfs://{bucket}: AZURE_STORAGE_CONNECTION_STRING is of another account, {other}")


def attempt(path: Path, request: Callable[[], T]) -> T:
    """Make a request, again where it fails for a reason that may pass.

    Raises:
        FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError: as for any file.
        StorageError: it failed for good.
    """
    for wait in (*WAITS.get(path.scheme, DEFAULT_WAITS), None):  # type: ignore[attr-defined]
        try:
            return request()
        except (UserError, TypeError):
            raise
        except Exception as error:
            if number := _errno(error):
                raise OSError(number, os.strerror(number), str(path)) from None
            if wait is None or not _may_pass(error):
                raise StorageError(path, _reason(error)) from None
            time.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError


def _errno(error: Exception) -> int | None:
    """The number of those errors that are the same on a disk."""
    if _status(error) == 404:
        return errno.ENOENT
    return next((number for kind, number in ERRNO.items() if isinstance(error, kind)), None)


def _status(error: Exception) -> int | None:
    """The status of HTTP that an error stands for, by the names that the stores' libraries give it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        places = [(place, name) for place in (error, response) for name in ("status_code", "code", "status")]
        found = next((value for place, name in places if (value := getattr(place, name, None))), None)
    return int(found) if str(found).isdigit() else None


def _may_pass(error: Exception) -> bool:
    if isinstance(error, PermissionError | ValueError) or type(error).__name__ in MISTAKES:
        return False
    status = _status(error)
    if status and 400 <= status < 500:
        return status in PASSING
    if str(error).startswith("Forbidden: "):  # as gcsfs says it
        return False
    return not (isinstance(error, OSError) and error.errno in PERMANENT)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = re.split(r"\n(?:RequestId:|Attempted credentials:)", text)[0]  # what Azure's library adds fills a page
    text = re.sub(r"(https?://)[^/@\s]+@", r"\1", text)  # an endpoint may hold a password
    text = " ".join(text.split()).strip(", ")
    if text.isdigit():  # all that gcsfs has of an answer without words
        text = f"HTTP status {text}"
    name = type(error).__name__
    return f"{name}: {text}" if text and name in MISTAKES else text or name


def fs_of(path: Path) -> Any:
    """The file system that a remote path is in."""
    return file_system(path.scheme, path.parts[1])  # type: ignore[attr-defined]


def azure_copy(path: Path) -> str:
    """How far Azure, which may answer before it has copied, is with the copy that becomes an object: ``pending``,
    ``success`` or how it failed.
    """
    from fsspec.asyn import sync

    fs = fs_of(path)
    container, name, _ = fs.split_path(str(path))

    async def state() -> str:
        async with fs.service_client.get_blob_client(container, name) as blob:
            return str((await blob.get_blob_properties()).copy.status)

    return str(sync(fs.loop, state))
