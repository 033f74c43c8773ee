"""The files of a recipe's sources: what they are does not depend on where the raw folder lies or what it is called."""

from __future__ import annotations

import sys
from collections import deque
from fnmatch import fnmatchcase
from pathlib import Path

from recmtl.data.prepare.duck import literal
from recmtl.data.recipe import Recipe, Source
from recmtl.errors import UserError
from recmtl.runtime.storage import is_file, is_folder, is_link, list_folder, os_errors, read_json, real_path
from recmtl.schema import FILE_NAME

Globs = frozenset[tuple[str, ...]]
"""What is left of a source's globs below a folder, part by part; ``()`` says that the path matches whole."""

PARQUET_ENDINGS = (".parquet", ".parq", ".pq")
READERS = {"csv": "read_csv", "tsv": "read_csv", "json": "read_json", "ndjson": "read_json", "jsonl": "read_json"}
"""DuckDB's functions that read files of other formats, by the ending of their names."""


def find_files(recipe: Recipe, raw: Path) -> dict[str, list[Path]]:
    """The files of every source, in order of their names.

    Names that start with ``.`` or ``_`` are left out (of those that start with ``_`` folders such as ``_day=1`` are
    read, which name a partition), and so is a folder that `recmtl prepare` wrote. Links are followed; a file that is
    reached by several names is read once, by the name that leads through no link.

    Raises:
        UserError: there is no raw folder, a file or folder cannot be read or is no Parquet, or a source that is not
            optional has no files.
    """
    if not is_folder(raw):
        raise UserError(f"{raw}: no such folder; give the folder with the raw Parquet files")
    with os_errors(raw):
        return {source.name: _find(source, raw) for source in recipe.sources if source.files}


def _find(source: Source, raw: Path) -> list[Path]:
    search = _Search(raw)
    search.run(frozenset(Path(pattern).parts for pattern in source.files))
    files = sorted(search.found.values())
    for path in files:
        _check_name(path)
    for line in search.notes(source):
        print(line, file=sys.stderr)
    if not files and not source.optional:
        hidden = any(_is_hidden(part) for pattern in source.files for part in Path(pattern).parts)
        hint = "; names that start with '.' or '_' are left out" if hidden else ""
        patterns = " or ".join(source.files)
        raise UserError(f"{raw}: no file matches {patterns}, which source {source.name!r} reads{hint}")
    return files


def _check_name(path: Path) -> None:
    """Raises UserError: the file is of another format, or DuckDB cannot open its name."""
    if "\\" in str(path.absolute()) and set(str(path.absolute())) & set("*?["):
        raise UserError(f"{path}: the path has a backslash beside one of * ? [, which DuckDB cannot open; rename it")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!r}: the name is not valid UTF-8; rename it") from None
    ending = path.name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if reader := READERS.get(ending):
        # Which columns are numbers the user must say: guessed, the id 007 would be 7.
        command = f"copy (from {reader}({literal(str(path))})) to {literal(f'{path}.parquet')}"
        raise UserError(
            f'{path}: not Parquet; convert it, and look at the types that its columns get: duckdb -c "{command}"'
        )


class _Search:
    """A walk through a raw folder, into those folders only that a glob may match."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw
        self.found: dict[Path, Path] = {}
        """Path below the raw folder, by real path."""
        self.again: list[tuple[Path, Path]] = []
        """Another path of a file, and the one it was found by."""
        self.lakes: list[Path] = []
        """Folders with a table format's log."""
        self.prepared: list[Path] = []
        """Folders that `recmtl prepare` wrote."""
        self.linked = False

    def run(self, globs: Globs) -> None:
        """Find all files. Links come last, so that a file that is also reached without one keeps that name."""
        plain: deque[tuple[Path, Globs]] = deque([(self.raw, globs)])
        links: deque[tuple[Path, Globs]] = deque()
        visited = set()
        while plain or links:
            path, left = plain.popleft() if plain else links.popleft()
            if not is_folder(path):
                self._add(path)
                continue
            # The same folder with the same globs holds the same files: this also ends loops of links.
            key, entries = (real_path(path), left), list_folder(path)
            if key in visited or self._is_left_out(path, entries):
                continue
            visited.add(key)
            for entry in entries:
                below = _below(left, entry.name)
                if _is_hidden(entry.name) or not below:
                    continue
                if is_folder(entry):
                    _check_folder(entry, below)
                elif () not in below:
                    continue
                linked = is_link(entry)
                self.linked = self.linked or linked
                (links if linked else plain).append((entry, below))

    def _add(self, path: Path) -> None:
        if not is_file(path):
            raise UserError(f"{path}: is not a file, or a link to one that is gone; remove it")
        real = real_path(path) if self.linked else path
        if self.found.setdefault(real, path) != path:
            self.again.append((path, self.found[real]))

    def _is_left_out(self, folder: Path, entries: list[Path]) -> bool:
        """Look at what a folder is by the names in it."""
        names = {entry.name for entry in entries}
        if names & {"_delta_log", ".hoodie"} or list_folder(folder / "metadata", "*.metadata.json"):
            self.lakes.append(folder)
        if folder == self.raw or not _is_prepared(folder):
            return False
        self.prepared.append(folder)
        return True

    def notes(self, source: Source) -> list[str]:
        """What the user should know of this walk, in one line each."""
        notes = []
        if self.lakes:
            notes.append(
                f"{some(self.lakes)}: a table of Delta Lake, Hudi or Iceberg; source {source.name!r} reads all its "
                "Parquet files, removed rows too"
            )
        if self.prepared:
            notes.append(f"{some(self.prepared)}: written by recmtl prepare, left out of source {source.name!r}")
        if self.again:
            paths = some([path for path, _ in self.again])
            notes.append(f"{paths}: read once, as {self.again[0][1]}, where a link leads too")
        return notes


def _below(globs: Globs, name: str) -> Globs:
    """What is left of the globs below a file or folder of this name."""
    below = set()
    for glob in globs:
        while glob and glob[0] == "**":
            below |= {glob, ()} if len(glob) == 1 else {glob}
            glob = glob[1:]
        if glob and fnmatchcase(name, glob[0]):
            below.add(glob[1:])
    return frozenset(below)


def _check_folder(folder: Path, below: Globs) -> None:
    """Raises UserError: a glob stops at a folder of files, as Spark writes them under a file's name."""
    if below == {()} and folder.name.lower().endswith(PARQUET_ENDINGS):
        raise UserError(f"{folder}: is a folder; add '/*.parquet' to the glob of [sources] that matches it")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _is_prepared(folder: Path) -> bool:
    try:
        described = read_json(folder / FILE_NAME)
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and {"format", "rows", "features", "tasks"} <= described.keys()


def some(paths: list[Path]) -> str:
    """The first path, and how many more there are."""
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])
