"""What differs between the data that a run was trained on and the data that it is given now, in one phrase.

Each function returns the first difference it finds, None where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from recmtl.schema import GROUP_COLUMN, PLANNING_FIGURES, SPLITS, Dataset, Feature, Table, Task, label_column

OF_THE_ROWS = ("vocabulary", "mean", "mean_tail", "std")
"""Fields of tables and features that the rows tell; those of a table that is not hashed tell also how many it has."""
Named = dict[str, dict[str, Any]]
"""{name: fields}, in order."""


def encoding_difference(trained: Dataset, given: Dataset) -> str | None:
    """What of the encoding differs: a table or a feature, and how; None: nothing, or it grew from what was trained on.

    An encoding that grew has more rows, tables or features, and what was there stays as it was.
    """
    if given.generation_of(trained.encoding_fingerprint) is None:
        return next(_encoding_differences(trained, given), "the encoding differs")
    for kind in ("tables", "features"):
        old, new = _named(trained, kind), _named(given, kind)
        for name, fields in old.items():
            if name not in new:
                return f"{kind[:-1]} '{name}' is gone"
            for key, value in fields.items():
                if value != new[name].get(key) and key not in ("rows", "vocabulary"):
                    return f"the encoding of {kind[:-1]} '{name}': {_change(key, value, new[name].get(key))}"
    return None


def recipe_difference(trained: Dataset, given: Dataset) -> str | None:
    """What differs of the tables and features that a recipe decides, and no extension of the data would mend.

    Data whose encoding grew from what was trained on may have more tables and features. A history keeps its columns:
    its encoder reads them side by side.
    """
    grew = given.generation_of(trained.encoding_fingerprint) is not None
    for kind in ("features", "tables"):
        old, new = (recipe_fields(getattr(data, kind)) for data in (trained, given))
        if grew:
            new = {name: new[name] for name in old if name in new}
        if found := next(_differences(kind[:-1], old, new), None):
            return found
    before, now = _histories(trained), _histories(given)
    for name, columns in before.items():
        if columns != now[name]:
            return f"history '{name}': columns {', '.join(columns)}, now {', '.join(now[name])}"
    return None


def data_difference(trained: Dataset, given: Dataset) -> str | None:
    """What of the data differs: of the encoding, tasks, split, numbers of rows, then content; and why it may."""
    if trained.data_fingerprint == given.data_fingerprint:
        return None
    found = next(_data_differences(trained, given), "the data differs")
    causes = ", ".join(_causes(trained, given))
    return f"{found} ({causes})" if causes else found


def _encoding_differences(trained: Dataset, given: Dataset) -> Iterator[str]:
    tables, features = ((_named(trained, kind), _named(given, kind)) for kind in ("tables", "features"))
    yield from _differences("the encoding of table", *tables)
    yield from _differences("the encoding of feature", *features)


def _data_differences(trained: Dataset, given: Dataset) -> Iterator[str]:
    yield from _encoding_differences(trained, given)
    yield from _differences("task", _named(trained, "tasks"), _named(given, "tasks"))
    yield from _differences("[split]", {"": trained.split}, {"": given.split})
    if trained.group != given.group:
        yield "the group of rows is in one of them only"
    for split in SPLITS:
        before, now = trained.rows.get(split, 0), given.rows.get(split, 0)
        if before != now:
            yield f"rows in {split} {before:,}, now {now:,}"
    for split in SPLITS:
        yield from _content_differences(trained, given, split)


def _content_differences(trained: Dataset, given: Dataset, split: str) -> Iterator[str]:
    before, now = trained.content.get(split, {}), given.content.get(split, {})
    columns = list({**before, **now})
    differing = [name for name in columns if before.get(name) != now.get(name)]
    if len(differing) == len(columns) > 0:
        yield f"rows of split {split} differ"
    labels = {label_column(task.name): f"labels of task '{task.name}'" for task in given.tasks}
    for name in sorted(differing, key=lambda name: name not in labels):
        what = labels.get(name, "groups" if name == GROUP_COLUMN else f"values of column '{name}'")
        yield f"{what} in split {split} differ"


def _causes(trained: Dataset, given: Dataset) -> Iterator[str]:
    """What may be the reason: other SQL in the recipe, and the first raw file that differs in its number of rows."""
    if trained.sql != given.sql:
        yield "the recipe's sql is another"
    for source, files in given.sources.items():
        before = trained.sources.get(source, {})
        for name in [*before, *files]:
            if before.get(name) != files.get(name):
                rows = f"{_shown_rows(before.get(name))}, now {_shown_rows(files.get(name))}"
                yield f"file {name} of source '{source}' had {rows}"
                return


def _shown_rows(rows: int | None) -> str:
    return "no rows" if rows is None else f"{rows:,} rows"


def recipe_fields(entries: Iterable[Table | Feature]) -> Named:
    """What of tables or features a recipe decides and the rows do not."""
    return {name: _of_recipe(fields) for name, fields in _by_name(entries).items()}


def _named(dataset: Dataset, kind: str) -> Named:
    return _by_name(getattr(dataset, kind))


def _by_name(entries: Iterable[Table | Feature | Task]) -> Named:
    left_out = ("name", "observed", "base_rate", *PLANNING_FIGURES)  # the labels themselves differ where these do
    return {e.name: {key: v for key, v in asdict(e).items() if key not in left_out} for e in entries}


def _differences(what: str, trained: Named, given: Named) -> Iterator[str]:
    """How entries of one kind differ: which are new or gone, which keys of which entry, then their order."""
    for name in {**trained, **given}:
        if (name in trained) != (name in given):
            yield f"{what} '{name}' is {'new' if name in given else 'gone'}"
            return
    for name, fields in given.items():
        place = f"{what} '{name}'" if name else what
        for key in {**trained[name], **fields}:
            before, now = trained[name].get(key), fields.get(key)
            if before != now:
                yield f"{place}: {_change(key, before, now)}"
    for before, now in zip(trained, given, strict=True):
        if before != now:
            yield f"{what} '{now}' is in another place"


def _of_recipe(fields: dict[str, Any]) -> dict[str, Any]:
    counted = fields.get("hashed") is False
    return {key: v for key, v in fields.items() if key not in OF_THE_ROWS and not (counted and key == "rows")}


def _histories(dataset: Dataset) -> dict[str, list[str]]:
    """The sequences of every history, in order."""
    found: dict[str, list[str]] = {}
    for feature in dataset.features:
        if feature.history:
            found.setdefault(feature.history, []).append(feature.name)
    return found


def _change(key: str, before: Any, now: Any) -> str:
    if key == "vocabulary":
        return "other values, or in another order"
    return f"{key} {_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    return "none" if value in (None, "") else f"{value}"
