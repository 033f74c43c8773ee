"""The page of plots: what it shows, that it is one file, and what it says of what a run lacks."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import history, task, write_results, write_run

from recmtl.report import report
from recmtl.report.bars import plan_bars
from recmtl.report.calibration import averaged, calibration_plots
from recmtl.report.cost import Point, pareto
from recmtl.report.curves import POINTS, curve
from recmtl.report.numbers import show_size
from recmtl.report.page import plans
from recmtl.report.rows import Row, by_dataset
from recmtl.report.runs import Bins, Plan, Run, Shard


class Page(HTMLParser):
    """What a browser would make of it, as far as the tests ask."""

    VOID = ("meta", "use", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:  # HTML lets cells and lines of a table end by themselves
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [value for found, attrs in self.tags if found == tag and (value := attrs.get(name)) is not None]


def write_page(runs: list[Path], out: Path) -> str:
    report(runs, out)
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one model, one of another that is better and takes longer."""
    folder = tmp_path_factory.mktemp("runs")
    better = {"test": {"view": task(0.79), "like": task(0.75)}, "logloss_sum": 0.7, "train_val_seconds": 180.0}
    return [
        *(write_run(folder / f"mmoe-{seed}", seed=seed) for seed in (100, 101)),
        write_run(folder / "ple", model="ple", **better),
    ]


@pytest.fixture(scope="module")
def text(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(runs, tmp_path_factory.mktemp("out"))


def rows_of(runs: list[Path]) -> list[Row]:
    (rows,) = by_dataset([Run.load(run) for run in runs]).values()
    return rows


def test_all_parts_are_there(text: str) -> None:
    page = Page(text)
    assert page.texts["h1"] == ["merrec"]
    assert page.texts["h2"] == [
        *("Accuracy against cost", "Training", "Calibration", "Data", "Where the time went", "Sharding plan"),
        *("Configuration", "Versions"),
    ]
    costs = [f"{what} against {cost}" for cost in ("time", "memory") for what in ("view AUC", "like AUC", "log loss")]
    curves = [
        f"{name}: {what}"
        for name in ("view", "like")
        for what in ("training loss", "validation loss", "validation AUC")
    ]
    titles = [*costs, *curves, "view: calibration", "like: calibration"]
    assert page.texts["figcaption"] == titles
    assert page.attributes("svg", "aria-label") == titles
    assert "experts = 4" in "".join(page.texts["pre"])
    assert page.texts["summary"] == ["mmoe ", "ple "]
    assert page.attributes("th", "colspan") == ["2", "2"]  # AUC and log loss of two tasks
    assert "2.13.0" in "".join(page.texts["td"])
    assert not re.search(r"\bNo (metrics|calibration|times|plan|config)", text)
    assert page.open == []


def test_it_is_one_file_that_loads_nothing(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & {tag for tag, _ in page.tags}
    references = [
        value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "xlink:href")
    ]
    assert references
    assert all(str(value).startswith("#") for value in references)
    assert "http" not in text
    assert "@import" not in text
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", text))


def test_plots_take_the_pages_colors_and_font(text: str) -> None:
    """Or they would not change with the page from light to dark."""
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 14
    for plot in plots:
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot)) == set()
        assert "font:" not in plot
        assert "<text" in plot
    style = text.split("</style>")[0]
    used = {name for plot in plots for name in re.findall(r"var\((--[a-z0-9-]+)\)", plot)}
    assert {"--ink", "--muted", "--grid", "--series-0", "--series-1"} <= used
    light, dark = style.split("prefers-color-scheme: dark")
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_the_same_runs_give_the_same_file(text: str, runs: list[Path], tmp_path: Path) -> None:
    assert write_page(runs, tmp_path) == text


def test_names_are_text_not_html(tmp_path: Path) -> None:
    name = '<script>alert("$x_1$")</script>'
    runs = [write_run(tmp_path / "a", model=name, dataset=name), write_run(tmp_path / "b", dataset=name)]
    page = Page(write_page(runs, tmp_path / "out"))
    assert "script" not in page.texts
    assert page.texts["h1"] == [name]
    assert any(name in text for text in page.texts["li"])
    assert "<b>color</b>: 1 kB, table_wise" in page.attributes("b", "title")


def test_runs_of_old_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    old = write_results(tmp_path / "old", model="ple")
    text = write_page([old, write_run(tmp_path / "new")], tmp_path / "out")
    for lacking in (
        *("metrics.jsonl", "calibration bins in results.json", "times by part in results.json", "plan.json"),
        "config.toml",
    ):
        assert f"No {lacking}: ple." in text
    assert "view: calibration" in text

    alone = Page(write_page([old], tmp_path / "alone"))
    assert "figure" not in alone.texts
    assert alone.open == []


def test_a_run_without_a_test_split(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", test={}, logloss_sum=None, calibration_bins={"test": {}, "val": {}})
    page = Page(write_page([run], tmp_path / "out"))
    assert "merrec" in page.texts["h1"]


def test_bars_show_shares(text: str) -> None:
    """Of the longest bar: a run's 100 seconds, 4,000 bytes of a rank."""
    page = Page(text)
    found = dict(zip(page.attributes("b", "title"), page.attributes("b", "style"), strict=True))
    widths = {title: float(re.findall(r"width:([\d.]+)%", style)[0]) for title, style in found.items()}
    assert widths == {
        "training: 1.2 min": 72.0,
        "waiting for data: 8.0 s": 8.0,
        "validation: 10.0 s": 10.0,
        "checkpoints: 5.0 s": 5.0,
        "test: 5.0 s": 5.0,
        "user: 4 kB, table_wise": 100.0,
        "item: 3 kB, table_wise": 75.0,
        "<b>color</b>: 1 kB, table_wise": 25.0,
    }
    assert "4 kB · 25 % of 16 kB" in page.texts["small"]


def test_models_with_the_same_plan_share_a_picture(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / model, model=model) for model in ("mmoe", "ple", "aitm")]
    (runs[1] / "plan.json").write_text((runs[1] / "plan.json").read_text().replace("4000", "5000"))
    assert Page(plans(rows_of(runs))).texts["h3"] == ["mmoe, aitm", "ple"]


def test_many_ranks_and_tables_are_cut_short() -> None:
    shards = [Shard(f"table{i}", "row_wise", rank, 100 - i) for i in range(12) for rank in range(20)]
    text = plan_bars(Plan(20, 10_000, tuple(shards)))
    page = Page(text)
    assert page.texts["dt"] == [f"rank {rank}" for rank in range(16)]
    assert "The first 16 of 20 ranks." in text
    assert page.attributes("b", "title")[:8] == [
        *(f"table{i}: {100 - i} B, row_wise" for i in range(7)),
        f"{', '.join(f'table{i}' for i in range(7, 12))}: {93 + 92 + 91 + 90 + 89} B",
    ]
    assert page.texts["li"][-1] == "5 other tables (9.1 kB)"


RATES = "[dense]\nlr = {}\n[embedding]\nlr = {}\n"
DENSE = ["mmoe (dense.lr 0.01)", "mmoe (dense.lr 0.02)"]


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{"experts": 4}, {"experts": 8}], ["mmoe (experts 4)", "mmoe (experts 8)"]),
        ([{"world_size": 1}, {"world_size": 8}], ["mmoe (ranks 1)", "mmoe (ranks 8)"]),
        ([{}, {}], ["mmoe (run-0)", "mmoe (run-1)"]),
        ([{}, {}, {"experts": 8}], ["mmoe (run-0)", "mmoe (run-1)", "mmoe (experts 8)"]),
        ([{"model": "ple"}, {}], ["ple", "mmoe"]),
        ([{"more": RATES.format(0.01, 0.1)}, {"more": RATES.format(0.02, 0.1)}], DENSE),
        (
            [{"more": RATES.format(0.01, 0.1)}, {"more": RATES.format(0.01, 0.2)}],
            ["mmoe (embedding.lr 0.1)", "mmoe (embedding.lr 0.2)"],
        ),
    ],
)
def test_labels_say_what_sets_rows_apart(tmp_path: Path, changes: list[dict[str, Any]], labels: list[str]) -> None:
    runs = [write_run(tmp_path / f"run-{i}", **change) for i, change in enumerate(changes)]
    assert [row.label for row in rows_of(runs)] == labels


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / place / "run") for place in "ab"]
    assert [row.label for row in rows_of(runs)] == [f"mmoe ({run})" for run in runs]


POINT_LISTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=12)


@given(POINT_LISTS, st.booleans())
def test_pareto_front_is_what_nothing_beats(pairs: list[tuple[int, int]], higher: bool) -> None:
    points = [Point(i, "", cost, quality, None, None) for i, (cost, quality) in enumerate(pairs)]

    def beats(a: Point, b: Point) -> bool:
        gain = (a.quality - b.quality) * (1 if higher else -1)
        return a.cost <= b.cost and gain >= 0 and (a.cost < b.cost or gain > 0)

    front = pareto(points, higher)
    unbeaten = {(p.cost, p.quality) for p in points if not any(beats(q, p) for q in points)}
    assert {(p.cost, p.quality) for p in front} == unbeaten
    assert [p.cost for p in front] == sorted(p.cost for p in front)


def test_bins_of_several_seeds_are_averaged() -> None:
    one, other = Bins([100, 100], [0.1, 0.4], [0.1, 0.4]), Bins([60, 140], [0.2, 0.5], [0.1, 4 / 7])
    mean = averaged([one, other])
    assert mean is not None
    assert mean.rows == [80, 120]
    assert mean.prediction == pytest.approx([(10 + 12) / 160, (40 + 70) / 240])
    assert mean.label == pytest.approx([8 / 80, 60 / 120])
    assert averaged([one, Bins([200], [0.3], [0.25])]) == one
    assert averaged([]) is None


@pytest.mark.parametrize(
    "bins",
    [
        {"rows": [1000], "prediction": [0.125], "positives": [125]},  # one bin, right on the line
        {"rows": [500, 500], "prediction": [1e-6, 1e-3], "positives": [0, 0]},  # nothing observed
        {"rows": [500, 500], "prediction": [1e-4, 0.9], "positives": [0, 500]},
        {"rows": [500, 500], "prediction": [0.1, 0.9], "positives": [50, 400], "label": [0.12, 0.8]},  # weighted
    ],
)
def test_unusual_bins_are_drawn(tmp_path: Path, bins: dict[str, list[float]]) -> None:
    run = write_run(tmp_path / "a", calibration_bins={"test": {"view": bins}})
    assert "<path" in calibration_plots(rows_of([run]), "view")["view: calibration"]


def test_curves_are_thinned_out_by_averaging(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    text = "".join(f'{{"step": {step}, "loss/view": {step % 2}}}\n' for step in range(1, 10 * POINTS + 1))
    (run / "metrics.jsonl").write_text(text + '{"step": 3000, "loss/view": null}\n{"step": 3001, "loss/vi')
    steps, values = curve(Run.load(run), "loss/view")
    assert len(steps) == POINTS
    assert steps == pytest.approx(np.arange(POINTS) * 10 + 5.5)
    assert values == pytest.approx([0.5] * POINTS)


def test_short_curves_are_kept(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "a"))
    steps, values = curve(run, "val/view/auc")
    assert (steps.tolist(), values.tolist()) == ([200, 400], [0.55, 0.6])
    steps, _ = curve(run, "loss/like")
    assert steps.tolist() == [line["step"] for line in history() if "loss/like" in line]
    assert [len(part) for part in curve(run, "loss/other")] == [0, 0]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4.56e6, "4.56 MB"), (8.59e10, "85.9 GB"), (1.2345e12, "1,234 GB")],
)
def test_sizes_have_units(size: float, text: str) -> None:
    assert show_size(size) == text
