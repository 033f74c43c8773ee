"""A raw folder that grows by a file a day, and the data that `recmtl prepare --extend` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from recmtl.data.prepare.extension import Extend
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import Recipe, load_recipe
from recmtl.encoding.decode import read_values
from recmtl.encoding.generations import Generations
from recmtl.schema import ENCODER, FIRST, VOCABULARIES, Dataset

RECIPE = """
sql = '''
select *, lag(item) over (partition by "user" order by "at", n) as previous, price as target from raw
'''
{top}
[[table]]
name = "item"
{table}
[[feature]]
name = "n"
kind = "numeric"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[feature]]
name = "price"
kind = "numeric"
transform = "standardize"
[[task]]
name = "click"
label = "click"
[split]
by = "time"
column = "at"
val = 0.0
test = 0.0
"""
DAY = 1000
Day = list[tuple[str, int]]
"""Users and items of a day's rows."""
days_of_rows = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 12)), min_size=1, max_size=12),
    min_size=2,
    max_size=5,
)


class Log:
    """A raw folder that grows by a file a day, and the data that are made of it, a folder a generation."""

    def __init__(self, folder: Path, table: str = "", top: str = "") -> None:
        self.folder, self.raw, self.days = folder, folder / "raw", 0
        self.raw.mkdir()
        (folder / "mine.toml").write_text(RECIPE.format(table=table, top=top))

    @property
    def recipe(self) -> Recipe:
        return load_recipe(str(self.folder / "mine.toml"))

    def write(self, rows: Day, **columns: Any) -> None:
        day, self.days = self.days, self.days + 1
        users, items = zip(*rows, strict=True)
        count = len(rows)
        table = {
            "n": pa.array(np.arange(count) + DAY * day),
            "user": pa.array(users),
            "item": pa.array(items, pa.int64()),
            "price": pa.array(np.arange(count) * 1.5 + day),
            "click": pa.array(np.arange(count) % 2),
            "at": pa.array(np.arange(count) // 2 + DAY * day),
        }
        pq.write_table(pa.table(table | columns), self.raw / f"{day:02}.parquet")

    def data(self, generation: int) -> Path:
        return self.folder / f"data {generation}"

    def extend(self, generation: int, **options: Any) -> Dataset:
        """Data of a generation; the first extends nothing."""
        extend = Extend(self.data(generation - 1), **options) if generation else None
        return prepare(self.recipe, self.raw, self.data(generation), extend=extend)

    def grow(self, days: list[Day]) -> list[Dataset]:
        found = []
        for generation, rows in enumerate(days):
            self.write(rows)
            found.append(self.extend(generation))
        return found

    def rows(self, generation: int, split: str = "train") -> pa.Table:
        files = sorted((self.data(generation) / split).glob("*.parquet"))
        table = pa.concat_tables(map(pq.read_table, files))
        return table.sort_by("n")

    def values(self, generation: int, table: str) -> dict[int, Any]:
        """The values of a table by id."""
        found = read_values(self.data(generation) / VOCABULARIES, table).to_pylist()
        return {FIRST + place: value for place, value in enumerate(found) if value is not None}

    def generations(self, generation: int, table: str) -> Generations:
        described = Dataset.load(self.data(generation)).table(table)
        return Generations.load(self.data(generation) / ENCODER, described)
