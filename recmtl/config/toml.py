"""Reading and writing TOML."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import tomli_w

from recmtl.errors import UserError
from recmtl.runtime.storage import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it isn't there or isn't TOML; names the line.
    """
    try:
        # Editors on Windows start a file with a byte order mark, which this encoding takes away.
        return tomllib.loads(read_text(path, encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except ValueError as error:  # of TOML, or of a number with thousands of digits
        raise UserError(f"{path}: not valid TOML: {error}") from None


def to_toml(config: Any) -> str:
    """The configuration as TOML; reading it back gives an equal one."""
    return tomli_w.dumps(dataclasses.asdict(config))
