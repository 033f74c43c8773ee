"""From a task's error to the driver's, through what Spark makes of it."""

from __future__ import annotations

import json
import re

from recmtl.errors import UserError

MARK = "#recmtl-error#"
"""Stands around a user's mistake in what Spark says of a task that failed."""
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n.*?\n(?=\s*SQLSTATE|\s*at )", re.DOTALL)
"""What Python said in a task, up to what Java says of it."""

ENDED = re.compile("SparkContext (?:has been|was) shut ?down|stopped SparkContext")
"""What Spark says of every call once it has ended, for a reason that its log has."""


def marked(error: UserError) -> UserError:
    """A user's mistake as a task raises it."""
    return UserError(f"{MARK}{json.dumps(str(error))}{MARK}")


def driver_error(text: str, log: str = "") -> Exception:
    """What to raise where Spark failed.

    Args:
        text: what it says.
        log: of its process on the driver.

    Returns:
        A UserError: the user's mistake in a task, or, without Java's stack, what is wrong with the cluster. A
        RuntimeError with Python's traceback: another error in a task.
    """
    if found := re.search(f"{MARK}(.*?){MARK}", text):
        return UserError(json.loads(found[1]))
    if traceback := TRACEBACK.search(text):
        return RuntimeError(f"a task of Spark failed:\n{traceback[0]}")
    reason = java_reason(text)
    if not reason or ENDED.search(text):
        reason = _logged(log) or reason or "its Java process has ended"
    return UserError(f"--engine spark: {reason}")


def _logged(log: str) -> str:
    """Why Spark ended or did not start, as its log has it; empty if that does not say."""
    if found := re.search(r"^\S+ \S+ ERROR [\w.]+: (.*)$", log, re.MULTILINE):
        return found[1]
    said = [line.strip() for line in log.splitlines() if re.search("error|exception|not |no such", line, re.IGNORECASE)]
    return said[-1] if said else ""


def java_reason(text: str) -> str:
    """What an error of Java says, without its class and its stack."""
    said = text.partition("\n: ")[2] or text
    first = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return re.sub(r"^(?:[\w$]+\.)+[\w$]+: ", "", first)
