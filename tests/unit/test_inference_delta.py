"""An export and a delta make the next export, byte for byte, or are refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recmtl
from recmtl import cli
from recmtl.errors import UserError
from recmtl.inference.delta import Delta, apply_delta, check_parent, write_delta
from recmtl.inference.embeddings import export_embeddings
from recmtl.inference.manifest import check_manifest, write_manifest
from recmtl.inference.signature import DELTA, MANIFEST, Signature
from recmtl.inference.tables import DTYPES, write_table
from recmtl.runtime.folders import folder_size


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(export: Path, tables: dict[str, np.ndarray], dtype: str) -> None:
    """Give an export other tables, float32 [R, D] by key."""
    signature = Signature.load(export)
    shutil.rmtree(export / "tables")
    (export / "tables").mkdir()
    stored = tuple(
        replace(
            table,
            rows=len(tables[table.key]),
            files=write_table(tables[table.key], export / "tables", table.key, dtype),
        )
        for table in signature.tables
    )
    changed = replace(signature, dtype=dtype, tables=stored)
    (export / "signature.json").write_text(json.dumps(changed.to_json()))
    (export / MANIFEST).unlink()
    write_manifest(export)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deltas")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.05, 0.5, 1.0]), more=st.integers(-3, 30))
def test_random_rows_change(esmm: Path, folder: Path, dtype: str, seed: int, share: float, more: int) -> None:
    """Rows that were trained, that are new, and tables that are cut; the vocabulary's arrays grow and shrink too."""
    for name in ("before", "after", "delta", "again"):
        shutil.rmtree(folder / name, ignore_errors=True)
    before, after = (Path(shutil.copytree(esmm / "export", folder / name)) for name in ("before", "after"))
    rng = np.random.default_rng(seed)
    old = {table.key: np.load(before / "tables" / table.files[0]) for table in Signature.load(before).tables}
    new, changed = {}, {}
    for key, rows in old.items():
        mask = rng.random(len(rows)) < share
        grown = np.concatenate(
            [np.where(mask[:, None], rows + 1, rows), rng.normal(size=(30, rows.shape[1])).astype("f4")]
        )
        new[key] = grown[: max(1, len(rows) + more)]
        changed[key] = int(mask[: len(new[key])].sum()) + max(0, len(new[key]) - len(rows))
    rewrite(before, old, dtype)
    for name in ("item", "user"):
        keys, ids = (np.load(after / "encoder" / f"{name}.{part}.npy") for part in ("keys", "ids"))
        stays = rng.random(len(keys)) >= share / 2
        fresh = rng.integers(2**60, 2**63, 5).astype(np.uint64)
        keys, ids = np.append(keys[stays], fresh), np.append(ids[stays], rng.integers(0, 99, 5).astype(np.int32))
        order = np.argsort(keys)
        for part, values in (("keys", keys[order]), ("ids", ids[order])):
            np.save(after / "encoder" / f"{name}.{part}.npy", values)
    rewrite(after, new, dtype)

    (folder / "delta").mkdir()
    delta = write_delta(before, after, folder / "delta")
    assert {key: rows.changed for key, rows in delta.tables.items()} == changed
    assert delta == Delta.load(folder / "delta")
    assert share == 1 or delta.files["tables/item.npy"].kept in ("patch", "parent")
    assert apply_delta(before, folder / "delta", folder / "again") == delta
    assert contents(folder / "again") == contents(after)
    assert check_manifest(folder / "again") == delta.result == check_manifest(after)


@pytest.fixture
def parts(esmm: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An export, and a delta that changes three rows of its items; the result lies in `result`."""
    export, result = (Path(shutil.copytree(esmm / "export", tmp_path / name)) for name in ("export", "result"))
    tables = {table.key: np.load(result / "tables" / table.files[0]) for table in Signature.load(result).tables}
    tables["item"][[0, 5, 6]] += 1
    rewrite(result, tables, "float32")
    (result / "README.md").write_text("another card")
    (result / MANIFEST).unlink()
    write_manifest(result)
    (tmp_path / "delta").mkdir()
    write_delta(export, result, tmp_path / "delta")
    return export, tmp_path / "delta"


def test_a_delta_holds_what_changed(parts: tuple[Path, Path]) -> None:
    export, delta = parts
    assert contents(delta).keys() == {
        *(DELTA, MANIFEST, "whole/manifest.json", "whole/README.md", "whole/signature.json"),
        *("patches/tables/item.npy.fresh", "patches/tables/item.npy.operations.npz"),
    }
    described = json.loads((delta / DELTA).read_text())
    before, after = (
        json.loads((folder / MANIFEST).read_text())["files"] for folder in (export, delta.parent / "result")
    )
    assert {name: file["sha256"] for name, file in described["files"].items()} == after
    assert {name: file["parent"] for name, file in described["files"].items()} == before
    assert described["tables"]["item"] == {"rows": 67, "changed": 3}
    assert described["bytes"] == folder_size(delta.parent / "result")
    assert (delta / "patches/tables/item.npy.fresh").stat().st_size == 128 + 3 * 8 * 4


def test_an_applied_delta_predicts(
    parts: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, delta = parts
    cli.apply_delta([str(export), str(delta), str(tmp_path / "out")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: version {check_manifest(tmp_path / 'result')}, ")
    wanted, found, old = (recmtl.load(tmp_path / name) for name in ("result", "out", "export"))
    rows = {name: [None, None] for name in found.features}
    assert found.predict(rows) == wanted.predict(rows) != old.predict(rows)
    assert contents(tmp_path / "out") == contents(tmp_path / "result")


def refused(tmp_path: Path, export: Path, delta: Path) -> str:
    """The line; nothing is written."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        apply_delta(export, delta, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_flipped_bit_is_found(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """In any file of the delta, and of the export that it starts from."""
    export, delta = parts
    for folder in parts:
        for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
            data = path.read_bytes()
            for place in {0, len(data) // 2, len(data) - 1}:
                path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
                line = refused(tmp_path, export, delta)
                assert line.startswith(f"{path}: "), line
                mend = "copy the delta again, or make it again" if folder == delta else "export the run again"
                assert line.endswith(f"; {mend}")
            path.write_bytes(data)
    apply_delta(export, delta, tmp_path / "out")


def test_missing_cut_and_unknown_files_are_named(parts: tuple[Path, Path], tmp_path: Path) -> None:
    export, delta = parts
    for path in (path for path in sorted(delta.rglob("*")) if path.is_file()):
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        assert refused(tmp_path, export, delta).startswith(f"{path}: ")
        path.unlink()
        assert refused(tmp_path, export, delta).startswith(f"{path}: ")
        path.write_bytes(data)
    (delta / "more").touch()
    assert f"{delta / 'more'}: not a file" in refused(tmp_path, export, delta)


def test_another_parent_is_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    export, delta = parts
    versions = [check_manifest(tmp_path / name) for name in ("result", "export")]
    wanted = f"{tmp_path / 'result'}: is version {versions[0]}, and {delta} starts from version {versions[1]}"
    assert refused(tmp_path, tmp_path / "result", delta).startswith(wanted)
    assert "no such folder" in refused(tmp_path, tmp_path / "nowhere", delta)
    assert "no such folder" in refused(tmp_path, export, tmp_path / "nowhere")
    assert "no delta, but a whole export" in refused(tmp_path, export, tmp_path / "result")
    assert "is no export, or not a whole one" in refused(tmp_path, export, delta / "patches")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "exists and is not empty" in refused(tmp_path, export, delta)


def test_what_a_delta_says_it_makes_is_checked(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """A delta whose own digests are right, and whose new bytes are those of another one."""
    export, delta = parts
    path = delta / "patches/tables/item.npy.fresh"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (delta / MANIFEST).unlink()
    write_manifest(delta)
    assert "item.npy: damaged (its digest differs); copy the delta again" in refused(tmp_path, export, delta)


def test_a_delta_is_no_model(parts: tuple[Path, Path], tmp_path: Path) -> None:
    _, delta = parts
    out = str(tmp_path / "out")
    for use in (
        lambda: recmtl.load(delta),
        lambda: cli.predict([str(delta), str(tmp_path), out]),
        lambda: cli.serve([str(delta)]),
        lambda: cli.serve([str(delta), "--workers", "2"]),
        lambda: cli.embeddings([str(delta), "item", out]),
        lambda: export_embeddings(delta, "item", tmp_path / "out"),
    ):
        with pytest.raises(
            UserError, match=f"{delta}: a delta; apply it first: `recmtl apply-delta EXPORT {delta} OUT`"
        ):
            use()
    assert not (tmp_path / "out").exists()


def test_what_a_delta_may_start_from(parts: tuple[Path, Path], tmp_path: Path) -> None:
    export, delta = parts
    check_parent(export, "float32")
    with pytest.raises(UserError, match=f"--delta-from {export}: has tables of float32; add --dtype float32, or name"):
        check_parent(export, "int8")
    with pytest.raises(UserError, match=f"--delta-from {delta}: a delta; apply it first"):
        check_parent(delta, "float32")
    (export / "model.pt2").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.pt2: damaged"):
        check_parent(export, "float32")
