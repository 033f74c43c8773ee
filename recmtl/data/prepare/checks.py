"""Which facts of the rows a recipe's labels and splits are checked by."""

from __future__ import annotations

from recmtl.data.prepare.facts import Questions
from recmtl.data.prepare.label_checks import label_questions
from recmtl.data.prepare.splits import split_questions
from recmtl.data.recipe import Recipe


def questions(recipe: Recipe, types: dict[str, str]) -> Questions:
    """What to ask of all rows.

    Args:
        recipe: what is checked.
        types: of the columns of `SELECTED`.
    """
    of_splits, groups = split_questions(recipe, types)
    return Questions({**of_splits, **label_questions(recipe)}, groups)
