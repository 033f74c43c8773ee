"""From a task's error to the driver's, through what Spark makes of it."""

from __future__ import annotations

import json
import re

from recmtl.errors import UserError

MARK = "#recmtl-error#"
"""Stands around a user's mistake in what Spark says of a task that failed."""
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n.*?\n(?=\s*SQLSTATE|\s*at )", re.DOTALL)
"""What Python said in a task, up to what Java says of it."""


def marked(error: UserError) -> UserError:
    """A user's mistake as a task raises it."""
    return UserError(f"{MARK}{json.dumps(str(error))}{MARK}")


def driver_error(text: str) -> Exception:
    """What to raise where Spark failed.

    Args:
        text: what it says.

    Returns:
        A UserError: the user's mistake in a task, or, without Java's stack, what is wrong with the cluster. A
        RuntimeError with Python's traceback: another error in a task.
    """
    if found := re.search(f"{MARK}(.*?){MARK}", text):
        return UserError(json.loads(found[1]))
    if traceback := TRACEBACK.search(text):
        return RuntimeError(f"a task of Spark failed:\n{traceback[0]}")
    return UserError(f"--engine spark: {java_reason(text)}")


def java_reason(text: str) -> str:
    """What an error of Java says, without its class and its stack."""
    said = text.partition("\n: ")[2] or text
    first = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return re.sub(r"^(?:[\w$]+\.)+[\w$]+: ", "", first) or "its Java process has ended"
