"""Synthetic MerRec logs: schema, marginals, invariants of sequences, and truth that is true."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recmtl.errors import UserError
from recmtl.synthetic import synthesize as module
from recmtl.synthetic.marketplace import EVENT_SHARES, EVENT_TYPES, Link
from recmtl.synthetic.simulation import HISTORY
from recmtl.synthetic.synthesize import MIN_EVENTS, MONTH_FOLDER, SCHEMA, TRUTH_FOLDER, synthesize

EVENTS = 300_000


def read(folder: Path) -> pa.Table:
    """All shards, read one by one in order, without their metadata."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet"))).combine_chunks()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "log"
    synthesize(folder, EVENTS, seed=1)
    return folder


@pytest.fixture(scope="module")
def log(out: Path) -> pa.Table:
    return read(out / MONTH_FOLDER)


@pytest.fixture(scope="module")
def truth(out: Path) -> dict[str, np.ndarray]:
    table = read(out / TRUTH_FOLDER / MONTH_FOLDER)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="module")
def sequence(log: pa.Table) -> np.ndarray:
    """Number of the sequence of each row."""
    return codes(log, "sequence_id")


def codes(log: pa.Table, *columns: str) -> np.ndarray:
    """A number for each combination of the columns' values."""
    code = np.zeros(len(log), np.int64)
    for column in columns:
        index = log[column].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
        code = np.unique(code * (index.max() + 2) + index + 1, return_inverse=True)[1]
    return code


def distinct(log: pa.Table, *columns: str) -> int:
    return len(np.unique(codes(log, *columns)))


def kinds(log: pa.Table) -> np.ndarray:
    return log["event_id"].to_numpy()


def positions(sequence: np.ndarray) -> np.ndarray:
    """Number of events before each one in its sequence; sequences lie together."""
    begins = np.flatnonzero(np.diff(sequence, prepend=-1))
    return np.arange(len(sequence)) - np.repeat(begins, np.diff(begins, append=len(sequence)))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    positives = labels.sum()
    return (ranks[labels].sum() - positives * (positives + 1) / 2) / positives / (len(labels) - positives)


def test_shards_have_the_published_schema(out: Path) -> None:
    shards = sorted((out / MONTH_FOLDER).iterdir())
    assert [path.name for path in shards[:2]] == ["000000000000.parquet", "000000000001.parquet"]
    for path in shards:
        assert pq.read_schema(path).equals(SCHEMA)
        assert (
            pq.read_metadata(path).num_rows == pq.read_metadata(out / TRUTH_FOLDER / MONTH_FOLDER / path.name).num_rows
        )


def test_number_of_events_is_exact(log: pa.Table) -> None:
    assert len(log) == EVENTS


@pytest.mark.parametrize(("kind", "share"), list(zip(EVENT_TYPES, EVENT_SHARES, strict=True)))
def test_event_shares(log: pa.Table, kind: str, share: float) -> None:
    assert np.mean(kinds(log) == kind) == pytest.approx(share, rel=0.02, abs=0.0005)


@pytest.mark.parametrize(
    ("columns", "per_event"),
    [
        (("user_id",), 2.77 / 174.9),
        (("item_id",), 30.1 / 174.9),
        (("product_id",), 0.914 / 174.9),
        (("sequence_id",), 9.81 / 174.9),
        (("session_id",), 4.20 / 174.9),
        (("user_id", "session_id"), 34.8 / 174.9),
        (("user_id", "item_id"), 1 - 0.255),
    ],
)
def test_distinct_values_per_event(log: pa.Table, columns: tuple[str, ...], per_event: float) -> None:
    assert distinct(log, *columns) / EVENTS == pytest.approx(per_event, rel=0.1)


@pytest.mark.parametrize(("column", "share"), [("color", 0.956), ("size_name", 0.627), ("brand_name", 0.192)])
def test_missing_values(log: pa.Table, column: str, share: float) -> None:
    assert log[column].null_count / EVENTS == pytest.approx(share, abs=0.04)


def test_small_attributes(log: pa.Table) -> None:
    assert distinct(log, "item_condition_id", "item_condition_name") == 5
    assert distinct(log, "shipper_id", "shipper_name") == 2
    assert distinct(log, "c0_id", "c0_name") == 17


def test_long_tails(log: pa.Table) -> None:
    per_user, per_item = np.bincount(codes(log, "user_id")), np.bincount(codes(log, "item_id"))
    assert np.median(per_user) == pytest.approx(12, abs=2)
    assert np.mean(per_user == 1) == pytest.approx(0.13, abs=0.03)
    assert np.quantile(per_user, 0.95) == pytest.approx(275, rel=0.3)
    assert np.median(per_item) == 2
    assert np.mean(per_item == 1) == pytest.approx(0.39, abs=0.08)


def test_prices(log: pa.Table) -> None:
    price = log["price"].to_numpy()
    assert np.median(price) == pytest.approx(25, rel=0.2)
    assert np.quantile(price, 0.95) == pytest.approx(225, rel=0.3)
    assert price.min() >= 1


@pytest.mark.parametrize(
    ("child", "parents"),
    [
        ("c2_id", ("c1_id", "c2_name")),
        ("c1_id", ("c0_id", "c1_name")),
        ("product_id", ("c2_id", "brand_id", "brand_name", "name")),
        ("item_id", ("product_id", "item_condition_id", "shipper_id", "size_id", "color", "price")),
        ("sequence_id", ("user_id", "sequence_length")),
    ],
)
def test_hierarchies_are_consistent(log: pa.Table, child: str, parents: tuple[str, ...]) -> None:
    assert distinct(log, child) == distinct(log, child, *parents)


def test_product_is_brand_and_category(log: pa.Table) -> None:
    assert distinct(log, "brand_id", "c2_id") == distinct(log, "product_id")


def test_sequences(log: pa.Table, sequence: np.ndarray) -> None:
    within = np.diff(sequence) == 0
    lengths = np.bincount(sequence)
    assert np.count_nonzero(~within) + 1 == len(lengths), "a sequence's events lie together"
    np.testing.assert_array_equal(log["sequence_length"].to_numpy(), lengths[sequence])
    assert (np.diff(log["stime"].to_numpy())[within] > np.timedelta64(0)).all()
    assert (np.diff(log["item_id"].to_numpy())[within] != 0).all()
    assert log["stime"].to_numpy().min() >= np.datetime64("2023-05-01")
    assert log["stime"].to_numpy().max() < np.datetime64("2023-06-01")


def test_most_events_survive_the_length_filter(sequence: np.ndarray) -> None:
    assert np.mean(positions(sequence) >= HISTORY) > 0.6


@pytest.mark.parametrize("task", ["view", "like"])
def test_truth_is_calibrated(log: pa.Table, truth: dict[str, np.ndarray], task: str) -> None:
    """The observed rate agrees with the true one overall and in every tenth of the probabilities, within 4.5 σ."""
    probability, label = truth[task].astype(float), kinds(log) == f"item_{task}"
    bucket = np.argsort(np.argsort(probability)) * 10 // len(probability)
    variance = np.bincount(bucket, probability * (1 - probability))
    assert (np.abs(np.bincount(bucket, label - probability)) < 4.5 * np.sqrt(variance)).all()
    assert abs((label - probability).sum()) < 4.5 * np.sqrt(variance.sum())
    assert ((probability > 0) & (probability < 1)).all()


@pytest.mark.parametrize("task", ["view", "like"])
def test_best_possible_auc(log: pa.Table, truth: dict[str, np.ndarray], sequence: np.ndarray, task: str) -> None:
    kept = positions(sequence) >= HISTORY
    assert 0.78 < auc(kinds(log)[kept] == f"item_{task}", truth[task][kept]) < 0.85


def test_products_seen_before_are_liked_more(log: pa.Table, sequence: np.ndarray) -> None:
    product, position, like = codes(log, "product_id"), positions(sequence), kinds(log) == "item_like"
    seen = np.zeros(EVENTS, bool)
    for lag in range(1, HISTORY + 1):
        seen[lag:] |= (product[lag:] == product[:-lag]) & (position[lag:] >= lag)
    assert like[seen].mean() > 1.2 * like[~seen].mean()


def test_same_seed_same_log_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthesize(tmp_path / name, 5_000, seed=seed)
    a, b, c = (read(tmp_path / name / MONTH_FOLDER) for name in "abc")
    assert a.equals(b)
    assert not a.equals(c)
    assert read(tmp_path / "a" / TRUTH_FOLDER / MONTH_FOLDER).equals(read(tmp_path / "b" / TRUTH_FOLDER / MONTH_FOLDER))


def test_a_seed_keeps_its_log(tmp_path: Path) -> None:
    """The numbers were written down before the log could also be made day by day."""
    synthesize(tmp_path / "out", 5_000, seed=3)
    log, truth = read(tmp_path / "out" / MONTH_FOLDER), read(tmp_path / "out" / TRUTH_FOLDER / MONTH_FOLDER)
    names = ("user_id", "sequence_id", "session_id", "item_id", "product_id", "event_id")
    spelled = "\n".join(" ".join(map(str, row.values())) for row in log.select(names).to_pylist())
    assert hashlib.sha256(spelled.encode()).hexdigest()[:16] == "0be10339ce218ee4"
    assert truth["like"].to_numpy()[:3] == pytest.approx([0.2845607, 0.1983565, 0.0738792], rel=1e-4)
    assert str(log["stime"][0].as_py())[:19] == "2023-05-15 04:38:30"


def test_link_meets_the_shares() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 50_000)).astype(np.float32)
    like, other = Link.fit(scores).probabilities(scores)
    assert like.mean() == pytest.approx(EVENT_SHARES[1], rel=1e-3)
    assert other.mean() == pytest.approx(sum(EVENT_SHARES[2:]), rel=1e-3)


def test_too_few_events(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"at least {MIN_EVENTS}"):
        synthesize(tmp_path / "out", MIN_EVENTS - 1)


def test_smallest_log(tmp_path: Path) -> None:
    synthesize(tmp_path / "out", MIN_EVENTS)
    assert len(read(tmp_path / "out" / MONTH_FOLDER)) == MIN_EVENTS


def test_negative_seed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seed -1"):
        synthesize(tmp_path / "out", MIN_EVENTS, seed=-1)


def test_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        synthesize(tmp_path, MIN_EVENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    synthesize(tmp_path / "out", MIN_EVENTS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MONTH_FOLDER, TRUTH_FOLDER]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    written = []

    def fail_on_the_third(table: pa.Table, path: Path, **options: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise failure
        path.touch()

    monkeypatch.setattr(module.pq, "write_table", fail_on_the_third)
    with pytest.raises(failure):
        synthesize(tmp_path / "out", MIN_EVENTS)
    assert not list(tmp_path.iterdir())


def test_disk_errors_name_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        synthesize(tmp_path / "file" / "out", MIN_EVENTS)
