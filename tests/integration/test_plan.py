"""`recmtl plan` on paper, and the commands that list what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import write_toy

from recmtl import cli
from recmtl.config import MODELS, preset_names
from recmtl.data.recipe import recipe_names
from recmtl.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of 2 and 20 million rows on a few rows of data: nothing of their size is made."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 50, "val": 0, "test": 0}, table_rows=(2_000_000, 20_000_000))
    return folder


def plan(capsys, data: Path, *flags: object) -> tuple[dict[str, list[str]], dict[str, list[str]], str]:
    """Rows of both tables by their first cell, and the whole text."""
    cli.plan(["mmoe", "--data", str(data), *map(str, flags)])
    text = capsys.readouterr().out
    tables, ranks = text.split("Ranks:")
    cells = [[line.split() for line in part.splitlines()] for part in (tables, ranks)]
    return (
        {row[0]: row for row in cells[0] if row and row[0] in ("user", "item", "tag")},
        {row[0]: row for row in cells[1][1:] if row and row[0].isdigit()},
        text,
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("world_size", [1, 8, 64])
def test_plan_shows_every_table_and_rank(capsys, data, world_size, device):
    tables, ranks, text = plan(capsys, data, "--world-size", world_size, "--device", device, "--hbm-gib", 80)
    assert set(tables) == {"user", "item", "tag"}
    assert {row[1] for row in tables.values()} <= {"table_wise", "row_wise", "table_row_wise"}
    # 20 million rows of 16 floats, cut or not.
    assert "1.192 GiB" in " ".join(tables["item"])
    assert list(ranks) == [str(rank) for rank in range(min(world_size, 16))]
    assert ("…" in text) == (world_size > 16)
    assert f"Ranks: {world_size} x 80.000 GiB ({device})" in text


def test_a_tables_weights_are_dealt_out(capsys, data):
    """Two large tables on two CPUs: one each."""
    _, ranks, text = plan(capsys, data, "--world-size", 2, "--device", "cpu", "--hbm-gib", 4)
    assert all("GiB" in row or "MiB" in row for row in ranks.values())
    assert {" ".join(row[1:3]) for row in ranks.values()} >= {"1.192 GiB"}
    assert "fullest over mean" in text


def test_a_dense_part_that_tips_it_over_is_an_error(data):
    """1.41 GiB of tables and state fit what is left of 1.7 GiB; a million examples' activations beside them do not."""
    flags = ["--device", "cuda", "--hbm-gib", 2.2]
    cli.plan(["mmoe", "--data", str(data), *map(str, flags)])
    with pytest.raises(
        UserError,
        match=r"rank 0 needs \d\.\d+ GiB of 2.200 GiB: table item 1.\d+ GiB, .*activations \d\.\d+ GiB.*"
        r"use more ranks, .* `recmtl plan` tells what fits$",
    ) as caught:
        cli.plan(["mmoe", "--data", str(data), *map(str, flags), "--training.batch_size", "400000"])
    assert "\n" not in str(caught.value)


def test_sharding_and_dimension_are_taken_from_the_configuration(capsys, data):
    flags = ["--world-size", 2, "--device", "cpu", "--hbm-gib", 16, "--embedding.dim", 32]
    tables, _, _ = plan(capsys, data, *flags, "--sharding.type", "column_wise")
    assert {row[1] for row in tables.values()} == {"column_wise"}
    assert "2.384 GiB" in " ".join(tables["item"])


def test_default_is_one_gpu_of_80_gib(capsys, data):
    assert "Ranks: 1 x 80.000 GiB (cuda)" in plan(capsys, data)[2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hbm-gib", 0.5, "--device", "cpu"], "do not fit 1 x 0.5 GiB"),
        (["--device", "tpu"], "--device: no 'tpu'; choose one of cpu, cuda"),
        (["--world-size", 0], "--world_size: write one whole number from 1, not '0'"),
        (["--hbm-gib", "nan"], "--hbm_gib: write one number above 0 and up to 1000000, not 'nan'"),
        (["--hbm-gib", "inf"], "--hbm_gib: write one number above 0 and up to 1000000, not 'inf'"),
        (["--world-size", 10**12], "reader.streams and training.batch_size: at least the number of ranks"),
        (["--model.tower", 65536, 65536, 65536], "rank 0 needs "),
        (["--world-sizes", 2], "unknown option '--world"),
    ],
)
def test_plans_that_cannot_be(data, flags, words):
    with pytest.raises(UserError) as caught:
        cli.plan(["mmoe", "--data", str(data), *map(str, flags)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_show_every_name_with_a_description(capsys):
    for command, names in ((cli.models, MODELS), (cli.presets, preset_names()), (cli.recipes, recipe_names())):
        command([])
        rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        assert [row[0] for row in rows] == list(names)
        assert all(len(row) == 2 and len(row[1]) > 10 for row in rows)


def test_plan_in_a_real_process_prints_the_plan_alone(run_recmtl, data):
    ended = run_recmtl("plan", "mmoe", "--data", data, "--world-size", 8)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Ranks: 8 x 80.000 GiB (cuda)" in ended.stdout


def test_without_a_command_the_commands_are_listed(run_recmtl):
    ended = run_recmtl()
    assert ended.returncode == 0
    assert all(f"  {name} " in ended.stdout for name in cli.COMMANDS)
