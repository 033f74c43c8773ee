"""The report of a rolling job: a table, a file in full precision and a page, of the records alone."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_runs import write_run
from rolling_records import days

from recmtl import cli
from recmtl.errors import UserError
from recmtl.report import report
from recmtl.report.rolling.plots import cost_plots, count_plots, metric_plots
from recmtl.report.rolling.table import measured, tabulate
from recmtl.rolling.record import DayRecord, Yesterday


def write(folder: Path, records: list[DayRecord]) -> Path:
    for record in records:
        record.save(folder)
    return folder


def cells(text: str) -> list[list[str]]:
    """The table's lines, without the rule below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_line_a_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write(tmp_path / "job", days(12, refused=(6,)))
    cli.report([str(job), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "report.md").read_text() == said
    wanted = "12 days from 2023-05-01 to 2023-05-13, 1 refused; the last accepted model is that of 2023-05-13"
    assert said.splitlines()[0] == f"**job**: {wanted}"
    head, first, second, *rest = cells(said)
    assert dict(zip(head, first, strict=True))["view AUC before"] == "–"
    assert second[:5] == ["2023-05-02", "0.6910 ± 0.0040", "0.7010 ± 0.0040", "+0.0050 ± 0.0015", "0.7110"]
    assert second[6:9] == ["−0.0010", "12.345 ± 0.250", "12.345 ± 0.250"]
    assert second[9:13] == ["50,100", "5,000", "110", "40"]
    assert [line[-1] for line in rest] == ["took over"] * 4 + ["refused"] + ["took over"] * 5
    assert said.rstrip().splitlines()[-1] == "- 2023-05-07 was refused: view.auc is 0.7, not >= 0.8; like.auc <&> 2"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "report.csv", "report.html"}


def test_the_file_has_full_precision(tmp_path: Path) -> None:
    records = days(3, refused=(2,))
    report([write(tmp_path / "job", records)], tmp_path / "out")
    with (tmp_path / "out" / "report.csv").open() as file:
        first, second, third = csv.DictReader(file)
    assert (first["before_view_auc"], first["before_like_auc_se"]) == ("", "")
    assert float(second["before_view_auc"]) == records[1].yesterday.metrics["view"]["auc"]
    assert float(second["after_seconds_mae_se"]) == 0.25
    assert float(second["gain_view_auc_se"]) == 0.0015
    assert second["gain_like_auc_se"] == ""
    assert float(second["seconds_train"]) == records[1].cost["train"].seconds
    assert (second["table_item_rows"], second["table_item_new"], second["table_<user>_retired"]) == (
        "10060",
        "90",
        "10",
    )
    assert (second["accepted"], third["accepted"], third["seconds_export"]) == ("1", "0", "")
    assert list(first)[:3] == ["day", "since", "until"]


def test_the_page_is_one_file_of_both_colours(tmp_path: Path) -> None:
    job = write(tmp_path / "job & co", days(12, refused=(6,)))
    report([job], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)|<script|<link|src=", page)
    assert "prefers-color-scheme: dark" in page
    assert not re.findall(r"#0[abc]0[abc]\d\d", page)  # no stand-in is left
    assert "<h1>job &amp; co</h1>" in page
    assert "<user>" not in page
    assert "&lt;user&gt;" in page
    assert "like.auc &lt;&amp;&gt; 2" in page
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert captions == ["view AUC", "like AUC", "seconds MAE", "Rows", "New and retired ids", "Time", "CPU time"]
    assert page.count("<svg") == len(captions)
    assert "yesterday's model on 2023-05-13" in page
    assert "<strong>refused</strong>" in page
    report([job], tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_text() == page


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Figures by what they show, as they are drawn."""
    found: dict[str, Figure] = {}

    def draw(fill, description: str) -> str:
        found[description] = Figure()
        fill(found[description].add_subplot())
        return description

    monkeypatch.setattr("recmtl.report.rolling.plots.svg", draw)
    return found


def test_what_is_drawn(drawn: dict[str, Figure]) -> None:
    records = days(12, refused=(6,))
    metric_plots(records, measured(records))
    count_plots(records)
    cost_plots(records)
    (axes,) = drawn["view AUC by day"].axes
    before, after, on_test = (line for line in axes.lines if len(line.get_xdata()) > 1)
    assert before.get_ydata().tolist() == pytest.approx([0.69 + number / 1000 for number in range(1, 12)])
    assert (len(after.get_xdata()), len(on_test.get_xdata())) == (12, 11)
    # The ninth of May has no rows, and a place.
    assert after.get_xdata().tolist() == [*range(8), *range(9, 13)]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata().tolist() for line in hollow] == [[6]]
    assert axes.get_xticklabels()[0].get_text() == "05-01"
    assert axes.get_xlabel() == "2023"
    (rows,) = drawn["rows by day and split"].axes
    heights = [bar.get_height() for bar in rows.patches]
    assert heights[:12] == [record.rows["train"] for record in records]
    assert heights[24:] == [5000] * 12
    (ids,) = drawn["new and retired ids by day"].axes
    assert [bar.get_height() for bar in ids.patches] == [110] * 11 + [-40] * 11
    (time,) = drawn["Time by day and step"].axes
    tops = [sum(bar.get_height() for bar in time.patches[day::12]) for day in range(12)]
    assert tops == pytest.approx([sum(cost.seconds for cost in record.cost.values()) / 60 for record in records])


def test_few_days_of_any_kind(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    """One day, days that are numbers, without test rows, without AUC, without any cost."""
    first, second, third = days(3)
    bare = replace(second, today=None, yesterday=Yesterday(first.day, 10, {"view": {"auc": None}}), cost={})
    numbers = [
        replace(record, day=str(2.5 * at), since=str(2.5 * at)) for at, record in enumerate((first, bare, third))
    ]
    for place, records in enumerate(([first], [replace(first, today=None, cost={})], numbers, [bare, third])):
        job = write(tmp_path / f"{place}", records)
        text = report([job], tmp_path / f"out{place}")
        assert len(cells(text)) == 1 + len(records)
        head, lines = tabulate(records, measured(records))
        assert all(len(line) == len(head) for line in lines)
    assert "1 day from 2023-05-01 to 2023-05-01, 0 refused" in report([tmp_path / "0"], tmp_path / "out")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    job = write(tmp_path / "job", days(2))
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=f"{job}: the folder of a rolling job; report it by itself"):
        report([run, job], tmp_path / "out")
    next((job / "days").iterdir()).write_text("{")
    with pytest.raises(UserError, match=r"2023-05-0\d\.json: damaged"):
        report([job], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "**" not in report([run], tmp_path / "out").splitlines()[0]
