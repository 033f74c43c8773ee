"""Configuration files: presets load, round trips keep everything, mistakes are named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from recmtl.config import (
    MODELS,
    Config,
    config_path,
    load_config,
    parse_config,
    preset_names,
    read_toml,
    sha256,
    to_toml,
    tomllib,
)
from recmtl.errors import UserError
from recmtl.typed import from_dict


def config_of(values: dict[str, Any]) -> Config:
    """A configuration from nested dictionaries, checked as `recmtl train` does."""
    values = {"model": {"name": "mmoe"}, **values}
    return parse_config(values, "run.toml")


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_round_trip(name, tmp_path):
    config = load_config(name)
    assert isinstance(config.model, MODELS[config.model.name].config)
    path = tmp_path / "copy.toml"
    path.write_text(to_toml(config))
    assert load_config(str(path)) == config


def test_there_is_a_preset_for_every_model():
    assert set(MODELS) <= set(preset_names())
    for name in MODELS:
        assert load_config(name).model.name == name


def test_every_key_survives_the_round_trip():
    """Every value differs from its default."""
    values = {
        "model": {"name": "mmoe", "experts": 3, "expert_widths": [7, 8], "gate": [5], "tower": [], "dropout": 0.25},
        "embedding": {
            "dim": 8,
            "optimizer": "sgd",
            "lr": 0.5,
            "eps": 1e-3,
            "init_scale": 2.0,
            "new_rows": "unseen",
            "placement": "sharded",
            "replica_mib": 1.5,
            "replica_gain_mib": 2.5,
            "dtype": "float16",
            "dropout": 0.5,
            "weight_decay": 0.25,
            "reinitialize": True,
        },
        "interaction": {"kind": "dcn", "layers": 3, "rank": 4, "normalization": "layer"},
        "sequence": {
            "encoder": "hstu",
            "match": False,
            "hidden": [8],
            "dim": 24,
            "heads": 3,
            "layers": 2,
            "dropout": 0.5,
        },
        "dense": {"optimizer": "adamw", "lr": 1.0, "weight_decay": 0.1},
        "weighting": {"method": "dwa", "temperature": 1.0, "alpha": 0.5, "lr": 0.1, "decay": 0.5, "pull": 2.0},
        "training": {
            "batch_size": 1,
            "micro_batch_size": 16,
            "max_epochs": 2,
            "max_steps": 3,
            "patience": 0,
            "seed": 5,
            "tasks": ["a", "b"],
            "device": "cpu",
            "amp": "bf16",
            "clip_norm": 6.5,
            "warmup_steps": 7,
            "schedule": "cosine",
            "schedule_steps": 9,
            "validate_every_steps": 8,
        },
        "checkpoint": {"background": False, "every_steps": 1, "keep": 3, "resume": False},
        "metrics": {
            "every_steps": 2,
            "include": ["auc", "mae"],
            "by": ["tab"],
            "monitor": {"like.gauc": 2.0, 'we.ird "name".mae': 0.5},
            "tensorboard": False,
        },
        "sharding": {
            "type": "table_wise",
            "tables": {"item": "column_wise", 'we.ird "name"': "data_parallel"},
            "device_memory_gib": 1.5,
            "reserve": 0.5,
        },
        "reader": {"streams": 8, "threads": 3, "prefetch": 2, "shuffle": False},
    }
    config, default = config_of(values), config_of({})
    for section, keys in values.items():
        mine, theirs = getattr(config, section), getattr(default, section)
        assert {f.name for f in dataclasses.fields(mine)} == set(keys), f"section {section} has a key not tried here"
        for key in keys:
            assert getattr(mine, key) != getattr(theirs, key) or key == "name", f"{section}.{key}"
    text = to_toml(config)
    assert tomllib.loads(text) == values
    assert from_dict(type(config), tomllib.loads(text), "copy") == config


def test_sha256_is_stable_and_tells_configurations_apart():
    config = config_of({})
    assert sha256(config) == sha256(config_of({}))
    assert len(sha256(config)) == 64
    assert sha256(config) == sha256(config_of({"embedding": {"dim": 16}}))  # 16 is the default
    others = [{"embedding": {"dim": 32}}, {"training": {"seed": 1}}, {"model": {"name": "mmoe", "experts": 2}}]
    assert len({sha256(config), *(sha256(config_of(values)) for values in others)}) == 4


MISTAKES = [
    ({"embeding": {}}, "unknown key 'embeding'; did you mean 'embedding'?"),
    ({"embedding": {"dimm": 8}}, "unknown key 'embedding.dimm'; did you mean 'dim'?"),
    (
        {"metrics": {"zzz": 8}},
        "unknown key 'metrics.zzz'; choose one of every_steps, include, by, monitor,",
    ),
    ({"model": {"name": "mmoe", "expertss": 1}}, "unknown key 'model.expertss'; did you mean 'experts'?"),
    ({"model": {"name": "shared_bottom", "experts": 1}}, "unknown key 'model.experts'"),
    ({"embedding": {"dim": "8"}}, "embedding.dim: write one whole number from 1 to 65536, a multiple of 4, not '8'"),
    ({"embedding": {"dim": 8.0}}, "embedding.dim: write one whole number from 1 to 65536, a multiple of 4, not 8.0"),
    ({"embedding": {"dim": True}}, "embedding.dim: write one whole number from 1 to 65536, a multiple of 4, not True"),
    ({"embedding": {"lr": True}}, "embedding.lr: write one number above 0 and up to 3e+38, not True"),
    ({"metrics": {"tensorboard": 1}}, "metrics.tensorboard: write true or false, not 1"),
    ({"metrics": {"monitor": 1}}, "metrics.monitor: write one name, or names and numbers above 0, not 1"),
    (
        {"metrics": {"monitor": {"a.auc": 0.0}}},
        "metrics.monitor.a.auc: write one number above 0 and up",
    ),
    ({"training": {"tasks": "click"}}, "training.tasks: write a list, not 'click'"),
    ({"training": {"tasks": [1]}}, "training.tasks: write text, not 1"),
    ({"training": 3}, "training: write a section, not 3"),
    ({"sharding": {"tables": ["item"]}}, "sharding.tables: write a section, not a list"),
    (
        {"sharding": {"tables": {"item": "rows"}}},
        "sharding.tables.item: no 'rows'; choose one of auto, table_wise",
    ),
    (
        {"weighting": {"method": "pc"}},
        "weighting.method: no 'pc'; choose one of fixed, uncertainty, dwa",
    ),
    ({"training": {"schedule": "step"}}, "training.schedule: no 'step'; choose one of constant, linear, cosine"),
    ({"interaction": {"kind": "cross"}}, "interaction.kind: no 'cross'; choose one of none, dcn, fm, dot"),
    (
        {"interaction": {"normalization": "batchnorm"}},
        "interaction.normalization: no 'batchnorm'; did you mean 'batch'?",
    ),
    ({"dense": {"optimizer": "adan"}}, "dense.optimizer: no 'adan'; did you mean 'adam'?"),
    ({"dense": {"optimizer": "lion"}}, "dense.optimizer: no 'lion'; choose one of adam, adamw, adagrad, sgd"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_mistakes_name_file_and_key(values, message):
    with pytest.raises(UserError) as caught:
        config_of(values)
    assert str(caught.value).startswith("run.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


OUT_OF_RANGE = {
    "embedding.dim": [0, -4, 6],
    "embedding.lr": [0.0, -0.1, float("nan")],
    "embedding.eps": [-1e-8],
    "embedding.dropout": [-0.1, 1.0],
    "embedding.weight_decay": [-0.1, float("nan")],
    "interaction.layers": [0],
    "interaction.rank": [-1],
    "embedding.init_scale": [0.0],
    "embedding.replica_mib": [-1.0, float("nan")],
    "dense.lr": [0.0],
    "dense.weight_decay": [-0.1],
    "weighting.temperature": [0.0],
    "weighting.alpha": [-0.5, float("nan")],
    "weighting.lr": [0.0],
    "training.batch_size": [0],
    "training.micro_batch_size": [-1],
    "training.max_epochs": [0],
    "training.max_steps": [-1],
    "training.patience": [-1],
    "training.seed": [-1],
    "training.clip_norm": [-1.0, float("nan")],
    "training.warmup_steps": [-1],
    "training.schedule_steps": [-1],
    "training.validate_every_steps": [-1],
    "checkpoint.every_steps": [-1],
    "checkpoint.keep": [0],
    "metrics.every_steps": [0],
    "sharding.device_memory_gib": [-1.0],
    "sharding.reserve": [-0.1, 1.0, float("nan")],
    "reader.streams": [0],
    "reader.prefetch": [0],
    "model.experts": [0],
    "model.expert_widths": [[0], [8, -1]],
    "model.tower": [[0]],
    "model.dropout": [-0.1, 1.0],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
def test_values_out_of_range_name_the_key(key, value):
    section, name = key.split(".")
    values = {section: {name: value}} if section != "model" else {"model": {"name": "mmoe", name: value}}
    with pytest.raises(UserError, match=f"^run.toml: {key}: write "):
        config_of(values)


def numbers() -> list[tuple[str, type]]:
    """Every key of every model's configuration that holds a number or several, with their type."""
    found: dict[str, type] = {}
    for name in MODELS:
        for section, values in tomllib.loads(to_toml(load_config(name))).items():
            for key, value in values.items():
                first = value[0] if isinstance(value, list) and value else value
                if type(first) in (int, float):
                    found[f"{name}/{section}.{key}" if section == "model" else f"mmoe/{section}.{key}"] = type(first)
    return list(found.items())


def with_value(name: str, value: Any) -> Config:
    """A model's preset with one key changed, checked."""
    model, _, path = name.partition("/")
    section, key = path.split(".")
    values = tomllib.loads(to_toml(load_config(model)))
    values[section][key] = [value] if isinstance(values[section][key], list) else value
    return parse_config(values, "run.toml")


@pytest.mark.parametrize(("name", "kind"), numbers())
def test_no_number_is_without_limits(name, kind):
    key = name.partition("/")[2]
    for value in (-1, 2**64, 10**400) if kind is int else (-1.0, float("nan"), float("inf"), float("-inf"), 1e308):
        with pytest.raises(UserError, match=f"^run.toml: {key}: write ") as caught:
            with_value(name, value)
        assert "\n" not in str(caught.value)


def test_the_largest_numbers():
    for key, most in (("training.seed", 2**63 - 1), ("training.batch_size", 2**31 - 1), ("model.experts", 65536)):
        with_value(f"mmoe/{key}", most)
        with pytest.raises(
            UserError, match=rf"^run.toml: {key}: write one whole number from [01] to {most}, not {most + 1}$"
        ):
            with_value(f"mmoe/{key}", most + 1)


def test_whole_numbers_do_for_floats():
    lr = config_of({"dense": {"lr": 1}}).dense.lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_invalid_toml_names_file_and_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text('[model]\nname = "mmoe\n')
    with pytest.raises(UserError, match=r"broken.toml: not valid TOML: .*line 2"):
        read_toml(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"absent.toml: no such file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"\xe9\xff = 1")
    with pytest.raises(UserError, match=r"latin.toml: cannot be read"):
        read_toml(tmp_path / "latin.toml")


@pytest.mark.parametrize("text", ["", "[model]\nexperts = 2\n", "model = 'mmoe'\n"])
def test_a_file_without_a_models_name(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UserError, match=r"run.toml: key 'model.name' is missing"):
        load_config(str(tmp_path / "run.toml"))


def test_a_file_with_the_name_of_no_model(tmp_path):
    (tmp_path / "run.toml").write_text('[model]\nname = "mmo"\n')
    with pytest.raises(UserError, match=r"run.toml: model.name: no model 'mmo'; did you mean 'mmoe'\?$"):
        load_config(str(tmp_path / "run.toml"))


@pytest.mark.parametrize(("name", "hint"), [("mmoo", "did you mean 'mmoe'"), ("mine", "choose one of adatt, .*stem$")])
def test_a_preset_that_is_not_there(name, hint):
    with pytest.raises(UserError, match=f"^'{name}' is neither a preset nor a .toml file; {hint}"):
        config_path(name)
