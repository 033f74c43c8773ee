"""Progress where there is no terminal: a line now and then, and where it is wanted one for what is done."""

from __future__ import annotations

import re

import pytest

from recmtl.runtime import progress
from recmtl.runtime.progress import Progress


@pytest.mark.parametrize(
    ("note", "shown"), [(None, "epoch 1  step 1/2  "), ("loss 0.5", "epoch 1  step 1/2  loss 0.5  ")]
)
def test_a_line_of_progress_has_no_gap_for_what_is_not_known_yet(monkeypatch, capsys, note, shown):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Progress(timed=False) as bars, bars.stage("epoch 1", 2, unit="step") as advance:
        advance(1, note)
    assert capsys.readouterr().err == f"{shown}0 s left\n"


def test_a_note_stays_until_the_next_one(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Progress(timed=False) as bars, bars.stage("rows", 30, done=10) as advance:
        advance(10)  # nothing was done, so that nothing tells how long the rest takes
        advance(20, "well")
        advance(30)
    assert capsys.readouterr().err == "rows  20/30  well  0 s left\nrows  30/30  well  0 s left\n"


def test_a_stage_that_is_done_says_how_long_it_took(capsys):
    with Progress() as bars:
        with bars.stage("first", 1):
            pass
        bars.note("look [here]")
    assert re.fullmatch(r"first: \d+\.\d s\nnote: look \[here\]\n", capsys.readouterr().err)


def test_other_ranks_say_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Progress(enabled=False) as bars, bars.stage("epoch 1", 2) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")
