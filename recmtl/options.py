"""Words of the command line into dataclasses, by tyro; what it refuses is one line that says what to write."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from recmtl.errors import UserError, nearest

WANTED = {int: "one whole number", float: "one number", bool: "True or False", str: "one name", Path: "one path"}
"""What to write for a value of a type."""


def parse_words(cls: type, words: list[str], command: str, *, flags: bool = False) -> Any:
    """Fill a dataclass from the command line. `--help` shows its options and ends the process.

    Args:
        cls: the dataclass; a field is an option, that of a section in it ``--section.field``.
        words: what the user wrote after the command.
        command: the command, as messages name it.
        flags: the name of a boolean option alone makes it true; otherwise its value is written, as in TOML.

    Raises:
        UserError: an option is unknown or missing, its value of another type, or a word is one too many.
    """
    args: Any
    extra: list[str] = []
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args, extra = tyro.cli(
                cls,
                args=words,
                prog=f"recmtl {command}",
                config=(tyro.conf.FlagCreatePairsOff if flags else tyro.conf.FlagConversionOff,),
                return_unknown_args=True,
                use_underscores=True,
            )
            if not extra:
                return args
    except SystemExit as end:
        if not end.code:
            raise
    raise UserError(_mistake(cls, words, command, said.getvalue(), extra))


def _mistake(cls: type, words: list[str], command: str, said: str, extra: list[str]) -> str:
    """What is wrong with the command line, and what to write instead.

    Args:
        cls: the dataclass to fill.
        words: what the user wrote.
        command: the command.
        said: what tyro says; it is searched for names and values, its wording does not matter.
        extra: the words that tyro left over.
    """
    options = dict(_options(cls))
    for word in words:
        if _is_option(word) and _name(word) not in options:
            return f"recmtl {command}: unknown option '{word}'; {_meant(_name(word), options, command)}"

    required = [_shown(field, hint) for field, hint in _fields(cls) if _is_required(field)]
    usage = f"the command is recmtl {' '.join([command, *required])}"
    missing = [shown.split()[0] for shown in required if shown.split()[0] in said.split()]
    if missing:
        return f"recmtl {command}: {', '.join(missing)} missing; {usage}"

    # Either tyro names the option whose value it cannot read, or words follow an option that takes fewer.
    before = words[: words.index(extra[0])] if extra else []
    named = re.findall(r"--[\w.]*\w", said)[:1] or [_name(word) for word in before if _is_option(word)][-1:]
    if not named:
        return f"recmtl {command}: nothing takes '{extra[0]}'; {usage}"
    kind, values = options[named[0]], _values(words, named[0])
    refused = [value for value in values if repr(value) in said and value not in typing.get_args(kind)]
    return f"{named[0]}: {_wanted(kind, (refused or values[-1:])[0])}"


def _meant(name: str, options: dict[str, Any], command: str) -> str:
    """The options that an unknown one may stand for: those of its name in any section, else the nearest."""
    same = [option for option in options if re.split(r"\.|--", option)[-1] == name.lstrip("-")]
    near = same or get_close_matches(name, options, n=1)
    return f"did you mean {' or '.join(near)}?" if near else f"`recmtl {command} --help` shows them all"


def _wanted(kind: Any, given: str) -> str:
    """What to write for a value of the annotated type `kind`, and what the user gave."""
    if typing.get_origin(kind) is Literal and given:
        return f"no '{given}'; {nearest(given, typing.get_args(kind))}"
    return f"write {_described(kind)}" + (f", not '{given}'" if given else "")


def _described(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is tuple:
        return f"{_described(args[0])}, or several with spaces between"
    if origin is dict:
        return f"{_described(args[0])} and {_described(args[1])}, or several such pairs"
    if origin in (typing.Union, types.UnionType):
        return _described(args[0])
    return WANTED[kind]


def _fields(cls: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """A dataclass's fields with their annotations."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        yield field, hints[field.name]


def _options(cls: type, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """The options of a dataclass and of the sections in it, aliases too, with their types."""
    for field, hint in _fields(cls):
        kind, *extras = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        if dataclasses.is_dataclass(kind):
            yield from _options(typing.cast(type, kind), f"{prefix}{field.name}.")
        elif tyro.conf.Positional not in extras:
            yield f"{prefix}{field.name}", kind
            for extra in extras:
                yield from ((alias, kind) for alias in getattr(extra, "aliases", None) or ())


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _shown(field: dataclasses.Field[Any], hint: Any) -> str:
    """A required argument as in a line of usage."""
    name = field.name.upper()
    return name if tyro.conf.Positional in typing.get_args(hint) else f"--{field.name} {name}"


def _is_option(word: str) -> bool:
    return re.match(r"--?[a-zA-Z]", word) is not None


def _name(word: str) -> str:
    """The option that a word gives, as it is declared: ``--training.batch-size=64`` is ``--training.batch_size``."""
    return re.sub(r"(?<=\w)-", "_", word.partition("=")[0])


def _values(words: list[str], option: str) -> list[str]:
    """What the user gave an option, each time that it was named."""
    found = []
    for place, word in enumerate(words):
        if _name(word) == option:
            following = takewhile(lambda word: not _is_option(word), words[place + 1 :])
            found.append(" ".join(filter(None, [word.partition("=")[2], *following])))
    return found
