"""What components do to the arguments they are given: check numbers, and keep words as they were typed."""

from __future__ import annotations

import sys
from typing import NoReturn


def literal(text: str) -> str:
    """A text that TorchX passes on as it is: in a component's arguments and environment it replaces ``$$`` and its
    macros, such as ``${app_id}``.
    """
    return text.replace("$", "$$")


def literal_values(env: dict[str, str] | None) -> dict[str, str]:
    """As `literal`, the values of environment variables; none: an empty dictionary."""
    return {name: literal(value) for name, value in (env or {}).items()}


def check_numbers(least: int, **numbers: int) -> None:
    """End the process with one line and code 2 where an option of a component is less than it may be."""
    for option, number in numbers.items():
        if number < least:
            refuse(f"--{option}: {least} or more, not {number}")


def refuse(reason: str) -> NoReturn:
    """End the process with one line and code 2: TorchX prints pages of traceback for other errors of a component."""
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)
