"""`recmtl prepare --extend`: an encoding that grows day by day, and what its ids mean."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from days import DAY, Log, days_of_rows
from hypothesis import HealthCheck, given, settings

from recmtl.data.prepare.prepare import prepare
from recmtl.encoding.decode import decode, read_values
from recmtl.errors import UserError
from recmtl.schema import VOCABULARIES


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


fresh = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fresh
@given(days_of_rows)
def test_day_by_day_is_all_at_once(tmp_path_factory, days):
    """Every day has the rows of one `prepare` over all days, by their values: histories reach across midnight."""
    log = Log(tmp_path_factory.mktemp("days"))
    found = log.grow(days)
    whole = prepare(log.recipe, log.raw, log.folder / "whole")
    assert sum(dataset.rows["train"] for dataset in found) == whole.rows["train"]
    everything = pq.read_table(log.folder / "whole" / "train" / "part-00000.parquet").sort_by("n")
    values = {table.name: read_values(log.folder / "whole" / VOCABULARIES, table.name) for table in whole.tables}
    last = {table.name: read_values(log.data(len(days) - 1) / VOCABULARIES, table.name) for table in whole.tables}
    start = 0
    for generation in range(len(days)):
        rows = log.rows(generation)
        part = everything.slice(start, rows.num_rows)
        start += rows.num_rows
        for name in ("n", "label_click"):
            assert rows[name].equals(part[name])
        for name, table in (("user", "user"), ("item", "item"), ("previous", "item")):
            ids, wanted = rows[name].to_numpy(), part[name].to_numpy()
            # Ids keep their meaning: the last vocabulary decodes all days.
            assert decode(last[table], ids).equals(decode(values[table], wanted))
            assert (ids == 0).tolist() == (wanted == 0).tolist()
        # Statistics stay those of the first day.
        assert found[generation].features[4].std == found[0].features[4].std
        assert found[generation].generation == generation


def test_rare_values_are_counted_on(tmp_path):
    log = Log(tmp_path, "min_count = 3\ncount_from = ['item']")
    log.grow([[("a", 1)] * 3 + [("a", 7)], [("a", 7)], [("a", 7), ("a", 8)]])
    assert [set(log.values(generation, "item").values()) for generation in range(3)] == [{1}, {1}, {1, 7}]


def test_expired_ids_are_given_to_new_values(tmp_path):
    log = Log(tmp_path, "expire = 2\ncount_from = ['item']")
    first, *_, last = log.grow([[("a", 1), ("a", 1), ("a", 2)], [("a", 1)], [("a", 1)], [("a", 1), ("a", 5)]])
    assert log.values(0, "item") == {2: 1, 3: 2}
    assert log.values(1, "item") == {2: 1, 3: 2}
    assert log.values(2, "item") == {2: 1}  # two extensions have not seen 2
    assert log.values(3, "item") == {2: 1, 3: 5}
    assert log.generations(3, "item").assigned.tolist() == [0, 0, 0, 3]
    assert log.generations(3, "item").seen.tolist()[2:] == [3, 3]
    assert last.table("item").rows == first.table("item").rows
    # The first extension changed nothing: its encoding is the first one.
    assert last.generation_of(first.encoding_fingerprint) == 1


def test_nothing_new_is_the_same_encoding(log):
    day = [("a", 1), ("b", 2), ("a", 2)]
    first, second = log.grow([day, day])
    assert second.encoding_fingerprint == first.encoding_fingerprint
    assert second.generation_of(first.encoding_fingerprint) == 1
    assert second.lineage == (first.encoding_fingerprint,)


def test_new_rows_may_validate_and_test(log):
    log.grow([[("a", 1)] * 4])
    log.write([("a", item) for item in range(10)])
    dataset = log.extend(1, val=0.2, test=0.3)
    assert dataset.rows == {"train": 5, "val": 2, "test": 3}
    # Only training rows give ids.
    assert 9 not in log.values(1, "item").values()


def test_since_and_lookback(log):
    log.grow([[("a", 1), ("a", 2)]])
    log.write([("a", 3), ("a", 4), ("a", 5), ("a", 6)])
    assert log.extend(1, since=str(DAY + 1)).rows["train"] == 2
    log.folder.joinpath("data 1").rename(log.folder / "since")
    log.extend(1, since=str(DAY), lookback="900")
    values = read_values(log.data(1) / VOCABULARIES, "item")
    previous = decode(values, log.rows(1)["previous"].to_numpy()).to_pylist()
    assert previous == [None, 3, 4, 5]  # the day before is out of sight
    log.folder.joinpath("data 1").rename(log.folder / "short")
    log.extend(1, since=str(DAY), lookback="2000")
    assert decode(values, log.rows(1)["previous"].to_numpy()).to_pylist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["no rows after 1", "--extend"]),
        ({"since": "noon"}, ["--since: 'noon' is no BIGINT"]),
        ({"since": "0", "lookback": "14 days"}, ["--lookback: '14 days'", "a number as column 'at'"]),
        ({"val": 0.5, "test": 0.5}, ["--val and --test: 1 leaves no training rows"]),
    ],
)
def test_mistakes_are_one_line(log, options, names):
    log.grow([[("a", 1), ("b", 1), ("c", 2)]])
    with pytest.raises(UserError) as caught:
        log.extend(1, **options)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    assert not log.data(1).exists()


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('transform = "standardize"', 'transform = "log1p"', ["'price'", "transform is 'log1p'", "keeps features"]),
        ('[[feature]]\nname = "previous"\ntable = "item"\n', "", ["'previous' is missing", "keeps features"]),
        (
            "[[task]]",
            '[[feature]]\nname = "at"\n[[task]]',
            ["[[feature]] 'at' is not in", "or prepare anew without --ext"],
        ),
        (
            'name = "item"\n',
            'name = "item"\ndim = 8\n',
            ["[[table]] 'item' has dim 8", "it has no dim", "or prepare anew"],
        ),
        (
            'name = "item"\n',
            'name = "item"\nhash_rows = 9\n',
            ["[[table]] 'item' has hash_rows 9", "it has no hash_rows"],
        ),
        ('name = "click"', 'name = "like"', ["has the tasks click, not like"]),
        ('by = "time"\ncolumn = "at"\n', "", ["by = 'random'", "--extend needs by = 'time'"]),
        ("price as target", 'price as target, "at"::varchar as at_text', []),
    ],
)
def test_a_recipe_that_is_another_one(log, old, new, names):
    log.grow([[("a", 1), ("b", 1), ("c", 2)]])
    log.write([("a", 1)])
    text = (log.folder / "mine.toml").read_text()
    assert old in text
    (log.folder / "mine.toml").write_text(text.replace(old, new, 1))
    if not names:
        assert log.extend(1).rows["train"] == 1
        return
    with pytest.raises(UserError) as caught:
        log.extend(1)
    for name in names:
        assert name in str(caught.value)


def test_a_day_with_columns_of_another_type(log):
    log.grow([[("a", 1), ("b", 1), ("c", 2)]])
    log.write([("a", 1)], item=pa.array([1.5]))
    with pytest.raises(UserError, match=r"'item'.*(double|DOUBLE)"):
        log.extend(1)
