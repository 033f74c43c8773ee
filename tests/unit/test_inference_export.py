"""An export is whole or refused: every byte counts, and nothing of it is unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import recmtl
from recmtl.errors import UserError
from recmtl.inference.archive import load_graph
from recmtl.inference.manifest import check_manifest, write_manifest
from recmtl.inference.signature import MANIFEST, Signature


@pytest.fixture
def export(esmm: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(esmm / "export", tmp_path / "export"))


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Flip a bit of a file; a second time puts it back."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def refused(folder: Path, name: str) -> str:
    with pytest.raises(UserError) as error:
        check_manifest(folder)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{folder / name}: ")
    return line


def test_the_files_of_an_export(export: Path) -> None:
    top = {path.name for path in export.iterdir()}
    files = {"model.pt2", "recipe.toml", "config.toml", "signature.json", "metrics.json", "README.md", MANIFEST}
    assert top == {*files, "encoder", "vocab", "tables"}
    listed = json.loads((export / MANIFEST).read_text())["files"].keys()
    there = {path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()}
    assert listed == there - {MANIFEST}
    metrics = json.loads((export / "metrics.json").read_text())
    assert metrics["test"]["click"]["rows"] == 80
    assert Signature.load(export).outputs == ("p_click", "p_like", "p_like_given_click")


def test_a_flipped_bit_in_any_file_names_the_file(export: Path) -> None:
    version = check_manifest(export)
    files = sorted(path for path in export.rglob("*") if path.is_file() and path.name != MANIFEST)
    assert len(files) > 20
    for path in files:
        size = path.stat().st_size
        for place, bit in {(0, 7), (size // 3, 0), (size - 1, 3)}:
            flip(path, place, bit)
            assert "damaged (its digest differs); export the run again" in refused(
                export, path.relative_to(export).as_posix()
            )
            flip(path, place, bit)
    assert check_manifest(export) == version


def test_a_flipped_bit_anywhere_in_the_manifest_names_it(export: Path) -> None:
    path = export / MANIFEST
    for place in range(0, path.stat().st_size, 13):
        flip(path, place, place % 8)
        refused(export, MANIFEST)
        flip(path, place, place % 8)
    check_manifest(export)


def test_missing_cut_and_unknown_files_are_named(export: Path) -> None:
    for name in ("model.pt2", "tables/item.npy", "encoder/encoder.json", MANIFEST):
        moved = (export / name).rename(export.parent / "moved")
        refused(export, name)
        moved.rename(export / name)
    (export / "tables" / "more.npy").write_bytes(b"")
    assert "not a file of this export; remove it" in refused(export, "tables/more.npy")
    (export / "tables" / "more.npy").unlink()
    path = export / "recipe.toml"
    path.write_bytes(path.read_bytes()[:-1])
    refused(export, "recipe.toml")


def test_load_checks_before_it_opens_anything(export: Path) -> None:
    flip(export / "model.pt2", 5000)
    with pytest.raises(UserError, match=r"model\.pt2: damaged"):
        recmtl.load(export)


def test_a_read_only_folder_is_enough(export: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [export, *export.rglob("*")]}

    for path in [*export.rglob("*"), export]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    model = recmtl.load(export)
    assert model.predict({name: [None] for name in model.features}).num_rows == 1
    assert state() == before
    for path in [export, *export.rglob("*")]:
        path.chmod(0o755)


def test_the_version_tells_exports_apart(export: Path) -> None:
    version = check_manifest(export)
    assert len(version) == 12
    path = export / "README.md"
    path.write_text(path.read_text() + "\nMore.\n")
    (export / MANIFEST).unlink()
    write_manifest(export)
    assert check_manifest(export) != version


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("signature.json", ("{", "[]", '{"format": 99}', '{"format": 1}')),
        ("encoder/encoder.json", ("{", "[]", '{"format": 99}', '{"format": 1, "hash": "other"}')),
        ("recipe.toml", ("{",)),
    ],
)
def test_a_file_of_another_format_is_one_line(export: Path, name: str, texts: tuple[str, ...]) -> None:
    """Whole by its digest, and still not what this version writes."""
    for text in texts:
        (export / name).write_text(text)
        (export / MANIFEST).unlink()
        write_manifest(export)
        with pytest.raises(UserError, match=name) as error:
            _ = recmtl.load(export).recipe
        assert "\n" not in str(error.value)


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * x,)


Entries = dict[str, bytes]


def rewrite(path: Path, change: Callable[[Entries], Entries]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(entries).items():
            archive.writestr(name, data)


class Boom:
    """Its unpickling is seen."""

    opened = False

    def __reduce__(self) -> tuple[Callable[..., None], tuple[type]]:
        return _open, (Boom,)


def _open(cls: type) -> None:
    cls.opened = True


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    program = torch.export.export(Doubled(), (torch.ones(3),))
    program.example_inputs = None
    torch.export.save(program, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def test_an_archive_of_graphs_alone_is_loaded(archive: Path) -> None:
    assert load_graph(archive)(torch.ones(3))[0].tolist() == [2, 2, 2]
    rewrite(archive, lambda entries: entries)  # as the tests below write it
    assert load_graph(archive)(torch.ones(3))[0].tolist() == [2, 2, 2]


def test_kept_example_inputs_are_refused(tmp_path: Path) -> None:
    program = torch.export.export(Doubled(), (torch.ones(3),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(
        UserError, match=r"model\.pt2: .*sample_inputs.* would be unpickled, which may run code; refused"
    ):
        load_graph(tmp_path / "model.pt2")


def with_pickled_weight(entries: Entries) -> Entries:
    """As torch.export writes a weight that is no plain tensor."""
    top = next(iter(entries)).split("/")[0]
    config = next(name for name in entries if name.endswith("_config.json") and "weights" in name)
    values = json.loads(entries[config])
    values.setdefault("config", {})["w"] = {"path_name": "weight_0", "use_pickle": True, "is_param": False}
    weight = pickle.dumps(Boom())
    return {**entries, config: json.dumps(values).encode(), f"{top}/data/weights/weight_0": weight}


def with_custom_object(entries: Entries) -> Entries:
    top = next(iter(entries)).split("/")[0]
    return {**entries, f"{top}/data/constants/custom_obj_0": pickle.dumps(Boom())}


def with_pickled_sample(entries: Entries) -> Entries:
    return {
        name: pickle.dumps(Boom()) if "sample_inputs" in name and not name.endswith("/") else data
        for name, data in entries.items()
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_pickled_weight, "_config.json names pickled values"),
        (with_custom_object, "custom_obj_0 would be unpickled"),
        (with_pickled_sample, "would be unpickled"),
        (lambda entries: {**entries, "model/extra/thing.pkl": b"."}, "thing.pkl would be unpickled"),
    ],
)
def test_what_would_be_unpickled_is_refused(archive: Path, change: Callable[[Entries], Entries], words: str) -> None:
    if change is with_pickled_sample:
        torch.export.save(torch.export.export(Doubled(), (torch.ones(3),)), archive)
    rewrite(archive, change)
    with pytest.raises(UserError, match="which may run code; refused") as error:
        load_graph(archive)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{archive}: ")
    assert not Boom.opened


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04"])
def test_no_archive_is_one_line(archive: Path, data: bytes) -> None:
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.pt2: not an archive of torch\.export .*; export the run again"):
        load_graph(archive)


def test_an_archive_that_pytorch_cannot_read_is_one_line(archive: Path) -> None:
    rewrite(archive, lambda entries: {name: data for name, data in entries.items() if not name.endswith("model.json")})
    with pytest.raises(UserError, match=r"model\.pt2: PyTorch .* cannot load it \(.*\); export the run again") as error:
        load_graph(archive)
    assert "\n" not in str(error.value)
