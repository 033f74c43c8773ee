"""``recmtl synth merrec``: raw Parquet shards in MerRec's schema, with the true probabilities beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recmtl.errors import UserError
from recmtl.runtime.folders import complete_or_absent
from recmtl.runtime.progress import Progress
from recmtl.runtime.storage import make_folder
from recmtl.synthetic.days import DailySimulation
from recmtl.synthetic.marketplace import EVENT_TYPES, Catalogue, Ints
from recmtl.synthetic.simulation import Events, Simulation

MONTH_FOLDER = "20230501"
TRUTH_FOLDER = "truth"
MIN_EVENTS, MIN_DAY_EVENTS = 1_000, 100
SHARD_EVENTS, MIN_SHARDS = 262_144, 4

CONDITIONS = ("New", "Like new", "Good", "Fair", "Poor")
SHIPPERS = ("Buyer", "Seller")
COLOURS = ("Black", "Blue", "Brown", "Gold", "Gray", "Green", "Orange", "Pink", "Purple", "Red", "Silver", "White")

Missing = NDArray[np.bool_] | None
"""Where a column is null; None: nowhere."""

SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("sequence_id", pa.string()),
        ("session_id", pa.string()),
        ("stime", pa.timestamp("us")),
        ("sequence_length", pa.int64()),
        ("event_id", pa.string()),
        ("item_id", pa.int64()),
        ("product_id", pa.string()),
        ("name", pa.string()),
        ("c0_id", pa.int64()),
        ("c0_name", pa.string()),
        ("c1_id", pa.int64()),
        ("c1_name", pa.string()),
        ("c2_id", pa.int64()),
        ("c2_name", pa.string()),
        ("brand_id", pa.int64()),
        ("brand_name", pa.string()),
        ("item_condition_id", pa.int64()),
        ("item_condition_name", pa.string()),
        ("size_id", pa.int64()),
        ("size_name", pa.string()),
        ("shipper_id", pa.int64()),
        ("shipper_name", pa.string()),
        ("price", pa.float64()),
        ("color", pa.string()),
    ]
)
"""The columns of a raw shard as they are read back."""
DISTINCT = ("item_id", "stime", "price")
"""Columns with too many values for a dictionary to pay."""


def synthesize(out: Path, events: int, *, seed: int = 0, days: int | None = None, drift: bool = False) -> None:
    """Write a synthetic MerRec log of `events` rows.

    The shards are ``out/20230501/000000000000.parquet`` …, in order of user, sequence and time; the columns are those
    of `SCHEMA`. Beside each there is ``out/truth/20230501/000000000000.parquet`` with one row for each of its rows, in
    the same order: its `user_id`, and `view` and `like`, float32, the true probability that the event is an item_view
    or an item_like. The same arguments give the same log. `out` is there complete or not at all.

    With `days` there is a folder for each: ``out/20230501``, ``out/20230502``, …, and the same below ``out/truth``. A
    day has ``events // days`` rows, the last one what remains too. What a day holds depends on that number, the seed
    and `drift` alone, so that the first days of a longer log are those of a shorter one.

    Args:
        out: folder to make; it must not exist, or be empty.
        events: number of rows, at least MIN_EVENTS.
        seed: of every random draw, 0 or more.
        days: number of days, at least 2, each of at least MIN_DAY_EVENTS rows; None: the events are those of a month.
        drift: people and products come and go from day to day, tastes change; needs `days`.

    Raises:
        UserError: `out` is in use, or a number is out of range.
    """
    _check(events, seed, days, drift)
    with complete_or_absent(out) as work, Progress() as progress, progress.stage("events", events) as advance:
        folder = work / "data"
        done = 0
        for shard, table, block in _month(events, seed) if days is None else _days(events, seed, days, drift):
            for kind in (folder, folder / TRUTH_FOLDER):
                make_folder((kind / shard).parent)
            _write(table, folder / shard)
            truth = pa.table({"user_id": table["user_id"], "view": block.view, "like": block.like})
            _write(truth, folder / TRUTH_FOLDER / shard)
            done += len(block.user)
            advance(done)


def _check(events: int, seed: int, days: int | None, drift: bool) -> None:
    """Raise UserError if a number is out of range."""
    if events < MIN_EVENTS:
        raise UserError(f"--events {events}: at least {MIN_EVENTS} are needed")
    if seed < 0:
        raise UserError(f"--seed {seed}: must not be negative")
    if days is None:
        if drift:
            raise UserError("--drift: changes from day to day; give --days too")
    elif days < 2:
        raise UserError(f"--days {days}: at least 2 are needed; without --days the events are those of one month")
    elif events < days * MIN_DAY_EVENTS:
        least = days * MIN_DAY_EVENTS
        raise UserError(f"--days {days}: a day needs at least {MIN_DAY_EVENTS} events; give --events {least} or more")


def _month(events: int, seed: int) -> Iterator[tuple[Path, pa.Table, Events]]:
    """Every shard's path, rows and events."""
    simulation = Simulation(events, seed, min(SHARD_EVENTS, events // MIN_SHARDS))
    shards = _Shards(simulation.catalogue)
    for index in range(simulation.blocks):
        block = simulation.block(index)
        yield _shard(MONTH_FOLDER, index), shards.table(block), block


def _days(events: int, seed: int, days: int, drift: bool) -> Iterator[tuple[Path, pa.Table, Events]]:
    """The same of a log that has a folder a day."""
    simulation = DailySimulation(events // days, seed, drift)
    for day in range(days):
        if day:
            simulation.next_day()
        shards = _Shards(simulation.catalogue)
        count = simulation.events if day < days - 1 else events - day * simulation.events
        folder = str(np.datetime64(simulation.period.start, "us").astype("datetime64[D]")).replace("-", "")
        for index, block in enumerate(simulation.blocks(count, SHARD_EVENTS)):
            yield _shard(folder, index), shards.table(block), block


def _shard(folder: str, index: int) -> Path:
    return Path(folder, f"{index:012d}.parquet")


def _write(table: pa.Table, path: Path) -> None:
    """Write without the Arrow schema, so that dictionary columns are read back as plain strings.

    Without statistics, which take a third of the time and help no reader of unsorted columns.
    """
    repeated = [name for name in table.column_names if name in SCHEMA.names and name not in DISTINCT]
    pq.write_table(table, path, use_dictionary=repeated, store_schema=False, write_statistics=False)


class _Shards:
    """Turns the numbers of events in a catalogue into the columns of `SCHEMA`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        brand, category = pa.array(catalogue.brand), pa.array(catalogue.c2 + 1)
        named = _join([brand, category], "_")
        branded = _join([_numbered("Brand", brand), _numbered("item", category)], " ")
        titled = pc.if_else(pc.greater(brand, 0), branded, _numbered("Item", category))
        first, edition = pa.array(catalogue.edition == 0), pa.array(catalogue.edition + 1)
        self._product_ids = pc.if_else(first, named, _join([named, edition], "_"))
        self._titles = pc.if_else(first, titled, _join([titled, _numbered("edition", edition)], " "))

    def table(self, events: Events) -> pa.Table:
        """The rows of one shard."""
        catalogue, item = self._catalogue, events.item
        product = catalogue.product[item]
        brand, size, colour = catalogue.brand[product], catalogue.size[item], catalogue.colour[item]
        columns: dict[str, Any] = {
            "user_id": events.user.astype(np.int64) + 1,
            "sequence_id": _sequence_ids(events),
            "session_id": _spelled(events.session, lambda used: pc.cast(pa.array(used), pa.string())),
            "stime": pa.array(events.time, pa.timestamp("us")),
            "sequence_length": events.length,
            "event_id": _spelled(events.kind, pa.array(EVENT_TYPES).take),
            "item_id": item + 1 + catalogue.edition[product] * len(catalogue.product),
            "product_id": _spelled(product, self._product_ids.take),
            "name": _spelled(product, self._titles.take),
            **_numbered_pair("c0", catalogue.c0[product] + 1, "Department"),
            **_numbered_pair("c1", catalogue.c1[product] + 1, "Section"),
            **_numbered_pair("c2", catalogue.c2[product] + 1, "Category"),
            **_numbered_pair("brand", brand, "Brand", missing=brand == 0),
            **_listed_pair("item_condition", catalogue.condition[item], CONDITIONS),
            **_numbered_pair("size", size + 1, "Size", missing=size < 0),
            **_listed_pair("shipper", catalogue.shipper[item], SHIPPERS),
            "price": catalogue.price[item],
            "color": _spelled(np.maximum(colour, 0), pa.array(COLOURS).take, missing=colour < 0),
        }
        return pa.table(columns)


def _numbered_pair(name: str, number: Ints, label: str, missing: Missing = None) -> dict[str, pa.Array]:
    """``<name>_id`` with the number and ``<name>_name`` with the label and the number."""
    return {
        f"{name}_id": pa.array(number.astype(np.int64), mask=missing),
        f"{name}_name": _spelled(number, lambda used: _numbered(label, pa.array(used)), missing),
    }


def _listed_pair(name: str, index: Ints, names: tuple[str, ...]) -> dict[str, pa.Array]:
    """``<name>_id`` from 1 and ``<name>_name``."""
    return {f"{name}_id": pa.array(index.astype(np.int64) + 1), f"{name}_name": _spelled(index, pa.array(names).take)}


def _spelled(codes: Ints, spell: Callable[[Ints], pa.Array], missing: Missing = None) -> pa.DictionaryArray:
    """Strings for small numbers ≥ 0, each one that occurs spelled once."""
    occurs = np.bincount(codes) > 0
    index = (np.cumsum(occurs, dtype=np.int32) - 1)[codes]
    return pa.DictionaryArray.from_arrays(pa.array(index, mask=missing), spell(np.flatnonzero(occurs)))


def _sequence_ids(events: Events) -> pa.DictionaryArray:
    """``<user>-<number within the user>``."""
    begins = np.flatnonzero(np.diff(events.sequence, prepend=-1) | np.diff(events.user, prepend=-1))
    index = np.repeat(np.arange(len(begins), dtype=np.int32), np.diff(begins, append=len(events.user)))
    spelled = _join([pa.array(events.user[begins] + 1), pa.array(events.sequence[begins] + 1)], "-")
    return pa.DictionaryArray.from_arrays(index, spelled)


def _numbered(label: str, number: pa.Array) -> pa.Array:
    """``<label> <number>``."""
    return _join([pa.scalar(label), number], " ")


def _join(parts: list[Any], separator: str) -> pa.Array:
    return pc.binary_join_element_wise(*(pc.cast(part, pa.string()) for part in parts), separator)
