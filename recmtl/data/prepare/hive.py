"""Folders named ``key=value`` below the raw folder, as Hive and Spark write them, as columns."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote

from recmtl.data.prepare.duck import literal
from recmtl.data.prepare.footers import fold

MISSING = "__HIVE_DEFAULT_PARTITION__"
"""Stands for null."""


def partition_columns(files: list[Path], raw: Path, path: str, taken: Collection[str]) -> dict[str, str]:
    """SQL of the columns, all of text, that the names of folders stand for; of folders of one name the innermost.

    Args:
        files: the files of a source.
        raw: the folder below which they lie.
        path: SQL of a file's path relative to `raw`.
        taken: names, as `fold` gives them, that are columns already.
    """
    names: dict[str, str] = {}
    spellings: dict[str, list[str]] = {}
    inside: dict[str, int] = {}
    for file in files:
        parts = [part.partition("=") for part in file.relative_to(raw).parts[:-1]]
        keys = dict.fromkeys(key for key, equals, _ in parts if key and equals)
        for key in keys:
            folded = fold(unquote(key))
            names.setdefault(folded, unquote(key))
            spellings.setdefault(folded, [])
            if key not in spellings[folded]:
                spellings[folded].append(key)
        for folded in {fold(unquote(key)) for key in keys}:
            inside[folded] = inside.get(folded, 0) + 1
    columns = {}
    for folded, name in names.items():
        if folded not in taken:
            pattern = f"(?s)^(?:.*/)?(?:{'|'.join(map(re.escape, spellings[folded]))})=([^/]*)/"
            columns[name] = _value(path, literal(pattern))
            if inside[folded] < len(files):
                lacking = f"{len(files) - inside[folded]} of {len(files)} files below {raw} are in no folder {name}=..."
                print(f"{lacking}; column {name!r} is null there", file=sys.stderr)
    return columns


def _value(path: str, pattern: str) -> str:
    raw = f"regexp_extract({path}, {pattern}, 1)"
    decoded = f"coalesce(try(url_decode({raw})), {raw})"
    return f"case when regexp_matches({path}, {pattern}) and {raw} <> '{MISSING}' then {decoded} end"
