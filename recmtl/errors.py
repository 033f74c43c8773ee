"""The exceptions that the command line turns into one line, and what other errors mean."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave: a file, a column, a key, a flag.

    The message is one line that names the place and says what to do. The command line prints it as
    ``error: <message>`` without a traceback and exits with code 2.
    """


class StorageError(UserError):
    """What an object store refuses, or does not do though it was asked again and again.

    It is none of the system's errors, which say of files on a disk that they are damaged: here they may be whole.

    Args:
        path: the URL.
        reason: what is wrong, in one line.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say to a user of a name that nothing has: the one that it may stand for, else all there are."""
    near = get_close_matches(name, known, n=1, cutoff=0.7)  # so that gpu is not taken for cpu
    return f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(known)}"


class Stopped(Exception):
    """The end that SIGTERM asked for: everything is saved, the same command goes on.

    The command line prints the message and exits with code 143, which schedulers read as worth another try.
    """


OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "alloc_failed")
"""Words of the errors of PyTorch's, CUDA's and DuckDB's allocators, which have no common class."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, other than a user's, says that memory ran out: a host's, a GPU's, or what DuckDB may use."""
    said = any(words in str(error).lower() for words in OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or (said and not isinstance(error, UserError))
