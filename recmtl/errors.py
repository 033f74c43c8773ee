"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: a file, a column, a key, a flag.

    The message is one line that names the place and says what to do. The command line prints it as
    ``error: <message>`` without a traceback and exits with code 2.
    """
