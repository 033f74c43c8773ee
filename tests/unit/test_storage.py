"""`recmtl.runtime.storage`: what it answers of folders, and that nothing in the package goes past it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import recmtl
from recmtl.runtime.storage import (
    list_files,
    list_folder,
    make_afresh,
    make_folder,
    real_path,
    remove,
    remove_folder,
    rename,
    replace_link,
)

PACKAGE = Path(recmtl.__file__).parent

OWN_FILES = {
    ("training/results.py", "Path('/proc/self/status').read_text("): "the kernel's account of this process",
    ("distributed/context.py", "limit.read_text("): "the kernel's limit of this container",
    ("report/page.py", "resources.files('recmtl.report')"): "the style sheet, which comes with recmtl",
    ("data/prepare/examples.py", "np.memmap(folder"): "intermediate rows, mapped from this machine's disk",
    ("data/prepare/spark/session.py", "Path('/proc/self/task')"): "the kernel's account of this process's children",
    ("data/prepare/spark/tasks.py", "import tempfile"): "a task's rows, on its executor's disk",
    ("data/prepare/stored.py", "np.memmap(stored.path"): "intermediate rows, mapped from this machine's disk",
}
"""What opens files of its own, by module and how the code begins, and what these files are."""

PATH_METHODS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "unlink", "rename", "stat", "lstat"),
    *("exists", "is_file", "is_dir", "is_symlink", "iterdir", "glob", "rglob", "walk", "mkdir", "rmdir"),
    *("symlink_to", "hardlink_to", "samefile", "readlink", "chmod", "expanduser"),
}
MODULES = {"shutil", "tempfile", "glob", "fcntl", "mmap", "fsspec"}
OF_THE_PROCESS = {"environ", "cpu_count", "sched_getaffinity", "getpid", "kill", "_exit"}
"""What modules take of `os` that touches no file."""
OPENERS = {"np": {"load", "save", "memmap", "fromfile"}, "pq": {"ParquetFile", "read_table", "read_metadata"}}
"""Functions of libraries that take a path: it must come from the seam."""
SEAM = {"local_path", "open_read", "open_write", "open_source"}


def past_the_seam(source: str) -> Iterator[str]:
    """The code of every place of a module that touches files by itself."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    opened = {
        item.optional_vars.id
        for node in nodes
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and _is_of_seam(item.context_expr)
    }
    found: list[ast.AST] = [call for call in calls if _touches(call, opened)]
    for node in nodes:
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        if names & MODULES or (isinstance(node, ast.ImportFrom) and node.module == "os"):
            found.append(node)
        if isinstance(node, ast.Attribute) and _name(node.value) == "os" and node.attr not in OF_THE_PROCESS:
            found.append(node)
    for node in found:
        yield ast.unparse(node)


def _touches(call: ast.Call, opened: set[str]) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "open"
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr in OPENERS.get(_name(function.value), ()):
        return not (_is_of_seam(call.args[0]) or _name(call.args[0]) in opened)
    if function.attr == "resolve":
        return not call.args
    if function.attr == "replace":  # of text it takes two arguments, of a dataclass names
        return len(call.args) == 1 and not call.keywords
    return function.attr in PATH_METHODS


def _is_of_seam(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) in SEAM


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def modules() -> list[str]:
    """Every module of the package but those of `recmtl.runtime`."""
    names = (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return sorted(name for name in names if not name.startswith("runtime/"))


def test_every_module_reaches_files_through_storage() -> None:
    found = [(name, code) for name in modules() for code in past_the_seam((PACKAGE / name).read_text())]
    allowed = {(name, code): _allowance(name, code) for name, code in found}
    assert [place for place, allowance in allowed.items() if allowance is None] == []
    assert set(allowed.values()) == set(OWN_FILES), "listed without need"


def _allowance(name: str, code: str) -> tuple[str, str] | None:
    return next((own for own in OWN_FILES if own[0] == name and code.startswith(own[1])), None)


@pytest.mark.parametrize(
    "code",
    [
        "path.read_text()",
        "(folder / 'x').open('rb')",
        "open(path)",
        "path.resolve()",
        "partial.replace(path)",
        "import shutil",
        "from os import link",
        "from shutil import rmtree",
        "os.path.exists(path)",
        "os.replace(a, b)",
        "np.load(path, mmap_mode='r')",
        "with path as file: pq.ParquetFile(file)",
        "pq.read_table(folder / 'x', columns=[])",
    ],
)
def test_what_goes_past_storage_is_found(code: str) -> None:
    assert list(past_the_seam(code))


@pytest.mark.parametrize(
    "code",
    [
        "name.replace('a', 'b')",
        "dataclasses.replace(section, **changes)",
        "Sizes.resolve(values)",
        "os.environ.get('RANK')",
        "read_text(path)",
        "np.load(local_path(path), mmap_mode='r')",
        "with open_write(path) as file: np.save(file, values)",
    ],
)
def test_what_goes_through_storage_or_touches_no_file_is_let_pass(code: str) -> None:
    assert not list(past_the_seam(code))


def test_a_folder_is_listed_in_order_and_by_pattern(tmp_path: Path) -> None:
    for name in ("b.txt", ".hidden", "a.txt", "A.TXT"):
        (tmp_path / name).touch()
    assert [path.name for path in list_folder(tmp_path)] == [".hidden", "A.TXT", "a.txt", "b.txt"]
    assert [path.name for path in list_folder(tmp_path, "*.txt")] == ["a.txt", "b.txt"]


def test_what_is_no_folder_has_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert list_folder(tmp_path / "absent") == list_folder(tmp_path / "file") == []


def test_files_of_a_folder_are_those_below_it_too(tmp_path: Path) -> None:
    for name in ("b.txt", "a/.hidden", "a/deep/c.txt"):
        make_folder((tmp_path / name).parent)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in list_files(tmp_path)] == ["a/.hidden", "a/deep/c.txt", "b.txt"]
    assert list_files(tmp_path / "absent") == []


def test_a_folder_made_afresh_is_empty(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "old").touch()
    make_folder(tmp_path / "a" / "b")  # is there: stays as it is
    assert list_folder(tmp_path / "a" / "b")
    make_afresh(tmp_path / "a" / "b")
    assert list_folder(tmp_path / "a" / "b") == []


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    remove(tmp_path / "absent")
    remove_folder(tmp_path / "absent", ignore_errors=True)
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "absent", tmp_path / "other")


def test_a_link_leads_elsewhere_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    (tmp_path / ".current.tmp").symlink_to("nowhere")  # of a process that was killed
    for name in ("one", "two", "two"):
        replace_link(link, Path(name))
        assert real_path(link) == tmp_path.resolve() / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "one", "two"]
