"""`recmtl export --delta-from` and `recmtl apply-delta`: from one day's export to the next, served meanwhile."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import train_here
from serving import serving

import recmtl
from recmtl import cli
from recmtl.errors import UserError
from recmtl.inference.delta import Delta
from recmtl.inference.manifest import MANIFEST, check_manifest
from recmtl.inference.signature import CARD
from recmtl.runtime.folders import folder_size

RECIPE = """
name = "shop"
sql = "select * from raw"
[[table]]
name = "user"
expire = 1
[[feature]]
name = "user"
[[feature]]
name = "item"
[[task]]
name = "click"
label = "clicked"
[split]
by = "time"
column = "at"
val = 0.1
test = 0.1
"""
USERS, DAY_USERS = 4000, 40


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run0 of many users, and run1 of a day on which few are there: those that stay away lose ids."""
    folder = tmp_path_factory.mktemp("days")
    (folder / "shop.toml").write_text(RECIPE)
    (folder / "raw").mkdir()
    rng = np.random.default_rng(0)
    for day, users in enumerate((np.arange(USERS), rng.integers(USERS - DAY_USERS, USERS + DAY_USERS, 500))):
        items = rng.integers(0, 20 + 5 * day, len(users))
        at = 10_000 * day + np.arange(len(users))
        columns = {"at": at, "user": users, "item": items, "clicked": (users + items) % 3 == 0}
        pq.write_table(pa.table(columns), folder / "raw" / f"{day}.parquet")
        extend = ["--extend", str(folder / "data0"), "--val", "0.1", "--test", "0.1"] if day else []
        cli.prepare([str(folder / "shop.toml"), str(folder / "raw"), str(folder / f"data{day}"), *extend])
        more = {"start_from": folder / "run0"} if day else {}
        train_here(
            folder / f"data{day}", folder / f"run{day}", training__max_steps=20, metrics__tensorboard=False, **more
        )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What every file of an export holds, but for the card, which has the moment of the export, and the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (CARD, MANIFEST))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_from_one_day_to_the_next(days: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(2):
        cli.export([str(days / f"run{day}"), str(tmp_path / f"{day}"), "--dtype", dtype])
    capsys.readouterr()
    words = ["--dtype", dtype, "--delta-from", str(tmp_path / "0")]
    cli.export([str(days / "run1"), str(tmp_path / "delta"), *words])
    said = capsys.readouterr().out
    delta = Delta.load(tmp_path / "delta")
    rows = delta.tables["user"]
    # Rows of ids that nobody has any more, of users that stayed away, are what they were.
    assert 2 <= rows.changed <= 2 + 2 * DAY_USERS < rows.rows / 10
    changed = sum(table.changed for table in delta.tables.values())
    total = sum(table.rows for table in delta.tables.values())
    assert f"a delta with {changed:,} of {total:,} rows, of an export of" in said
    assert delta.files["tables/user.npy"].kept == "patch"
    assert delta.files["recipe.toml"].kept == "parent"
    assert delta.files["encoder/user.assigned.npy"].parent is None  # the first day has none
    cli.apply_delta([str(tmp_path / "0"), str(tmp_path / "delta"), str(tmp_path / "applied")])
    assert contents(tmp_path / "applied") == contents(tmp_path / "1")
    assert check_manifest(tmp_path / "applied") == delta.result
    assert folder_size(tmp_path / "applied") == delta.bytes
    columns = {"user": [1, USERS - 1, USERS + 3, None], "item": [1, 2, 22, None]}
    applied, whole = (recmtl.load(tmp_path / name) for name in ("applied", "1"))
    assert applied.predict(columns) == whole.predict(columns)


@pytest.mark.slow
def test_the_commands_in_real_processes(days: Path, tmp_path: Path, run_recmtl) -> None:
    """A server swaps to the export that was applied; a delta and a wrong parent are one line, and exit code 2."""
    before, delta, after = (tmp_path / name for name in ("before", "delta", "after"))
    cli.export([str(days / "run0"), str(before), "--dtype", "int8"])
    done = run_recmtl("export", days / "run1", delta, "--delta-from", before)
    line = f"error: --delta-from {before}: has tables of int8; add --dtype int8, or name another export\n"
    assert (done.returncode, done.stderr) == (2, line)
    assert not delta.exists()
    done = run_recmtl("export", days / "run1", delta, "--delta-from", before, "--dtype", "int8")
    assert done.returncode == 0, done.stderr
    (tmp_path / "live").symlink_to(before)

    def lead_to(folder: Path) -> None:
        (tmp_path / "next").symlink_to(folder)
        (tmp_path / "next").rename(tmp_path / "live")

    with serving(tmp_path / "live", tmp_path / "log", "--watch-seconds", 0.1) as server:
        row = [{"user": USERS + 3, "item": 22}]
        first = server.predict(row).json
        lead_to(delta)
        wait(lambda: server.metric("recmtl_model_refusals_total") == 1)
        assert "apply it first" in server.log.read_text()
        assert server.predict(row).json == first
        done = run_recmtl("apply-delta", before, delta, after)
        assert done.returncode == 0, done.stderr
        lead_to(after)
        wait(lambda: server.metric("recmtl_model_swaps_total") == 2)
        second = server.predict(row).json
    assert second["version"] == recmtl.load(after).version == Delta.load(delta).result
    assert second["predictions"] != first["predictions"]

    out = tmp_path / "out"
    damaged = Path(shutil.copytree(delta, tmp_path / "damaged"))
    path = next(damaged.rglob("user.npy.fresh"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    there = sorted(path.name for path in tmp_path.iterdir())
    for words, line in (
        ((after, delta, out), f"{after}: is version "),
        ((before, damaged, out), f"{path}: damaged (its digest differs); copy the delta again"),
        ((before, after, out), f"{after}: no delta, but a whole export"),
        ((before, delta, before), f"{before}: exists and is not empty"),
        ((before, delta), "error"),
    ):
        done = run_recmtl("apply-delta", *words)
        assert done.returncode == 2, words
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == there
    for words in (("predict", delta, days / "raw", out), ("serve", delta), ("embeddings", delta, "user", out)):
        done = run_recmtl(*words)
        line = f"error: {delta}: a delta; apply it first: `recmtl apply-delta EXPORT {delta} OUT`\n"
        assert (done.returncode, done.stderr) == (2, line)


def wait(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def test_what_a_delta_is_made_from_must_be_an_export(days: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no export, or not a whole one"):
        cli.export([str(days / "run1"), str(tmp_path / "delta"), "--delta-from", str(days / "run0")])
    assert list(tmp_path.iterdir()) == []
