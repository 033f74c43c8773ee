"""The events of a synthetic log: who sees what when, and what they do with it.

People have favourite categories and browse in sequences that circle around a few products. Which items they see does
not depend on what they do with them, so the true probability of each event is known exactly (see `marketplace`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recmtl.synthetic.marketplace import (
    EFFECTS,
    EVENT_SHARES,
    TASKS,
    TASTE_DIM,
    Catalogue,
    Effects,
    Floats,
    Ints,
    Link,
    Sizes,
    Worth,
    categories,
    draw_task_normals,
    float32,
)

HISTORY = 7
"""How many preceding events an event's type depends on."""

MEDIAN_USER_EVENTS, USER_SPREAD, MAX_USER_EVENTS = 12.0, 1.82, 29_597
MEDIAN_SEQUENCE, SEQUENCE_SPREAD, MAX_SEQUENCE = 12.4, 1.2, 200
NEW_SESSION = 0.151
"""Probability that a session ends before an event within a sequence."""
SAME_ITEM, SAME_PRODUCT, FAVOURITE = 0.09, 0.20, 0.5
"""Probability that an event returns to an item, to another item of a product, and else that it is in a favourite c2."""
FAVOURITES = (0.4, 0.2, 0.15, 0.15, 0.1)
"""How often each of a user's favourite categories is chosen."""
ITEM_SKEW = 5.5
"""Popularity within a product falls with rank as rank^(1/skew − 1)."""
MONTH_START = int(np.datetime64("2023-05-01", "us").astype(np.int64))
DAY = 86_400 * 1_000_000
"""Microseconds in a day."""
MONTH_DAYS = 31
MAX_PAUSE, MAX_SESSION_PAUSE = 600 * 1_000_000, 3 * 3_600 * 1_000_000
"""Microseconds: MAX_SEQUENCE pauses of the longer kind take less than LONGEST_SEQUENCE of the month."""
LONGEST_SEQUENCE = 0.9
"""Share of the period that a sequence may last."""

PILOT_EVENTS = 500_000
"""On so many events, or the blocks that hold them, scale and intercepts are fitted."""
CATALOGUE_STREAM, BLOCK_STREAM = 0, 1


@dataclass(frozen=True)
class Events:
    """A block of events in order of user, sequence and time; all arrays [N] unless said otherwise."""

    user: Ints
    sequence: Ints
    """Number of the sequence within its user."""
    length: Ints
    """Length of the event's sequence."""
    session: Ints
    time: Ints
    """Microseconds since 1970."""
    item: Ints
    kind: Ints
    """Index into EVENT_TYPES."""
    view: Floats
    """True probability that `kind` is a view, given everything before the event, the user and the item."""
    like: Floats


class Simulation:
    """The whole log as blocks of users that can be made one at a time.

    Its content depends on the number of events, the seed and `block_events` alone.

    Args:
        events: rows of the whole log.
        seed: of every random draw.
        block_events: about how many events a block has; a user's events are in one block.
    """

    def __init__(self, events: int, seed: int, block_events: int) -> None:
        self.seed = seed
        self.sizes = Sizes.for_events(events)
        rng = np.random.default_rng([seed, CATALOGUE_STREAM])
        self.catalogue = Catalogue.build(self.sizes, rng)
        self.effects = Worth.draw(self.catalogue, rng).effects(self.catalogue)
        self._counts = draw_user_counts(self.sizes, rng)
        ends = np.cumsum(self._counts)
        cuts = np.searchsorted(ends, np.arange(block_events, events, block_events)) + 1
        self._first_user = np.unique(np.concatenate([[0], cuts, [len(ends)]]))
        self._link = Link.fit(np.concatenate([self._walk(index)[0].scores for index in self._pilot()], axis=1))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self._first_user) - 1

    def block(self, index: int) -> Events:
        """The events of one block."""
        walk, rng = self._walk(index)
        events = decide(walk, self._link, self.sizes.sessions, MONTH, rng)
        return replace(events, user=events.user + self._first_user[index])

    def _pilot(self) -> range:
        """The first blocks that hold PILOT_EVENTS, or all."""
        ends = np.cumsum(np.add.reduceat(self._counts, self._first_user[:-1]))
        return range(min(int(np.searchsorted(ends, PILOT_EVENTS)) + 1, self.blocks))

    def _walk(self, index: int) -> tuple[Walk, np.random.Generator]:
        """What the users of a block see and how it scores; and the generator of the block's further draws."""
        rng = np.random.default_rng([self.seed, BLOCK_STREAM, index])
        counts = self._counts[self._first_user[index] : self._first_user[index + 1]]
        sequences = Sequences(np.repeat(np.arange(len(counts), dtype=np.int32), counts), *_draw_sequences(counts, rng))
        returns = draw_returns(sequences, rng)
        favourites = draw_favourites(self.catalogue, len(counts), rng)
        item = draw_items(self.catalogue, sequences, returns, favourites, rng)
        ease = draw_task_normals(len(counts), rng)
        taste = rng.standard_normal((TASTE_DIM, len(counts)))
        return walk_along(sequences, item, self.catalogue, self.effects, ease, taste), rng


@dataclass(frozen=True)
class Period:
    """Microseconds since 1970 at which a log starts, and how many it lasts."""

    start: int
    length: int


MONTH = Period(MONTH_START, MONTH_DAYS * DAY)


@dataclass(frozen=True)
class Sequences:
    """The sequences of a block, before it is drawn what is seen in them; one value an event."""

    user: Ints
    """From 0 in the block."""
    start: Ints
    """Row in which the event's sequence starts."""
    length: Ints

    @property
    def position(self) -> Ints:
        """Number of events before each one in its sequence."""
        return np.arange(len(self.user)) - self.start


@dataclass(frozen=True)
class Walk:
    """What a block of users sees, before it is drawn what they do."""

    sequences: Sequences
    item: Ints
    scores: Floats
    """[T, N], not scaled yet."""


def walk_along(
    sequences: Sequences, item: Ints, catalogue: Catalogue, effects: Effects, ease: Floats, taste: Floats
) -> Walk:
    """Score the items that are seen along sequences.

    Args:
        sequences: of the users of a block.
        item: what is seen at each event.
        catalogue: of the items.
        effects: of the catalogue.
        ease: how easily each user of the block likes or buys, standard normal [T, U].
        taste: each user's vector, standard normal [TASTE_DIM, U].
    """
    position, product = sequences.position, catalogue.product[item]
    person = float32(np.concatenate([EFFECTS["user"] * ease, taste]))
    condition, shipper = catalogue.condition[item], catalogue.shipper[item]
    brand = catalogue.brand[product]
    seen = EFFECTS["product_seen"] * _seen_before(product, position)
    seen += EFFECTS["brand_seen"] * _seen_before(brand, position) * (brand > 0)
    scores = np.empty((TASKS, len(item)), np.float32)
    for task in range(TASKS):
        scores[task] = effects.product[task][product] + effects.condition[task][condition]
        scores[task] += effects.shipper[task][shipper] + seen
        scores[task] += _history_mean(effects.trait[task][product], sequences.start, position)
        scores[task] += person[task][sequences.user]
        for axis in range(TASTE_DIM):
            scores[task] += person[TASKS + axis][sequences.user] * effects.taste[task, axis][product]
    return Walk(sequences, item, scores)


def decide(walk: Walk, link: Link, sessions: int, period: Period, rng: np.random.Generator) -> Events:
    """Draw what happens at each event of a walk, and when in a period; users are numbered as in the walk."""
    like, other = link.probabilities(walk.scores)
    draw = rng.random(len(like), dtype=np.float32)
    kind = (draw < like).astype(np.int8)
    is_other = (draw >= like) & (draw < like + other)
    rest = np.array(EVENT_SHARES[2:]) / sum(EVENT_SHARES[2:])
    kind[is_other] = 2 + categories(tuple(rest), rng.random(np.count_nonzero(is_other)))
    user, begins = walk.sequences.user, walk.sequences.position == 0
    new_session = begins | (rng.random(len(like)) < NEW_SESSION)
    session = np.cumsum(new_session) - 1
    sequence = np.cumsum(begins)
    user_start = np.flatnonzero(np.diff(user, prepend=-1))
    return Events(
        user=user,
        sequence=sequence - sequence[user_start][user],
        length=walk.sequences.length,
        session=rng.integers(sessions, size=session[-1] + 1)[session],
        time=_draw_times(walk.sequences, new_session, period, rng),
        item=walk.item,
        kind=kind,
        view=1 - like - other,
        like=like,
    )


def draw_user_counts(sizes: Sizes, rng: np.random.Generator) -> Ints:
    """Events per user: log-normal, at least one, summing to the number of events."""
    wish = np.exp(np.log(MEDIAN_USER_EVENTS) + USER_SPREAD * rng.standard_normal(sizes.users))
    wish = np.minimum(wish, min(MAX_USER_EVENTS, max(sizes.events // 100, 1)))
    low, high = 0.0, float(sizes.events)
    for _ in range(60):
        scale = (low + high) / 2
        low, high = (scale, high) if np.maximum(1, np.rint(wish * scale)).sum() <= sizes.events else (low, scale)
    counts = np.maximum(1, np.rint(wish * low)).astype(np.int64)
    counts[np.argsort(-wish, kind="stable")[: sizes.events - counts.sum()]] += 1
    return counts


def draw_lengths(count: int, rng: np.random.Generator) -> Ints:
    """Lengths of sequences: log-normal, 1 … MAX_SEQUENCE."""
    wish = np.exp(np.log(MEDIAN_SEQUENCE) + SEQUENCE_SPREAD * rng.standard_normal(count))
    return np.clip(np.rint(wish), 1, MAX_SEQUENCE).astype(np.int64)


def _draw_sequences(counts: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """The row where each event's sequence starts, and its length. Sequences end with their user."""
    total = int(counts.sum())
    ends = np.cumsum(draw_lengths(total // 4 + 64, rng))
    starts = np.union1d(ends[ends < total], np.cumsum(counts) - counts)
    lengths = np.diff(starts, append=total)
    return np.repeat(starts, lengths), np.repeat(lengths, lengths)


@dataclass(frozen=True)
class Returns:
    """Which events return to an item, or a product, of an event before them, and how many rows before."""

    same_item: NDArray[np.bool_]
    same_product: NDArray[np.bool_]
    back: Ints


def draw_returns(sequences: Sequences, rng: np.random.Generator) -> Returns:
    """Returns within the last HISTORY events of a sequence."""
    count, position = len(sequences.user), sequences.position
    draw = rng.random(count, dtype=np.float32)
    back = np.minimum(1 + np.floor(HISTORY * rng.random(count, dtype=np.float32) ** 1.5).astype(np.int64), position)
    same_item = (draw < SAME_ITEM) & (position >= 2)
    same_product = (draw < SAME_ITEM + SAME_PRODUCT) & (position >= 1)
    return Returns(same_item, same_product, np.where(same_item, np.maximum(back, 2), back))


def draw_favourites(catalogue: Catalogue, users: int, rng: np.random.Generator) -> Ints:
    """Each user's favourite c2, [users, FAVOURITES], by popularity."""
    drawn = np.searchsorted(catalogue.cumulative, rng.random((users, len(FAVOURITES))) * catalogue.cumulative[-1])
    return catalogue.c2[np.minimum(drawn, len(catalogue.c2) - 1)]


def draw_items(
    catalogue: Catalogue, sequences: Sequences, returns: Returns, favourites: Ints, rng: np.random.Generator
) -> Ints:
    """The item of each event: one seen shortly before, another of a product seen shortly before, or a fresh one."""
    rows = np.arange(len(sequences.user))
    product = _draw_fresh_products(catalogue, favourites, sequences.user, rng)
    product = product[_roots(np.where(returns.same_product, rows - returns.back, rows))]
    offset = (catalogue.items[product] * rng.random(len(rows), dtype=np.float32) ** ITEM_SKEW).astype(np.int64)
    item = (catalogue.first_item[product] + offset)[_roots(np.where(returns.same_item, rows - returns.back, rows))]
    return _without_twins(item, sequences.start, len(catalogue.product))


def _draw_fresh_products(catalogue: Catalogue, favourites: Ints, user: Ints, rng: np.random.Generator) -> Ints:
    """Products by popularity, mostly in one of the user's favourite categories."""
    edges = np.concatenate([[0.0], catalogue.cumulative])
    choice = favourites[user, categories(FAVOURITES, rng.random(len(user)))]
    anywhere_else = rng.random(len(user)) >= FAVOURITE
    low = np.where(anywhere_else, 0.0, edges[catalogue.first_product[choice]])
    high = np.where(anywhere_else, edges[-1], edges[catalogue.first_product[choice + 1]])
    drawn = np.searchsorted(catalogue.cumulative, low + rng.random(len(user)) * (high - low), side="right")
    return np.minimum(drawn, len(catalogue.c2) - 1)


def _roots(parent: Ints) -> Ints:
    """Follow each row's chain of parents to the row that is its own parent."""
    while True:
        further = parent[parent]
        if np.array_equal(further, parent):
            return parent
        parent = further


def _without_twins(item: Ints, start: Ints, items: int) -> Ints:
    """Replace an item that follows itself in a sequence by its neighbour, until none does."""
    inner = start[1:] == start[:-1]
    while True:
        twins = 1 + np.flatnonzero(inner & (item[1:] == item[:-1]))
        if not len(twins):
            return item
        item[twins] = (item[twins] + 1) % items


def _seen_before(value: Ints, position: Ints) -> Floats:
    """1 where the value is among those of the HISTORY events before it in its sequence, else 0."""
    seen = np.zeros(len(value), bool)
    for lag in range(1, HISTORY + 1):
        seen[lag:] |= (value[lag:] == value[:-lag]) & (position[lag:] >= lag)
    return seen.astype(np.float32)


def _history_mean(trait: Floats, start: Ints, position: Ints) -> Floats:
    """Mean trait of up to HISTORY events before each one in its sequence; 0 for the first."""
    sums = np.concatenate([[0.0], np.cumsum(trait, dtype=np.float64)])
    rows = np.arange(len(trait))
    first = np.maximum(start, rows - HISTORY)
    return float32((sums[rows] - sums[first]) / np.maximum(rows - first, 1))


def _draw_times(sequences: Sequences, new_session: NDArray[np.bool_], period: Period, rng: np.random.Generator) -> Ints:
    """Microseconds since 1970, rising inside a sequence, within the period; sequences too long for it are quicker."""
    noise = rng.standard_normal(len(new_session), dtype=np.float32)
    median = np.where(new_session, np.float32(2_000e6), np.float32(15e6))
    limit = np.where(new_session, MAX_SESSION_PAUSE, MAX_PAUSE)
    pause = np.clip(median * np.exp(noise), 1_000, limit).astype(np.int64)
    elapsed = np.cumsum(pause)
    elapsed -= elapsed[sequences.start]
    last = sequences.start + sequences.length - 1
    longest = LONGEST_SEQUENCE * period.length
    too_long = elapsed[last] > longest
    elapsed = np.where(too_long, (elapsed * (longest / np.maximum(elapsed[last], 1))).astype(np.int64), elapsed)
    latest = period.length - elapsed[last]
    return period.start + (rng.random(len(latest))[sequences.start] * latest).astype(np.int64) + elapsed
