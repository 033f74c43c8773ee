"""The one typed layer: TOML and words of the command line into dataclasses, by pydantic.

The annotation of a field says all that it takes: its type and, of a number, its limits. A mistake becomes one line that
says where it is, what to write and what was given.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Interval
from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from recmtl.errors import UserError, nearest
from recmtl.runtime.storage import parse_path

LARGEST_COUNT, LARGEST_FLOAT = 2**31 - 1, 3e38
"""PyTorch's kernels keep counts and numbers in 32 bits."""

Count = Annotated[int, Interval(ge=0, le=LARGEST_COUNT)]
"""How many, or how often; 0 is allowed."""
PositiveCount = Annotated[int, Interval(ge=1, le=LARGEST_COUNT)]
"""How many, or how often; at least 1."""
Size = Annotated[int, Interval(ge=1, le=2**16)]
"""A width or a number of layers: the product of two counts weights."""
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
"""Start of PyTorch's generators, which keep it in 64 bits."""
Positive = Annotated[float, Interval(gt=0, le=LARGEST_FLOAT)]
"""A finite number above 0."""
NonNegative = Annotated[float, Interval(ge=0, le=LARGEST_FLOAT)]
"""A finite number of 0 or more."""
Fraction = Annotated[float, Interval(ge=0, lt=1)]
"""A share that leaves something over."""
Texts = Annotated[
    tuple[str, ...],
    Strict(False),  # the validator hands on a list of Python's, which is no tuple to the strict
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(description="text or a list of texts"),
]
"""Several texts; one needs no list around it."""
Shares = Annotated[
    dict[str, Positive],
    BeforeValidator(lambda value: {value: 1.0} if isinstance(value, str) else value),
    Field(description="one name, or names and numbers above 0"),
]
"""How much each of several things counts, by name; one alone needs no number."""

T = TypeVar("T")
Words = Mapping[Any, str]
"""What to write for a type; that of a container may name what it holds by ``{}``."""
TOML: Words = {
    int: "one whole number",
    float: "one number",
    bool: "true or false",
    str: "text",
    tuple: "a list",
    dict: "a section",
}
LIMITS = {
    "ge": " from {}",
    "gt": " above {} and up",
    "le": " to {}",
    "lt": " to below {}",
    "multiple_of": ", a multiple of {}",
}
"""What to write for a number within limits, in this order."""


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """A dataclass, and those in it, from nested dictionaries as TOML gives them.

    Args:
        cls: the dataclass.
        values: its fields by name; those left out keep their defaults.
        where: the file, for messages.

    Raises:
        UserError: a key is unknown or missing, a value of the wrong type or out of range; names file and key.
    """
    # pydantic reads JSON strictly and still takes lists for tuples and objects for dataclasses; of Python's own objects
    # it would not. Dates, which JSON does not have, become NaN, which no number takes.
    text = json.dumps({"": values}, default=lambda date: math.nan)
    try:
        return typing.cast(T, _adapter(typing.cast(Any, cls)).validate_json(text)[""])
    except ValidationError as error:
        raise UserError(f"{where}: {_mistake(cls, values, error)}") from None


def from_words(kind: Any, words: list[str]) -> Any:
    """The value of the annotated type `kind` that words of the command line give.

    Raises:
        ValueError: they are no such value.
    """
    plain = bare(kind)
    origin, args = typing.get_origin(plain), typing.get_args(plain)
    if origin is tuple:
        return tuple(from_words(args[0], [word]) for word in words)
    if origin is dict and len(words) != 1:
        pairs = zip(words[::2], words[1::2], strict=True)
        return {from_words(args[0], [key]): from_words(args[1], [value]) for key, value in pairs}
    [word] = words
    if plain is Path:
        if not word:  # it would be the current folder
            raise ValueError(word)
        return None if word == "None" and type(None) in typing.get_args(kind) else parse_path(word)
    if plain is bool and word not in ("True", "False"):  # pydantic also takes yes, on, t, 1 ...
        raise ValueError(word)
    if word == "None" and type(None) in typing.get_args(kind):
        return None
    return _adapter(kind).validate_strings({"": word})[""]


def bare(kind: Any) -> Any:
    """An annotated type without its annotations and without None."""
    while typing.get_origin(kind) in (Annotated, typing.Union, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    return kind


def refusal(kind: Any, given: Any, words: Words = TOML) -> str:
    """What to write for a value of the annotated type `kind` in place of what was given."""
    choices = typing.get_args(bare(kind)) if typing.get_origin(bare(kind)) is Literal else ()
    if choices and isinstance(given, str) and " " not in given:
        return f"no {given!r}; {nearest(given, choices)}"
    shown = "a section" if isinstance(given, dict) else "a list" if isinstance(given, list) else repr(given)
    return f"write {wanted(kind, words)}, not {shown}"


def wanted(kind: Any, words: Words = TOML) -> str:
    """What to write for a value of the annotated type `kind`."""
    if is_dataclass(kind):
        return words[dict]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        described = [extra.description for extra in args[1:] if getattr(extra, "description", None)]
        return described[0] if described else wanted(args[0], words) + _limits(args[1:])
    if origin in (typing.Union, types.UnionType):
        return wanted(args[0], words)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is tuple and is_dataclass(args[0]):
        return "a section in double brackets for each"
    return words[origin or kind].format(*(wanted(arg, words) for arg in args if arg is not ...))


def _limits(extras: tuple[Any, ...]) -> str:
    """The limits among the annotations of a number, as they follow its name."""
    found = ((text, getattr(extra, limit, None)) for limit, text in LIMITS.items() for extra in extras)
    return "".join(text.format(value) for text, value in found if value is not None)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Of `kind` as a value of a dictionary: pydantic takes a configuration for what holds a dataclass, not for it."""
    return TypeAdapter(dict[str, kind], config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


def _mistake(cls: type, values: dict[str, Any], refused: ValidationError) -> str:
    """The first mistake; an unknown key goes first, since it may be a missing one misspelt."""
    errors = refused.errors(include_url=False)
    error = next((error for error in errors if error["type"] == "unexpected_keyword_argument"), errors[0])
    path = error["loc"][1:]
    entry, key = _place(path, values)
    if error["type"] == "unexpected_keyword_argument":
        known = [field.name for field in fields(bare(_kind_at(cls, path[:-1])))]
        return f"{entry}unknown key '{key}'; {nearest(str(path[-1]), known)}"
    if error["type"] == "missing":
        return f"{entry}{key}: missing; write {wanted(_kind_at(cls, path))}"
    given: Any = values
    for step in path:
        given = given[step]
    return f"{entry}{key}{': ' if key else ''}{refusal(_kind_at(cls, path), given)}"


def _place(path: tuple[Any, ...], values: dict[str, Any]) -> tuple[str, str]:
    """The entry of an array of tables that a path leads into, where it does, and the key, with its sections, there."""
    entry = ""
    if len(path) > 1 and isinstance(path[1], int):
        table = values[path[0]][path[1]]
        name = repr(table["name"]) if isinstance(table, dict) and "name" in table else f"number {path[1] + 1}"
        entry, path = f"[[{path[0]}]] {name}: ", path[2:]
    key = ".".join(step for step in path if isinstance(step, str))
    return entry, repr(key)[1:-1]  # without line breaks


def _kind_at(kind: Any, path: tuple[Any, ...]) -> Any:
    """The annotated type at the end of a path of keys and of places in lists."""
    for step in path:
        kind = bare(kind)
        if is_dataclass(kind):
            kind = typing.get_type_hints(kind, include_extras=True)[step]
        else:
            kind = typing.get_args(kind)[1 if typing.get_origin(kind) is dict else 0]
    return kind
