"""What a run that starts from another one is told of features and tables that differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import write_data

from recmtl.data.difference import recipe_difference
from recmtl.schema import Dataset, Feature, Table


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("histories")
    write_data(folder)
    return Dataset.load(folder / "out")


def grown(dataset: Dataset, **changes: object) -> Dataset:
    """The next generation of a dataset."""
    return replace(dataset, lineage=(*dataset.lineage, dataset.encoding_fingerprint), **changes)


def with_feature(dataset: Dataset, name: str, **changes: object) -> tuple[Feature, ...]:
    return tuple(replace(feature, **changes) if feature.name == name else feature for feature in dataset.features)


CHANGES = {
    "kind": ("liked_items", {"kind": "sequence", "history": "liked"}, "feature 'liked_items': kind list, now sequence"),
    "table": ("last_brands", {"table": "item"}, "feature 'last_brands': table brand, now item"),
    "length": ("last_items", {"max_length": 50}, "feature 'last_items': max_length 20, now 50"),
    "target": ("last_items", {"target": ""}, "feature 'last_items': target item, now none"),
    "history": ("searches", {"history": "typed"}, "feature 'searches': history searches, now typed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_feature_that_is_another_one(trained: Dataset, change: str) -> None:
    name, changes, said = CHANGES[change]
    features = with_feature(trained, name, **changes)
    assert recipe_difference(trained, replace(trained, features=features)) == said
    assert recipe_difference(trained, grown(trained, features=features)) == said


def test_a_table_that_is_another_one(trained: Dataset) -> None:
    tables = tuple(replace(table, dim=9) if table.name == "brand" else table for table in trained.tables)
    for given in (replace(trained, tables=tables), grown(trained, tables=tables)):
        assert recipe_difference(trained, given) == "table 'brand': dim 4, now 9"


def test_features_that_are_new_or_gone(trained: Dataset) -> None:
    less = tuple(feature for feature in trained.features if feature.name != "last_actions")
    for given in (replace(trained, features=less), grown(trained, features=less)):
        assert recipe_difference(trained, given) == "feature 'last_actions' is gone"
    more = (*trained.features, Feature("colour", table="colour"))
    tables = (*trained.tables, Table("colour", 9))
    found = recipe_difference(trained, replace(trained, features=more, tables=tables))
    assert found == "feature 'colour' is new"
    assert recipe_difference(trained, grown(trained, features=more, tables=tables)) is None


def test_the_columns_of_a_history(trained: Dataset) -> None:
    """Another one changes what the encoder reads, so does another order; a history of its own does not."""
    shop = Feature("last_shops", "sequence", "last_shops", table="item", history="before")
    found = recipe_difference(trained, grown(trained, features=(*trained.features, shop)))
    before = "last_actions, last_items, last_brands"
    assert found == f"history 'before': columns {before}, now {before}, last_shops"
    own = replace(shop, history="shops")
    assert recipe_difference(trained, grown(trained, features=(*trained.features, own))) is None
    turned = grown(trained, features=(*reversed(trained.features),))
    assert recipe_difference(trained, turned) == (
        "history 'before': columns last_actions, last_items, last_brands, now last_brands, last_items, last_actions"
    )


def test_what_the_rows_tell_is_no_difference(trained: Dataset) -> None:
    """Neither of data that grew nor of others, of which another line says that they must be an extension."""
    tables = tuple(replace(table, rows=table.rows + 5, vocabulary="other") for table in trained.tables)
    features = with_feature(trained, "price", mean=3.0, std=2.0, missing={"train": 0.5})
    for given in (replace(trained, tables=tables, features=features), grown(trained, tables=tables)):
        assert recipe_difference(trained, given) is None
