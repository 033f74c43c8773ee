"""Between TOML and dataclasses: unknown keys and values of the wrong type are refused."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from recmtl.errors import UserError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it isn't there or isn't TOML; names the line.
    """
    try:
        # Editors on Windows start a file with a byte order mark, which this encoding takes away.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def parse(cls: type[T], values: Any, where: str, prefix: str = "") -> T:
    """Build dataclass `cls` from nested dictionaries, as TOML gives them.

    Args:
        cls: the dataclass.
        values: its fields by name; those left out keep their defaults.
        where: the file, for messages.
        prefix: the key of this section, for messages.

    Raises:
        UserError: an unknown key or a value of the wrong type; names file and key.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: key '{prefix.rstrip('.')}' must be a section")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key '{prefix}{key}'; {nearest(key, known)}")
    return cls(**{key: _convert(value, hints[key], where, prefix + key) for key, value in values.items()})


def _convert(value: Any, kind: Any, where: str, key: str) -> Any:
    """`value` as the annotated type `kind`, or a UserError that names the key."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return parse(typing.cast(type, kind), value, where, key + ".")
    if origin in (typing.Union, types.UnionType):
        return _convert(value, next(a for a in args if a is not type(None)), where, key)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{where}: key '{key}' is {value!r}; {nearest(str(value), args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: key '{key}' must be a list")
        return tuple(_convert(item, args[0], where, key) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: key '{key}' must be a section")
        return {name: _convert(item, args[1], where, f"{key}.{name}") for name, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where}: key '{key}' is {value!r}; it must be of type {kind.__name__}")
    return value


def to_toml(config: Any) -> str:
    """The configuration as TOML; reading it back gives an equal one."""
    return tomli_w.dumps(dataclasses.asdict(config))
