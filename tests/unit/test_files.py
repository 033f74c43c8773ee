"""Locks that end with their process, and folders that are complete or absent."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from recmtl.errors import UserError
from recmtl.runtime.folders import complete_or_absent
from recmtl.runtime.locks import locked
from recmtl.runtime.storage import os_errors, write_json

HOLD = """
import os, signal, sys
from pathlib import Path
from recmtl.runtime.locks import locked
with locked(Path(sys.argv[1]), Path("what")):
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_lock_is_let_go_when_its_holder_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"^run: in use by process {process.pid} on \S+; wait"):  # noqa: SIM117
            with locked(tmp_path / "lock", Path("run")):
                pass
    finally:
        process.kill()
        process.wait()
    with locked(tmp_path / "lock", Path("run")):
        pass


def test_a_lock_is_one_of_the_file_that_is_there(tmp_path: Path) -> None:
    """Two processes hold no locks side by side because one removed the file."""
    with locked(tmp_path / "lock", Path("run")):
        (tmp_path / "lock").unlink()
        with locked(tmp_path / "lock", Path("run")), pytest.raises(UserError), locked(tmp_path / "lock", Path("run")):
            pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", Path("run")):
        pass
    assert capsys.readouterr().err == "run: its file system has no locks; take care that no other job writes to it\n"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), complete_or_absent(tmp_path / "a" / "out") as work:  # noqa: PT012
        (work / "data" / "half").write_text("")
        raise ZeroDivisionError
    assert list((tmp_path / "a").iterdir()) == []


def test_what_a_killed_process_left_is_no_part_of_the_folder(tmp_path: Path) -> None:
    left = tmp_path / ".out.tmp" / "data"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    with complete_or_absent(tmp_path / "out") as work:
        (work / "data" / "whole").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_errors_of_the_system_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent/x.json.tmp: No such file or directory$"):
        write_json(tmp_path / "absent" / "x.json", 1)
    with pytest.raises(UserError, match=r"^there: No space left on device$"), os_errors(Path("there")):
        raise OSError(errno.ENOSPC, "No space left on device")
