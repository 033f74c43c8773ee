"""`recmtl roll` on synthetic days, its steps within the test's own process: good days, bad and late ones."""

from __future__ import annotations

import contextlib
import io
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import words
from rolling_jobs import SIZES, add_days, command, digests, records, served, spoil, write_days

from recmtl import cli
from recmtl.rolling import day
from recmtl.rolling.record import Cost, load_records
from recmtl.rolling.steps import Command
from recmtl.schema import Dataset


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_days(tmp_path_factory.mktemp("days") / "days", 5)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were run, each in this process; what they say is swallowed."""
    ran: list[str] = []

    def run_here(step: Command, of: str, log: Path) -> Cost:
        ran.append(f"{of} {log.stem}")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.COMMANDS[step.words[0]][0](list(step.words[1:]))
        return Cost(1.0, 1.0)

    def leave(message: str, code: int, **_: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(day, "run_step", run_here)
    monkeypatch.setattr(cli, "exit_process", leave)
    return ran


def roll(raw: Path, out: Path, *options: object) -> int:
    """The exit code of a job."""
    try:
        cli.roll(command(raw, out, *options))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_every_day(days, tmp_path, steps, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    add_days(raw, days, 1, 2, 3)
    assert roll(raw, out, "--keep", 1, "--lookback", "1 day") == 0
    first = ["2023-05-01 prepare", "2023-05-01 train", "2023-05-01 export"]
    second = [f"2023-05-02 {step}" for step in ("prepare", "evaluate", "train", "export")]
    assert steps == first + second
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        *(line for line in first),
        "2023-05-01 accepted",
        *(line for line in second),
        "2023-05-02 accepted",
    ]
    one, two = load_records(out)
    assert (one.day, one.start_from, one.yesterday) == ("2023-05-01", None, None)
    assert one.today.yesterday == {} == one.today.auc_gain
    assert {step for record in (one, two) for step in record.cost} == {"prepare", "evaluate", "train", "export"}
    # The first day is split as the recipe says, the second as the command does.
    assert one.rows["val"] > 0
    assert two.rows["val"] == 0 < two.rows["test"] < two.rows["train"]
    assert (two.since, two.until, two.start_from) == ("2023-05-02 00:00:00", "2023-05-03 00:00:00", "2023-05-01")
    # Yesterday's model is measured on the whole day, and on the rows that the new model is tested on.
    assert two.yesterday.rows == sum(two.rows.values()) == two.yesterday.metrics["like"]["rows"]
    assert two.today.rows == two.rows["test"] == two.today.yesterday["like"]["rows"]
    assert two.yesterday.metrics["like"]["auc_se"] > 0
    gain = two.today.auc_gain["like"]
    assert gain.value == two.today.metrics["like"]["auc"] - two.today.yesterday["like"]["auc"]
    assert 0 < gain.se < two.today.metrics["like"]["auc_se"] + two.today.yesterday["like"]["auc_se"]
    assert two.tables["user_id"].new > 0
    assert one.tables["user_id"].rows == one.tables["user_id"].new + 2
    assert two.tables["user_id"].rows == one.tables["user_id"].rows + two.tables["user_id"].new
    # One day's data, run and export are left, and what is served is one of them.
    for kind in ("data", "runs", "exports"):
        assert [path.name for path in (out / kind).iterdir()] == ["2023-05-02"]
    assert served(out) == "exports/2023-05-02"
    assert Dataset.load(out / "data" / "2023-05-02").generation == 1

    steps.clear()
    assert roll(raw, out) == 0
    assert steps == []
    assert capsys.readouterr().out.startswith("nothing new: 2023-05-03 is ready when ")


@pytest.mark.slow
def test_a_spoiled_day_is_refused_left_out_and_done_again(days, tmp_path, steps, capsys):
    """Days 1 to 3 with the second one spoiled: the third goes on from the first; then the files are mended."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    gate = ("--test", "0.3", "--gate", "view.auc >= 0.59", "like.auc >= yesterday - 0.5")
    add_days(raw, days, 1, 2, 3)
    spoil(raw, 2)
    assert roll(raw, out, *gate) == 1
    assert served(out) == "exports/2023-05-01"
    assert "2023-05-02 export" not in steps
    refused = load_records(out)[-1]
    assert not refused.gate.accepted
    assert f"2023-05-02 refused: {refused.gate.reasons[0]}" in capsys.readouterr().out
    assert roll(raw, out, *gate) == 1  # as long as it is the newest day
    add_days(raw, days, 4)
    assert roll(raw, out, *gate) == 0
    third = load_records(out)[-1]
    assert (third.day, third.start_from, third.yesterday.run) == ("2023-05-03", "2023-05-01", "2023-05-01")
    # Nothing of the refused day is in it: neither ids nor rows.
    assert Dataset.load(out / "data" / "2023-05-03").generation == 1
    assert served(out) == "exports/2023-05-03"

    add_days(raw, days, 2)
    steps.clear()
    assert roll(raw, out, *gate, "--redo-from", "2023-05-02") == 0
    assert {step.split()[0] for step in steps} == {"2023-05-02", "2023-05-03"}
    assert [record.start_from for record in load_records(out)] == [None, "2023-05-01", "2023-05-02"]

    fresh = tmp_path / "fresh"
    assert roll(raw, fresh, *gate) == 0
    assert records(out) == records(fresh)
    assert digests(out, "2023-05-03") == digests(fresh, "2023-05-03")


@pytest.mark.slow
def test_a_job_that_is_behind_gives_what_one_in_time_gives(days, tmp_path):
    """Labels see no further than the delay, and the log of later days is nothing to a day before."""
    add_days(tmp_path / "raw", days, 1, 2)
    for number in (3, 4):
        roll(tmp_path / "raw", tmp_path / "in time", "--delay", "90 minutes")
        add_days(tmp_path / "raw", days, number)
    roll(tmp_path / "raw", tmp_path / "in time", "--delay", "90 minutes")
    roll(tmp_path / "raw", tmp_path / "behind", "--delay", "90 minutes")
    assert [record.day for record in records(tmp_path / "behind")] == ["2023-05-01", "2023-05-02", "2023-05-03"]
    assert records(tmp_path / "in time") == records(tmp_path / "behind")


RETURNS = """
name = "returns"
sql = '''
select *, coalesce(lead("at") over (partition by "user" order by "at") < "at" + interval '2 hours', false) as returns
from raw
'''
[[feature]]
name = "user"
[[feature]]
name = "item"
[[task]]
name = "returns"
label = "returns"
[split]
by = "time"
column = "at"
val = 0.0
test = 0.1
"""


@pytest.mark.slow
def test_labels_that_come_late_are_waited_for(tmp_path):
    """Whether a user's next event comes within two hours: that is known two hours later."""
    recipe, raw, out = tmp_path / "late.toml", tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    recipe.write_text(RETURNS)
    rng, events = np.random.default_rng(0), 3 * 480
    moments = [datetime(2023, 5, 1) + timedelta(minutes=3 * number) for number in range(events)]
    columns = {"user": rng.integers(0, 20, events), "item": rng.integers(0, 9, events), "at": moments}
    pq.write_table(pa.table(columns), raw / "events.parquet")
    found = {}
    for delay in ("0 hours", "2 hours", "12 hours"):
        sizes = words({key: value for key, value in SIZES.items() if key != "metrics.monitor"})
        cli.roll([str(recipe), str(raw), str(out / delay), "mmoe", "--delay", delay, "--lookback", "1 hour", *sizes])
        found[delay] = [record.today.metrics["returns"]["base_rate"] for record in load_records(out / delay)]
    assert len(found["2 hours"]) == 2
    # Without a delay users seem not to return after midnight; with more than it takes nothing changes.
    assert all(less < right for less, right in zip(found["0 hours"], found["2 hours"], strict=True))
    assert found["2 hours"] == found["12 hours"]


@pytest.mark.slow
def test_a_job_goes_on_with_every_step_that_is_missing(days, tmp_path, steps, monkeypatch):
    """Whatever was done before an interruption stays; here each step in turn is the one that does not end."""
    raw, out, undisturbed = (tmp_path / name for name in ("raw", "out", "undisturbed"))
    add_days(raw, days, 1, 2, 3)
    roll(raw, undisturbed)
    expected = list(steps)
    run_here, left = day.run_step, 0

    def dying(step: Command, of: str, log: Path) -> Cost:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return run_here(step, of, log)

    monkeypatch.setattr(day, "run_step", dying)
    steps.clear()
    for _ in range(len(expected)):
        left = 1
        with contextlib.suppress(KeyboardInterrupt):
            roll(raw, out)
    left = 0
    roll(raw, out)
    assert steps == expected
    assert load_records(out) == load_records(undisturbed)  # with what every step cost
