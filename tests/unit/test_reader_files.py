"""What the reader says of files that are not as `prepare` wrote them: one line that names the file."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import ROWS_IN_TABLE, TASKS, reader, row, rows_of, table_of, write

from recmtl.data.read.footers import FooterChecks
from recmtl.data.read.reader import Reader
from recmtl.errors import UserError


def replace(name: str, kind: pa.DataType, values: dict[int, object]):
    """Change a column's type, and the values of some rows."""

    def change(table: pa.Table) -> pa.Table:
        column = table.column(name).to_pylist()
        for at, value in values.items():
            column[at] = value
        return table.set_column(table.schema.get_field_index(name), name, pa.array(column, kind))

    return change


BAD_COLUMNS = [  # name, change, words of the message
    ("missing column", lambda t: t.drop_columns(["other"]), ["'other'"]),
    ("missing label", lambda t: t.drop_columns(["label_b"]), ["'label_b'"]),
    ("missing group", lambda t: t.drop_columns(["group"]), ["'group'"]),
    ("null id", replace("row", pa.int32(), {5: None}), ["'row'", "null"]),
    ("all ids null", replace("row", pa.int32(), dict.fromkeys(range(50))), ["'row'", "null"]),
    ("negative id", replace("other", pa.int32(), {5: -1}), ["'other'", "-1"]),
    ("id past the table", replace("row", pa.int32(), {17: ROWS_IN_TABLE}), ["'row'", str(ROWS_IN_TABLE)]),
    ("ids of another type", replace("row", pa.int64(), {}), ["'row'", "int64"]),
    ("label 2", replace("label_a", pa.int8(), {20: 2}), ["'label_a'", "2"]),
    ("null label", replace("label_a", pa.int8(), {20: None}), ["'label_a'", "null"]),
    ("NaN label", replace("label_a", pa.float32(), {20: float("nan")}), ["'label_a'", "float"]),
    ("list id past the table", replace("tags", pa.list_(pa.int32()), {3: [1, 11]}), ["'tags'", "11"]),
    ("negative list id", replace("tags", pa.list_(pa.int32()), {3: [-7]}), ["'tags'", "-7"]),
    ("null in a list", replace("tags", pa.list_(pa.int32()), {3: [1, None]}), ["'tags'", "null"]),
    ("null list", replace("tags", pa.list_(pa.int32()), {3: None}), ["'tags'", "null"]),
    ("list of another type", replace("tags", pa.list_(pa.int64()), {}), ["'tags'", "int64"]),
    ("no list", replace("tags", pa.int32(), dict.fromkeys(range(50), 1)), ["'tags'", "list"]),
    ("NaN number", replace("price", pa.float32(), {30: float("nan")}), ["'price'", "row 30", "nan"]),
    ("infinite number", replace("price", pa.float32(), {30: float("inf")}), ["'price'", "row 30", "inf"]),
    ("null number", replace("price", pa.float32(), {30: None}), ["'price'", "null"]),
]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(("change", "words"), [pytest.param(*bad[1:], id=bad[0]) for bad in BAD_COLUMNS])
def test_bad_values_are_found_with_file_and_column(tmp_path, change, words, statistics):
    dataset = write(tmp_path, 50, files=1)
    path = tmp_path / "train" / "part-00000.parquet"
    pq.write_table(change(table_of(0, 50)), path, row_group_size=10, write_statistics=statistics)
    with pytest.raises(UserError) as caught:
        list(Reader(tmp_path, dataset, "train", TASKS, batch_size=16, evaluation=True).batches())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(bad[1], id=bad[0])
        for bad in BAD_COLUMNS
        if bad[0] not in ("NaN number", "infinite number", "null in a list", "null list")
    ],
)
def test_footers_tell_before_a_row_is_decoded(tmp_path, change):
    dataset = write(tmp_path, 50, files=1)
    pq.write_table(change(table_of(0, 50)), tmp_path / "train" / "part-00000.parquet")
    with pytest.raises(UserError, match="part-00000"):
        Reader(tmp_path, dataset, "train", TASKS, batch_size=16, evaluation=True)


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, keep):
    write(tmp_path, 50)
    path = tmp_path / "train" / "part-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"part-00001.parquet: not readable as Parquet"):
        reader(tmp_path)


def test_damage_within_a_file_is_named(tmp_path):
    write(tmp_path, 50)
    read = reader(tmp_path)
    path = tmp_path / "train" / "part-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(UserError, match=r"part-00001.parquet: not readable as Parquet"):
        list(read.batches())


def test_a_file_that_vanishes_is_named(tmp_path):
    write(tmp_path, 50)
    read = reader(tmp_path)
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001.parquet: .*the file is missing"):
        list(read.batches())


def test_a_file_cut_short_in_mid_epoch_is_named(tmp_path):
    """While it is open: a file mapped into memory would end the process with a signal."""
    write(tmp_path, 5000, files=1, row_group=1000)
    read = reader(tmp_path, batch_size=100, streams=1)
    batches = read.batches()
    assert len(rows_of(next(batches))) == 100
    path = tmp_path / "train" / "part-00000.parquet"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"part-00000.parquet: not readable as Parquet .*cut short"):
        list(batches)


def test_an_open_file_that_vanishes_is_read_to_its_end(tmp_path):
    write(tmp_path, 5000, files=1, row_group=1000)
    read = reader(tmp_path, batch_size=100, streams=1)
    batches = read.batches()
    rows = rows_of(next(batches))
    (tmp_path / "train" / "part-00000.parquet").unlink()
    rows += [row for batch in batches for row in rows_of(batch)]
    assert rows == [row(number) for number in range(5000)]


def test_a_file_replaced_in_mid_epoch_is_named(tmp_path):
    write(tmp_path, 50)
    read = reader(tmp_path)
    pq.write_table(table_of(12, 50), tmp_path / "train" / "part-00001.parquet", row_group_size=9)
    with pytest.raises(UserError, match=r"part-00001.parquet: changed since the run began"):
        list(read.batches())


def test_ranks_share_out_the_look_at_the_files(tmp_path, monkeypatch):
    """Every file is looked at by one rank, and all know the rows of all files."""
    write(tmp_path, 500, files=7)
    alone = reader(tmp_path)
    looked: list[str] = []
    whole = FooterChecks._check_file
    monkeypatch.setattr(FooterChecks, "_check_file", lambda self, path: looked.append(path.name) or whole(self, path))
    found: list = [None, None]
    both = threading.Barrier(2)

    def open_as(rank):
        def gather(check):
            found[rank] = check()
            both.wait(timeout=60)
            return found

        return reader(tmp_path, rank=rank, world_size=2, gather=gather)

    with ThreadPoolExecutor(2) as threads:
        ranks = list(threads.map(open_as, range(2)))
    assert sorted(looked) == [f"part-{number:05d}.parquet" for number in range(7)]
    assert [sorted(part) for part in found] == [[0, 2, 4, 6], [1, 3, 5]]
    for rank in ranks:
        assert rank.data.starts.tolist() == alone.data.starts.tolist()


def test_missing_files_are_found_by_their_rows(tmp_path):
    write(tmp_path, 50)
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"train: 12 rows, but dataset.json says 50"):
        reader(tmp_path)
    (tmp_path / "train" / "part-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"train: no part-\*.parquet files"):
        reader(tmp_path)


def test_a_split_without_rows_has_no_batches(tmp_path):
    dataset = write(tmp_path, 50)
    read = Reader(tmp_path, dataset, "val", TASKS, batch_size=16)
    assert read.steps == 0
    assert list(read.batches()) == []
