"""The exceptions that the command line turns into one line, and what other errors mean."""


class UserError(Exception):
    """A mistake in what the user gave: a file, a column, a key, a flag.

    The message is one line that names the place and says what to do. The command line prints it as
    ``error: <message>`` without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """The end that SIGTERM asked for: everything is saved, the same command goes on.

    The command line prints the message and exits with code 143, which schedulers read as worth another try.
    """


OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""Words of the errors of PyTorch's and CUDA's allocators, which have no common class."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory, of the host or of a GPU, ran out."""
    said = isinstance(problem, RuntimeError) and any(words in str(problem) for words in OUT_OF_MEMORY)
    return said or isinstance(problem, MemoryError)
