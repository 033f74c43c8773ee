"""Synthetic logs of days that follow each other, in a marketplace that stays or drifts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recmtl.data.prepare.extension import Extend
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.synthetic.days import HALF_LIFE, PRODUCT_TURNOVER, USER_TURNOVER, DailySimulation
from recmtl.synthetic.marketplace import EVENT_SHARES, Sizes
from recmtl.synthetic.simulation import walk_along
from recmtl.synthetic.synthesize import MIN_DAY_EVENTS, MIN_EVENTS, SCHEMA, TRUTH_FOLDER, synthesize

DAYS, DAY_EVENTS = 14, 10_000
FOLDERS = [f"202305{day:02}" for day in range(1, DAYS + 1)]
PLACES = Sizes.for_events(31 * DAY_EVENTS).users


def read(out: Path, folder: str) -> pa.Table:
    """A day's events with their true probabilities."""
    log, truth = (pa.concat_tables(map(pq.read_table, files(path / folder))) for path in (out, out / TRUTH_FOLDER))
    return log.append_column("view", truth["view"]).append_column("like", truth["like"])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def make(folder: Path, drift: bool) -> list[pa.Table]:
    synthesize(folder, DAYS * DAY_EVENTS, days=DAYS, drift=drift)
    return [read(folder, name) for name in FOLDERS]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("days") / "log"


@pytest.fixture(scope="module")
def drifting(out: Path) -> list[pa.Table]:
    return make(out, drift=True)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> list[pa.Table]:
    return make(tmp_path_factory.mktemp("steady") / "log", drift=False)


@pytest.fixture(params=["drifting", "steady"])
def log(request: pytest.FixtureRequest) -> list[pa.Table]:
    return request.getfixturevalue(request.param)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Ties count by half."""
    _, rank, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - (counts - 1) / 2)[rank]
    positives = labels.sum()
    return (middle[labels].sum() - positives * (positives + 1) / 2) / positives / (len(labels) - positives)


def likes(day: pa.Table) -> np.ndarray:
    return pc.equal(day["event_id"], "item_like").to_numpy()


def worth(day: pa.Table, column: str) -> dict[Any, float]:
    """Mean true probability of a like by a column's value."""
    means = day.group_by(column).aggregate([("like", "mean")])
    return dict(zip(means[column].to_pylist(), means["like_mean"].to_pylist(), strict=True))


def correlation(before: pa.Table, after: pa.Table, column: str) -> float:
    """Of the worths of two days, each value weighted by its events on both."""
    (old, new), counts = (worth(day, column) for day in (before, after)), []
    shared = sorted(value for value in old.keys() & new.keys() if value is not None)
    for day in (before, after):
        values = day[column].value_counts().to_pylist()
        found = {value["values"]: value["counts"] for value in values}
        counts.append([found[value] for value in shared])
    weights = np.minimum(*np.array(counts))
    covariance = np.cov([[of[value] for value in shared] for of in (old, new)], aweights=weights)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def auc_by_worth(known: pa.Table, day: pa.Table) -> float:
    """Of a model that knows what each section of the shop was worth on another day."""
    values = worth(known, "c1_id")
    mean = float(np.mean(known["like"].to_numpy()))
    return auc(likes(day), np.array([values.get(section, mean) for section in day["c1_id"].to_pylist()]))


def test_a_folder_a_day(out: Path, drifting: list[pa.Table]) -> None:
    assert sorted(path.name for path in out.iterdir()) == [*FOLDERS, TRUTH_FOLDER]
    assert sorted(path.name for path in (out / TRUTH_FOLDER).iterdir()) == FOLDERS
    for folder, day in zip(FOLDERS, drifting, strict=True):
        for path in files(out / folder):
            truth = out / TRUTH_FOLDER / folder / path.name
            assert pq.read_schema(path).equals(SCHEMA)
            assert pq.read_metadata(path).num_rows == pq.read_metadata(truth).num_rows
        assert len(day) == DAY_EVENTS


@pytest.mark.parametrize("drift", [False, True])
def test_the_first_days_of_a_longer_log_are_those_of_a_shorter_one(tmp_path: Path, drift: bool) -> None:
    synthesize(tmp_path / "short", 3 * 500, seed=2, days=3, drift=drift)
    synthesize(tmp_path / "long", 5 * 500 + 4, seed=2, days=5, drift=drift)
    short, long = content(tmp_path / "short"), content(tmp_path / "long")
    assert short == {name: long[name] for name in short}
    assert len(read(tmp_path / "long", "20230505")) == 504, "the last day has what remains"
    synthesize(tmp_path / "other", 3 * 500, seed=3, days=3, drift=drift)
    assert not set(content(tmp_path / "other").values()) & set(short.values())


def test_drift_begins_on_the_second_day(tmp_path: Path) -> None:
    for drift in (False, True):
        synthesize(tmp_path / str(drift), MIN_EVENTS, days=2, drift=drift)
    steady, drifting = (content(tmp_path / str(drift)) for drift in (False, True))
    assert {name for name in steady if steady[name] == drifting[name]} == {n for n in steady if "20230501" in n}


def test_sequences_lie_within_their_day(log: list[pa.Table]) -> None:
    found: list[str] = []
    for folder, day in zip(FOLDERS, log, strict=True):
        start = np.datetime64(f"{folder[:4]}-{folder[4:6]}-{folder[6:]}")
        time, sequence = day["stime"].to_numpy(), day["sequence_id"].to_numpy()
        assert start <= time.min() < start + np.timedelta64(1, "h")
        assert start + np.timedelta64(23, "h") < time.max() < start + np.timedelta64(1, "D")
        begins = np.flatnonzero(np.append(True, sequence[1:] != sequence[:-1]))
        lengths = np.diff(begins, append=len(day))
        np.testing.assert_array_equal(day["sequence_length"].to_numpy(), np.repeat(lengths, lengths))
        assert (np.diff(time)[sequence[1:] == sequence[:-1]] > np.timedelta64(0)).all()
        found.extend(sequence[begins])
        assert [name.split("-")[0] for name in sequence] == day["user_id"].cast(pa.string()).to_pylist()
    assert len(found) == len(set(found)), "a sequence has one day and lies together"
    assert max(int(name.split("-")[1]) for name in found) > DAYS, "the most active people have many"


def test_blocks_of_a_day() -> None:
    """Sequences stay whole and are numbered on from block to block, and a cut at the day's end makes no empty block."""
    simulation = DailySimulation(MIN_EVENTS, 0, True)
    for size in (200, MIN_EVENTS - 1, MIN_EVENTS):
        blocks = list(simulation.blocks(MIN_EVENTS, size))
        assert sum(len(block.user) for block in blocks) == MIN_EVENTS
        assert len(blocks) > 1 or size >= MIN_EVENTS - 1
        of_day = np.concatenate([np.stack([block.user, block.sequence, block.length]) for block in blocks], axis=1)
        _, counts = np.unique(of_day, axis=1, return_counts=True)
        np.testing.assert_array_equal(np.unique(of_day, axis=1)[2], counts)
        simulation.next_day()


@pytest.mark.parametrize("task", ["view", "like"])
def test_truth_is_calibrated_on_every_day(log: list[pa.Table], task: str) -> None:
    """The observed rate agrees with the true one on each day, and in each tenth of the probabilities, within 4.5 σ."""
    for day in log:
        probability = day[task].to_numpy().astype(float)
        label = pc.equal(day["event_id"], f"item_{task}").to_numpy()
        bucket = np.argsort(np.argsort(probability)) * 10 // len(probability)
        variance = np.bincount(bucket, probability * (1 - probability))
        assert (np.abs(np.bincount(bucket, label - probability)) < 4.5 * np.sqrt(variance)).all()
        assert abs((label - probability).sum()) < 4.5 * np.sqrt(variance.sum())
        assert probability.mean() == pytest.approx(EVENT_SHARES[("view", "like").index(task)], rel=0.2)


def test_every_day_is_as_hard_as_the_first(log: list[pa.Table]) -> None:
    for day in log:
        assert 0.79 < auc(likes(day), day["like"].to_numpy()) < 0.87


def test_people_and_products_come_and_go(drifting: list[pa.Table]) -> None:
    users = [(day["user_id"].to_numpy() - 1) // PLACES for day in drifting]
    editions = [product_editions(day) for day in drifting]
    for found, turnover in ((users, USER_TURNOVER), (editions, PRODUCT_TURNOVER)):
        assert not found[0].any()
        shares = [np.mean(generation > 0) for generation in found]
        assert shares[-1] == pytest.approx(1 - (1 - turnover) ** (DAYS - 1), rel=0.35)
        assert shares[-1] > shares[DAYS // 2] > shares[1] > 0


def product_editions(day: pa.Table) -> np.ndarray:
    """How many products were in the place of each event's before; of events with a branded product."""
    branded = day.filter(pc.greater(pc.fill_null(day["brand_id"], 0), 0))["product_id"].to_pylist()
    return np.array([int("".join(name.split("_")[2:]) or 1) - 1 for name in branded])


def test_who_left_does_not_return(drifting: list[pa.Table]) -> None:
    last: dict[int, int] = {}
    items: dict[int, str] = {}
    for day in drifting:
        for user in set(day["user_id"].to_pylist()):
            generation, place = divmod(user - 1, PLACES)
            assert generation >= last.get(place, 0)
            last[place] = generation
        for item, product in zip(day["item_id"].to_pylist(), day["product_id"].to_pylist(), strict=True):
            assert items.setdefault(item, product) == product, "an item is of one product, an edition of its own"


def test_nothing_comes_or_goes_without_drift(steady: list[pa.Table]) -> None:
    assert max(day["user_id"].to_numpy().max() for day in steady) <= PLACES
    assert not any(product_editions(day).any() for day in steady)


def test_popularity_stays_long_tailed(log: list[pa.Table]) -> None:
    def share_of_most_popular(day: pa.Table) -> float:
        counts = np.sort(day["product_id"].value_counts().field("counts").to_numpy())[::-1]
        return float(counts[:50].sum() / counts.sum())

    assert share_of_most_popular(log[-1]) == pytest.approx(share_of_most_popular(log[0]), rel=0.15)


def test_worth_drifts(drifting: list[pa.Table], steady: list[pa.Table]) -> None:
    """Sections of the shop, on neighbouring days and thirteen days apart."""
    near = np.mean([correlation(drifting[day], drifting[day + 1], "c1_id") for day in range(DAYS - 1)])
    assert correlation(drifting[0], drifting[-1], "c1_id") < near - 0.1
    assert correlation(steady[0], steady[-1], "c1_id") > 0.85


def test_tastes_drift() -> None:
    """Those of people and products who stay: by half in a half-life, with the same deviation."""
    simulation = DailySimulation(DAY_EVENTS, 0, True)
    people, own = simulation.people, simulation.worth.level["product"]
    for _ in range(int(HALF_LIFE)):
        simulation.next_day()
    stays = simulation.people.generation == 0
    for before, after in ((people.ease, simulation.people.ease), (people.taste, simulation.people.taste)):
        assert np.corrcoef(before[0, stays], after[0, stays])[0, 1] == pytest.approx(0.5, abs=0.06)
        assert abs(np.corrcoef(before[0, ~stays], after[0, ~stays])[0, 1]) < 0.06
        assert after[0].std() == pytest.approx(1, abs=0.05)
    stays = simulation.catalogue.edition == 0
    assert np.corrcoef(own[0, stays], simulation.worth.level["product"][0, stays])[0, 1] == pytest.approx(0.5, abs=0.1)
    assert abs(np.corrcoef(own[0, ~stays], simulation.worth.level["product"][0, ~stays])[0, 1]) < 0.15


def test_a_model_of_the_first_day_falls_behind(drifting: list[pa.Table], steady: list[pa.Table]) -> None:
    assert auc_by_worth(drifting[-2], drifting[-1]) > auc_by_worth(drifting[0], drifting[-1]) + 0.02
    assert auc_by_worth(steady[-2], steady[-1]) == pytest.approx(auc_by_worth(steady[0], steady[-1]), abs=0.02)


def test_what_knowing_another_day_costs() -> None:
    """Like AUC on the last day by the probabilities that its events would have had on another: docs/rolling.md."""
    simulation, found = DailySimulation(20_000, 0, True), {}
    for day in range(1, DAYS + 1):
        found[day] = simulation.effects, simulation.people
        if day < DAYS:
            simulation.next_day()
    rng = np.random.default_rng(0)
    places, walk = simulation._walk(*simulation._draw_day(200_000, rng), rng)
    label = rng.random(len(walk.item)) < simulation.link.probabilities(walk.scores)[0]
    for day, expected in ((1, 0.792), (DAYS - 1, 0.833), (DAYS, 0.839)):
        effects, people = found[day]
        ease, taste = people.ease[:, places], people.taste[:, places]
        known = walk_along(walk.sequences, walk.item, simulation.catalogue, effects, ease, taste)
        assert auc(label, simulation.link.probabilities(known.scores)[0]) == pytest.approx(expected, abs=0.004)


def test_days_extend_prepared_data(out: Path, drifting: list[pa.Table], tmp_path: Path) -> None:
    """A raw folder to which a day is added gives that day's rows, with their truth, as all days at once would."""
    recipe, raw = load_recipe("merrec_time"), tmp_path / "raw"

    def add(folder: str) -> None:
        for path in (folder, f"{TRUTH_FOLDER}/{folder}"):
            shutil.copytree(out / path, raw / path)

    for folder in FOLDERS[:2]:
        add(folder)
    first = prepare(recipe, raw, tmp_path / "0")
    assert sum(first.rows.values()) == sum(map(protocol_rows, drifting[:2]))
    for generation, lookback in ((1, None), (2, "1 day")):
        add(FOLDERS[1 + generation])
        extend = Extend(tmp_path / str(generation - 1), lookback=lookback)
        extended = prepare(recipe, raw, tmp_path / str(generation), extend=extend)
        assert extended.rows == {"train": protocol_rows(drifting[1 + generation]), "val": 0, "test": 0}
        rows = pa.concat_tables(map(pq.read_table, files(tmp_path / str(generation) / "train")))
        assert all(task.oracle for task in extended.tasks)
        assert rows["oracle_view"].null_count == 0
        assert extended.table("user_id").rows > first.table("user_id").rows


def protocol_rows(day: pa.Table) -> int:
    """Events with seven before them in their sequence."""
    lengths = day.group_by("sequence_id").aggregate([("sequence_id", "count")])["sequence_id_count"].to_numpy()
    return int(np.maximum(lengths - 7, 0).sum())


@pytest.mark.parametrize(
    ("events", "days", "drift", "message"),
    [
        (MIN_EVENTS, 1, False, "--days 1: at least 2"),
        (MIN_EVENTS, -3, True, "--days -3: at least 2"),
        (MIN_EVENTS, None, True, "--drift: .*give --days"),
        (MIN_EVENTS, 11, False, f"--days 11: .* --events {11 * MIN_DAY_EVENTS}"),
        (MIN_EVENTS, 5000, True, "--days 5000: .* --events 500000"),
        (MIN_EVENTS - 1, 2, True, f"at least {MIN_EVENTS}"),
    ],
)
def test_mistakes(tmp_path: Path, events: int, days: int | None, drift: bool, message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        synthesize(tmp_path / "out", events, days=days, drift=drift)
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_smallest_days(tmp_path: Path) -> None:
    synthesize(tmp_path / "out", MIN_EVENTS, days=MIN_EVENTS // MIN_DAY_EVENTS, drift=True)
    assert len(files(tmp_path / "out")) == 2 * MIN_EVENTS // MIN_DAY_EVENTS
