"""The typed layer: what it takes is what the field says, and every mistake is one line that names file and key."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.errors import UserError
from recmtl.typed import Count, Fraction, Positive, Seed, Texts, from_dict, from_words


@dataclass
class Entry:
    name: str
    rows: Count | None = None


@dataclass
class Section:
    digit: Annotated[int, Interval(ge=1, le=9)] = 1
    seed: Seed | None = None
    rate: Positive = 1.0
    share: Fraction = 0.0
    plain: float = 0.0
    on: bool = True
    text: str = ""
    mode: Literal["fast", "exact"] = "fast"
    widths: tuple[Annotated[int, Interval(ge=1, le=9)], ...] = ()
    texts: Texts = ()
    modes: dict[str, Literal["fast", "exact"]] = field(default_factory=dict)


@dataclass
class File:
    section: Section = field(default_factory=Section)
    entry: tuple[Entry, ...] = ()


def is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e308 < value < 1e308


def is_mode(value: Any) -> bool:
    return value in ("fast", "exact")


TAKEN = {
    "digit": lambda value: is_whole(value, 1, 9),
    "seed": lambda value: is_whole(value, 0, 2**63 - 1),
    "rate": lambda value: is_number(value) and 0 < value <= 3e38,
    "share": lambda value: is_number(value) and 0 <= value < 1,
    "plain": is_number,
    "on": lambda value: isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "mode": is_mode,
    "widths": lambda value: isinstance(value, list) and all(is_whole(item, 1, 9) for item in value),
    "texts": lambda value: (
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    ),
    "modes": lambda value: isinstance(value, dict) and all(is_mode(item) for item in value.values()),
}
"""Which values of TOML a key of `Section` takes, said once more."""

SCALARS = st.one_of(
    *(st.integers(-1, 10), st.integers(), st.sampled_from([2**63 - 1, 2**63, 10**400, 0.0, 1.0, -0.0, 3e38, 3.1e38])),
    *(st.floats(), st.booleans(), st.text(), st.sampled_from(["fast", "exact", "fats", "1", "true", "nan"])),
    st.dates(),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(), SCALARS, max_size=2))


def test_every_key_is_tried():
    assert list(TAKEN) == [item.name for item in fields(Section)]


@given(key=st.sampled_from(list(TAKEN)), value=VALUES)
@settings(deadline=None, max_examples=150)
def test_a_key_takes_its_values_alone(key, value):
    if TAKEN[key](value):
        got = getattr(from_dict(File, {"section": {key: value}}, "my.toml").section, key)
        wanted = (value,) if key == "texts" and isinstance(value, str) else value
        wanted = float(value) if key in ("rate", "share", "plain") else wanted
        assert got == (tuple(wanted) if isinstance(wanted, list) else wanted)
        assert type(got) is not int or key in ("digit", "seed")
    else:
        with pytest.raises(UserError) as caught:
            from_dict(File, {"section": {key: value}}, "my.toml")
        assert str(caught.value).startswith(f"my.toml: section.{key}")
        assert len(str(caught.value).splitlines()) == 1


@given(key=st.sampled_from([name for name in TAKEN if len(name) > 3]), data=st.data())
@settings(deadline=None, max_examples=50)
def test_a_key_that_lacks_a_letter_is_recognised(key, data):
    place = data.draw(st.integers(0, len(key) - 1))
    misspelt = key[:place] + key[place + 1 :]
    if misspelt not in TAKEN:
        with pytest.raises(UserError, match=f"^my.toml: unknown key 'section.{misspelt}'; did you mean '"):
            from_dict(File, {"section": {misspelt: 1}}, "my.toml")


MISTAKES = [
    ({"sektion": {}}, "my.toml: unknown key 'sektion'; did you mean 'section'?"),
    ({"section": 3}, "my.toml: section: write a section, not 3"),
    ({"section": [{}]}, "my.toml: section: write a section, not a list"),
    ({"section": {"a\nb": 1}}, r"my.toml: unknown key 'section.a\nb'; choose one of digit, seed, rate, share, plain"),
    ({"section": {"digit": 10}}, "my.toml: section.digit: write one whole number from 1 to 9, not 10"),
    ({"section": {"rate": 0}}, "my.toml: section.rate: write one number above 0 and up to 3e+38, not 0"),
    ({"section": {"share": 1}}, "my.toml: section.share: write one number from 0 to below 1, not 1"),
    ({"section": {"plain": math.inf}}, "my.toml: section.plain: write one number, not inf"),
    ({"section": {"text": date(2020, 1, 2)}}, "my.toml: section.text: write text, not datetime.date(2020, 1, 2)"),
    ({"section": {"mode": "exat"}}, "my.toml: section.mode: no 'exat'; did you mean 'exact'?"),
    ({"section": {"mode": 1}}, "my.toml: section.mode: write one of fast, exact, not 1"),
    ({"section": {"widths": [3, 0]}}, "my.toml: section.widths: write one whole number from 1 to 9, not 0"),
    ({"section": {"widths": 3}}, "my.toml: section.widths: write a list, not 3"),
    ({"section": {"texts": 3}}, "my.toml: section.texts: write text or a list of texts, not 3"),
    ({"section": {"modes": {"x": "slow"}}}, "my.toml: section.modes.x: no 'slow'; choose one of fast, exact"),
    ({"entry": {"name": "a"}}, "my.toml: entry: write a section in double brackets for each, not a section"),
    ({"entry": [3]}, "my.toml: [[entry]] number 1: write a section, not 3"),
    ({"entry": [{"name": "a"}, {"rows": 1}]}, "my.toml: [[entry]] number 2: name: missing; write text"),
    ({"entry": [{"nam": "a"}]}, "my.toml: [[entry]] number 1: unknown key 'nam'; did you mean 'name'?"),
    (
        {"entry": [{"name": "a", "rows": -1}]},
        "my.toml: [[entry]] 'a': rows: write one whole number from 0 to 2147483647",
    ),
]


@pytest.mark.parametrize(("values", "said"), MISTAKES)
def test_mistakes_say_what_to_write(values, said):
    with pytest.raises(UserError) as caught:
        from_dict(File, values, "my.toml")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@given(value=st.one_of(st.integers(0, 2**63 - 1), st.none()))
@settings(deadline=None, max_examples=50)
def test_whole_numbers_come_back_from_words(value):
    assert from_words(Seed | None, [str(value)]) == value


@given(value=st.floats(allow_nan=False, allow_infinity=False))
@settings(deadline=None, max_examples=50)
def test_numbers_come_back_from_words(value):
    assert from_words(float, [repr(value)]) == value


@given(word=st.text("0123456789+-._eE \u0663", max_size=6))
@settings(deadline=None, max_examples=200)
def test_a_word_is_the_whole_number_that_it_says_or_refused(word):
    try:
        assert from_words(int, [word]) == float(word)
    except ValueError:
        assert not re.fullmatch(r"[+-]?[0-9]+", word)
