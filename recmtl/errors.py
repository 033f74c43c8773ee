"""The exceptions that the command line turns into one line."""


class UserError(Exception):
    """A mistake in what the user gave: a file, a column, a key, a flag.

    The message is one line that names the place and says what to do. The command line prints it as
    ``error: <message>`` without a traceback and exits with code 2.
    """


class Stopped(Exception):
    """The end that SIGTERM asked for: everything is saved, the same command goes on.

    The command line prints the message and exits with code 143, which schedulers read as worth another try.
    """
