"""Words of the command line into dataclasses; what is wrong in them is one line that says what to write."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro

from recmtl import typed
from recmtl.errors import UserError

WANTED = {
    **typed.TOML,
    bool: "True or False",
    str: "one name",
    Path: "one path",
    tuple: "{}, or several with spaces between",
    dict: "{} and {}, or several such pairs",
}
"""What to write for a value of a type."""


@dataclass(frozen=True)
class _Argument:
    """A field that the command line gives."""

    name: str
    """``--field``, and ``--section.field`` of one in a section."""
    kind: Any
    """Its annotated type."""
    most: float
    """How many words it takes, at most; 0 of a flag."""
    aliases: tuple[str, ...]
    is_positional: bool
    is_required: bool

    @property
    def usage(self) -> str:
        """How a line of usage shows it."""
        word = self.name[2:].upper()
        return word if self.is_positional else f"{self.name} {word}"


Given = tuple[_Argument, str, list[str]]
"""An argument as the user gave it, the name or alias that was written, and the words it takes."""


def parse_words(cls: type, words: list[str], command: str, *, flags: bool = False) -> Any:
    """Fill a dataclass from the command line. `--help` shows its options and ends the process.

    Tyro writes the help. The words are told apart here, since tyro says what is wrong with them in prose alone.

    Args:
        cls: the dataclass; a field is an option, that of a section in it ``--section.field``.
        words: what the user wrote after the command.
        command: the command, as messages name it.
        flags: the name of a boolean option alone makes it true; otherwise its value is written, as in TOML.

    Raises:
        UserError: an option is unknown or missing, its value of another type or out of range, a word is one too many.
    """
    if {"-h", "--help"} & set(words):
        style = tyro.conf.FlagCreatePairsOff if flags else tyro.conf.FlagConversionOff
        tyro.cli(cls, args=["--help"], prog=f"recmtl {command}", config=(style,), use_underscores=True)
    given = _tell_apart(words, list(_arguments(cls, flags)), command)
    values = {entry[0].name: _value(*entry) for entry in given}  # of one given twice, the last counts
    return _changed(cls(**{name[2:]: value for name, value in values.items() if "." not in name}), values)


def _arguments(cls: type, flags: bool, prefix: str = "--") -> Iterator[_Argument]:
    """The fields of a dataclass and of the sections in it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind, name = hints[field.name], prefix + field.name
        plain = typed.bare(kind)
        if dataclasses.is_dataclass(plain):
            yield from _arguments(typing.cast(type, plain), flags, f"{name}.")
            continue
        most = math.inf if typing.get_origin(plain) in (tuple, dict) else 0 if flags and plain is bool else 1
        extras = typing.get_args(kind)[1:] if typing.get_origin(kind) is Annotated else ()
        aliases = tuple(alias for extra in extras for alias in getattr(extra, "aliases", None) or ())
        is_required = field.default is field.default_factory is dataclasses.MISSING
        yield _Argument(name, kind, most, aliases, tyro.conf.Positional in extras, is_required)


def _tell_apart(words: list[str], arguments: list[_Argument], command: str) -> list[Given]:
    """Which words belong to which argument.

    Raises:
        UserError: an option is unknown or missing, or nothing takes a word.
    """
    options = {name: item for item in arguments if not item.is_positional for name in (item.name, *item.aliases)}
    given: list[Given] = []
    loose: list[tuple[str, int]] = []  # words that no option takes, and how many options are before them
    for word in words:
        if re.match(r"--?(?!inf$|nan$)[a-zA-Z]", word):  # else it may be a negative number
            written, equals, value = word.partition("=")
            name = re.sub(r"(?<=\w)-", "_", written)
            if name not in options:
                raise UserError(f"recmtl {command}: unknown option {word!r}; {_meant(name, options, command)}")
            flag = ["True"] if options[name].most == 0 else []
            given.append((options[name], name, [value] if equals else flag))
        elif given and len(given[-1][2]) < given[-1][0].most:
            given[-1][2].append(word)
        else:
            loose.append((word, len(given)))
    surplus = iter(loose)
    for argument in arguments:
        if argument.is_positional and (taken := list(islice(surplus, 1 if argument.most == 1 else None))):
            given.append((argument, argument.usage, [word for word, _ in taken]))

    usage = f"the command is recmtl {' '.join([command, *(item.usage for item in arguments if item.is_required)])}"
    found = [argument for argument, *_ in given]
    if missing := [item.usage.split()[0] for item in arguments if item.is_required and item not in found]:
        raise UserError(f"recmtl {command}: {', '.join(missing)} missing; {usage}")
    for word, place in surplus:
        if place == 0 or given[place - 1][0].most == 0:
            raise UserError(f"recmtl {command}: nothing takes {word!r}; {usage}")
        argument, written, its_words = given[place - 1]
        raise _refusal(argument, written, [*its_words, *(word for word, other in loose if other == place)])
    return given


def _meant(name: str, options: dict[str, _Argument], command: str) -> str:
    """The options that an unknown one may stand for: those of its name in any section, else the nearest."""
    same = [option for option in options if re.split(r"\.|--", option)[-1] == name.lstrip("-")]
    near = same or get_close_matches(name, options, n=1)
    return f"did you mean {' or '.join(near)}?" if near else f"`recmtl {command} --help` shows them all"


def _value(argument: _Argument, written: str, words: list[str]) -> Any:
    """The value that the user gave an argument.

    Raises:
        UserError: it is of another type or out of range.
    """
    try:
        return typed.from_words(argument.kind, words)
    except ValueError:
        raise _refusal(argument, written, words) from None


def _refusal(argument: _Argument, written: str, words: list[str]) -> UserError:
    kind = argument.kind
    meant = typed.refusal(kind, " ".join(words), WANTED) if words else f"write {typed.wanted(kind, WANTED)}"
    return UserError(f"{written}: {meant}")


def _changed(section: Any, values: dict[str, Any], prefix: str = "--") -> Any:
    """A dataclass with the given values in its fields and in those of the sections in it."""
    changes = {}
    for field in dataclasses.fields(section):
        name, value = prefix + field.name, getattr(section, field.name)
        is_section = dataclasses.is_dataclass(value)
        changes[field.name] = _changed(value, values, f"{name}.") if is_section else values.get(name, value)
    return dataclasses.replace(section, **changes)
