"""What ids mean while an encoding grows over random days, held against the rules written down once more in Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from days import Day, Log, days_of_rows
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recmtl.data.prepare.summary import print_summary
from recmtl.encoding.encoder import Encoder
from recmtl.encoding.generations import later_ids
from recmtl.schema import ENCODER, FIRST, PENDING, UNSEEN, Dataset, TableGrowth

fresh = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
limits = st.fixed_dictionaries(
    {},
    optional={
        "expire": st.integers(1, 3),
        "max_rows": st.integers(3, 8),
        "min_count": st.integers(2, 4),
        "count_from": st.just(["item"]),
    },
)
Limits = dict[str, int | list[str]]


@dataclass
class Reference:
    """The table of items by the rules of docs/rolling.md, values one by one."""

    min_count: int = 1
    max_rows: int | None = None
    expire: int | None = None
    count_from: list[str] = field(default_factory=lambda: ["item", "previous"])
    ids: dict[int, int] = field(default_factory=dict)
    """By value."""
    assigned: list[int] = field(default_factory=lambda: [0] * FIRST)
    seen: list[int] = field(default_factory=lambda: [0] * FIRST)
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)
    """How often a value without an id was seen, and by which generation last."""
    last: dict[str, int] = field(default_factory=dict)
    """The last item of each user."""

    def grow(self, generation: int, day: Day) -> TableGrowth:
        counts = self._counts(day)
        for value in counts.keys() & self.ids.keys():
            self.seen[self.ids[value]] = generation
        oldest = 0 if self.expire is None else generation - self.expire + 1
        for value, count in counts.items() - {item for item in counts.items() if item[0] in self.ids}:
            self.waiting[value] = (self.waiting.get(value, (0, 0))[0] + count, generation)
        self.waiting = {value: of for value, of in self.waiting.items() if of[1] >= oldest}
        candidates = [value for value, (count, _) in self.waiting.items() if count >= self.min_count]
        candidates.sort(key=lambda value: (-self.waiting[value][0], value))

        retired = [value for value, number in self.ids.items() if self.seen[number] < oldest]
        alive = [value for value in self.ids if value not in retired]
        if self.max_rows is not None:
            stale = [value for value in alive if self.seen[self.ids[value]] < generation]
            stale.sort(key=lambda value: (self.seen[self.ids[value]], -self.ids[value]))
            room = self.max_rows - FIRST
            retired += stale[: max(0, len(alive) + len(candidates) - room)]
            candidates = candidates[: max(0, room - len([value for value in alive if value not in retired]))]
        for value in retired:
            del self.ids[value]
        free = [number for number in range(FIRST, len(self.assigned)) if number not in self.ids.values()]
        for value in candidates:
            del self.waiting[value]
            if not free:
                free.append(len(self.assigned))
                self.assigned.append(0)
                self.seen.append(0)
            self.ids[value] = number = free.pop(0)
            self.assigned[number] = self.seen[number] = generation
        return TableGrowth(len(candidates), len(retired), len(self.waiting))

    def _counts(self, day: Day) -> Counter[int]:
        counts: Counter[int] = Counter()
        for user, item in day:
            counts[item] += 1
            if user in self.last and "previous" in self.count_from:
                counts[self.last[user]] += 1
            self.last[user] = item
        return counts


def grow(folder: Path, days: list[Day], wanted: Limits) -> tuple[Log, list[Dataset]]:
    log = Log(folder, "\n".join(f"{key} = {value}" for key, value in wanted.items()))
    return log, log.grow(days)


PUSHED_OUT = [[("a", 1), ("a", 2), ("a", 3), ("a", 3), ("a", 4)], [("b", 2), ("b", 5)], [("b", 6), ("c", 7)]]
"""Of the items that are left longest without being seen, the one that was rarest goes first."""
EXPIRED = [[("a", 1), ("a", 2), ("a", 9)], [("a", 1)], [("a", 3), ("a", 3), ("a", 9), ("a", 4)], [("b", 2), ("b", 2)]]
"""Values lose ids, come back, and take ids of others."""


@fresh
@example(PUSHED_OUT, {"max_rows": 6, "count_from": ["item"]})
@example(PUSHED_OUT, {"max_rows": 6, "min_count": 2})
@example(EXPIRED, {"expire": 1, "count_from": ["item"]})
@example(EXPIRED, {"expire": 2, "min_count": 2, "max_rows": 4})
@given(days_of_rows, limits)
def test_ids_over_random_days(tmp_path_factory: pytest.TempPathFactory, days: list[Day], wanted: Limits) -> None:
    log, found = grow(tmp_path_factory.mktemp("days"), days, wanted)
    check_rules(log, found, days, wanted)
    check_meaning(log, found, days)


def check_rules(log: Log, found: list[Dataset], days: list[Day], wanted: Limits) -> None:
    """Values have the ids that the reference gives them, and the counts are its counts."""
    reference = Reference(**wanted)  # type: ignore[arg-type]
    for generation, (day, dataset) in enumerate(zip(days, found, strict=True)):
        growth = reference.grow(generation, day)
        assert {value: number for number, value in log.values(generation, "item").items()} == reference.ids
        of_ids = log.generations(generation, "item")
        assert of_ids.assigned.tolist() == reference.assigned
        if generation:
            assert of_ids.seen.tolist() == reference.seen
            assert dataset.growth["item"] == growth
        else:
            assert dataset.growth == {}
        pending = log.data(generation) / PENDING / "item.parquet"
        rows = pq.read_table(pending).to_pylist() if pending.exists() else []
        assert {row["value"]: (row["seen"], row["latest"]) for row in rows} == reference.waiting
        assert Dataset.load(log.data(generation)) == dataset


def check_meaning(log: Log, found: list[Dataset], days: list[Day]) -> None:
    """Rows of a day, read by the encoding of a day before it: later ids are unseen, all others mean what they did."""
    values = [log.values(generation, "item") for generation in range(len(days))]
    for now, dataset in enumerate(found):
        rows = log.rows(now)
        ids = rows["item"].to_numpy()
        items = [item for _, item in days[now]]
        known = {value: number for number, value in values[now].items()}
        assert ids.tolist() == [known.get(item, UNSEEN) for item in items]
        encoder = Encoder.load(log.data(now) / ENCODER)
        assert encoder.lookups["item"].look_up(np.arange(13, dtype=np.uint64)).tolist() == [
            known.get(value, UNSEEN) for value in range(13)
        ]
        for before in range(now):
            # The later of two generations of one encoding is the one that data of this encoding are of.
            generation = dataset.generation_of(found[before].encoding_fingerprint)
            assert generation >= before
            later = later_ids(log.data(now), dataset, found[before]).get("item", np.zeros(ids.max() + 1, bool))
            for number, item in zip(ids[~later[ids]], np.array(items)[~later[ids]], strict=True):
                assert number == UNSEEN or values[before][number] == item
            if generation > before:
                assert values[before] == values[generation]


def test_the_summary_says_how_tables_grew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = [[("a", 1), ("a", 1), ("b", 2)], [("a", 3), ("a", 3), ("c", 4)]]
    _, found = grow(tmp_path, days, {"expire": 1, "min_count": 2, "count_from": ["item"]})
    print_summary(found[0])
    assert "retired" not in capsys.readouterr().out
    print_summary(found[1])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["table", "ids", "new", "retired", "waiting"] in lines
    assert ["item", "3", "1", "1", "1"] in lines  # 3 has the id that 1 lost, and 4 waits; 2 is forgotten
    assert ["user", "5", "1", "0", "0"] in lines


def test_growth_is_of_no_fingerprint(tmp_path: Path) -> None:
    _, found = grow(tmp_path, [[("a", 1)], [("b", 2)]], {})
    before = found[1].encoding_fingerprint, found[1].data_fingerprint
    assert found[1].growth == {"user": TableGrowth(1, 0, 0), "item": TableGrowth(1, 0, 0)}
    found[1].growth.clear()
    other = Dataset(**{name: getattr(found[1], name) for name in found[1].__dataclass_fields__})
    assert (other.encoding_fingerprint, other.data_fingerprint) == before
