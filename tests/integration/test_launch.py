"""Several ranks through `recmtl.launch`."""

from __future__ import annotations

import subprocess
import sys


def test_mistake_on_several_ranks_is_told_without_a_traceback(run_recmtl, tmp_path):
    ended = run_recmtl("train", "mmoe", "--data", tmp_path / "nowhere", "--run", tmp_path / "run", ranks=2)
    assert ended.returncode == 2
    assert "nowhere: no dataset.json in it" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_dashes_must_separate_torchruns_options():
    ended = subprocess.run([sys.executable, "-m", "recmtl.launch", "train"], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "'--' is missing" in ended.stderr
