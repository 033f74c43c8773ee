"""A simulated marketplace with MerRec's marginals and a planted, learnable signal.

People have favourite categories, browse in sequences that circle around a few products, and like, offer for or buy
some of what they see. Which items they see does not depend on what they do with them; what they do follows

    log p(like) / p(view)  = a₁ + s₁,    log p(other) / p(view) = a₂ + s₂,    p(view) + p(like) + p(other) = 1

where `other` is a cart, offer or buy event and the scores s are sums of the standardised effects in `EFFECTS`. The
scores are scaled to `SCORE_DEVIATION` and the intercepts a fitted to `EVENT_SHARES` on the first blocks, so that the
best possible AUC and the base rates are much the same at every number of events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]
Floats = NDArray[Any]

EVENT_TYPES = ("item_view", "item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp")
EVENT_SHARES = (0.84551, 0.12736, 0.01656, 0.00700, 0.00247, 0.00110)
HISTORY = 7
"""How many preceding events an event's type depends on."""

TASKS = 2
"""Scores per event: like and other, both against view."""
SCORE_DEVIATION = 1.5
TASK_CORRELATION = 0.5
"""Between the effects on like and on other."""
EFFECTS = {
    "c0": 0.20,
    "c1": 0.45,
    "c2": 0.35,
    "brand": 0.45,
    "product": 0.25,
    "condition": 0.40,
    "shipper": 0.20,
    "history": 0.40,
    "product_seen": 0.30,
    "brand_seen": 0.30,
    "user": 0.35,
    "taste": 0.30,
}
"""Standard deviation of each effect relative to the others.

c0 … shipper: biases of the item's attributes. history: mean trait of the preceding products. product_seen,
brand_seen: it is among the preceding ones. user: how easily this person likes or buys. taste: user vector · c1 vector.
"""
TASTE_DIM = 4

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
MEDIAN_PRICE, PRODUCT_PRICE_SPREAD, ITEM_PRICE_SPREAD = 25.0, 0.9, 1.01
CONDITION_SHARES = (0.30, 0.36, 0.24, 0.08, 0.02)
SHIPPER_SHARES = (0.35, 0.65)
BRANDLESS, SIZELESS, COLOURLESS = 0.192, 0.627, 0.956
SIZES, COLOURS = 120, 12

MONTH_START = np.datetime64("2023-05-01", "us").astype(np.int64)
MONTH = 31 * 86_400 * 1_000_000
"""Microseconds in the month."""
MAX_PAUSE, MAX_SESSION_PAUSE = 600 * 1_000_000, 3 * 3_600 * 1_000_000
"""Microseconds: MAX_SEQUENCE pauses of the longer kind still fit into the month."""

PILOT_EVENTS = 500_000
"""On so many events, or the blocks that hold them, scale and intercepts are fitted."""
CATALOGUE_STREAM, BLOCK_STREAM = 0, 1


@dataclass(frozen=True)
class Sizes:
    """How many entities there are; in MerRec's proportions to the number of events."""

    events: int
    users: int
    items: int
    products: int
    brands: int
    c2: int
    c1: int
    c0: int
    sessions: int

    @staticmethod
    def of(events: int) -> Sizes:
        products = max(64, round(events * 0.00535))
        c2 = int(np.clip(products // 4, 64, 3_073))
        return Sizes(
            events=events,
            users=max(1, round(events / 63.1)),
            items=max(products, round(events * 0.235)),
            products=products,
            brands=int(np.clip(products // 5, 64, 20_000)),
            c2=c2,
            c1=int(np.clip(c2 // 10, 34, 309)),
            c0=17,
            sessions=max(1, round(events * 0.024)),
        )


@dataclass(frozen=True)
class Catalogue:
    """What is for sale. Products are in order of c2, items in order of product; brand 0 means no brand."""

    c1_of_c2: Ints
    c0_of_c1: Ints
    c2: Ints
    """Per product [P], as are brand, cumulative, first_item and items."""
    brand: Ints
    cumulative: Floats
    """Probability that a random draw is this product or one before it."""
    first_item: Ints
    items: Ints
    first_product: Ints
    """Per c2, and one past the end: its products are first_product[c2] … first_product[c2 + 1] − 1."""
    product: Ints
    """Per item [I], as are condition, shipper, size, colour (−1: none) and price."""
    condition: Ints
    shipper: Ints
    size: Ints
    colour: Ints
    price: Floats

    @staticmethod
    def build(sizes: Sizes, rng: np.random.Generator) -> Catalogue:
        c1_of_c2 = np.sort(np.arange(sizes.c2) % sizes.c1)
        c0_of_c1 = np.sort(np.arange(sizes.c1) % sizes.c0)
        c2, brand, weight = _draw_products(sizes, rng)
        items = 1 + np.floor(weight * max(sizes.items - len(c2), 0)).astype(np.int64)
        first_item = np.cumsum(items) - items
        product = np.repeat(np.arange(len(c2), dtype=np.int32), items)
        total = len(product)
        sized = _choose_share(np.bincount(c2, weight, minlength=sizes.c2), 1 - SIZELESS, rng)[c2][product]
        size = np.where(sized, rng.integers(SIZES, size=total), -1).astype(np.int16)
        colour = np.where(rng.random(total) < COLOURLESS, -1, rng.integers(COLOURS, size=total)).astype(np.int8)
        log_price = PRODUCT_PRICE_SPREAD * _standardise(rng.standard_normal(len(c2)), weight)[product]
        log_price += ITEM_PRICE_SPREAD * rng.standard_normal(total)
        return Catalogue(
            c1_of_c2=c1_of_c2,
            c0_of_c1=c0_of_c1,
            c2=c2,
            brand=brand,
            cumulative=np.cumsum(weight),
            first_item=first_item,
            items=items,
            first_product=np.searchsorted(c2, np.arange(sizes.c2 + 1)),
            product=product,
            condition=_categories(CONDITION_SHARES, rng.random(total)),
            shipper=_categories(SHIPPER_SHARES, rng.random(total)),
            size=size,
            colour=colour,
            price=np.maximum(1.0, np.round(MEDIAN_PRICE * np.exp(log_price))),
        )

    @property
    def c1(self) -> Ints:
        """Per product."""
        return self.c1_of_c2[self.c2]

    @property
    def c0(self) -> Ints:
        """Per product."""
        return self.c0_of_c1[self.c1]

    @property
    def weight(self) -> Floats:
        """Popularity per product, summing to one."""
        return np.diff(self.cumulative, prepend=0.0)


@dataclass(frozen=True)
class Effects:
    """The planted signal: standardised and weighted effects, float32, tasks first."""

    product: Floats
    """[T, P]: the sum of the c0, c1, c2, brand and product effects."""
    condition: Floats
    shipper: Floats
    trait: Floats
    """[T, P]: what a product in the history says about the person looking; made of c1 and brand."""
    taste: Floats
    """[T, TASTE_DIM, P]: the c1 vector that meets the user's."""

    @staticmethod
    def draw(catalogue: Catalogue, rng: np.random.Generator) -> Effects:
        weight = catalogue.weight
        levels = {"c0": catalogue.c0, "c1": catalogue.c1, "c2": catalogue.c2, "brand": catalogue.brand}
        levels["product"] = np.arange(len(weight))

        def per_level(level: Ints) -> Floats:
            """Standard normal values, one a level, standardised by popularity, for each task: [T, P]."""
            values = _draw_task_normals(int(level.max()) + 1, rng)
            return np.stack([_standardise(row[level], weight) for row in values])

        def per_share(shares: tuple[float, ...]) -> Floats:
            values = rng.permuted(np.tile(np.linspace(-1.0, 1.0, len(shares)), (TASKS, 1)), axis=1)
            return np.stack([_standardise(row, np.array(shares)) for row in values])

        c1_vector = _draw_task_normals((TASTE_DIM, int(levels["c1"].max()) + 1), rng) / np.sqrt(TASTE_DIM)
        return Effects(
            product=np.float32(sum(EFFECTS[name] * per_level(level) for name, level in levels.items())),
            condition=np.float32(EFFECTS["condition"] * per_share(CONDITION_SHARES)),
            shipper=np.float32(EFFECTS["shipper"] * per_share(SHIPPER_SHARES)),
            trait=np.float32((per_level(levels["c1"]) + per_level(levels["brand"])) / np.sqrt(2)),
            taste=np.float32(EFFECTS["taste"] * c1_vector[:, :, levels["c1"]]),
        )


@dataclass(frozen=True)
class Link:
    """score → probability: scale and intercept per task."""

    scale: Floats
    intercept: Floats

    @staticmethod
    def fit(scores: Floats) -> Link:
        """Scale to SCORE_DEVIATION and make the mean probabilities of `scores` [T, N] equal to EVENT_SHARES."""
        shares = np.array([EVENT_SHARES[1], 1 - EVENT_SHARES[0] - EVENT_SHARES[1]])
        scale = SCORE_DEVIATION / scores.std(axis=1, dtype=np.float64)
        link = Link(scale, np.log(shares / EVENT_SHARES[0]))
        for _ in range(30):
            mean = link.probabilities(scores).mean(axis=1, dtype=np.float64)
            link = Link(scale, link.intercept + np.log(shares / mean))
        return link

    def probabilities(self, scores: Floats) -> Floats:
        """Probability of like and of other, [T, N] float32."""
        odds = np.exp(scores * np.float32(self.scale)[:, None] + np.float32(self.intercept)[:, None])
        return odds / (1 + odds.sum(axis=0))


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


class Marketplace:
    """The whole log as blocks of users that can be made one at a time.

    Its content depends on the number of events, the seed and `block_events` alone.

    Args:
        events: rows of the whole log.
        seed: of every random draw.
        block_events: about how many events a block has; a user's events are in one block.
    """

    def __init__(self, events: int, seed: int, block_events: int) -> None:
        self.seed = seed
        self.sizes = Sizes.of(events)
        rng = np.random.default_rng([seed, CATALOGUE_STREAM])
        self.catalogue = Catalogue.build(self.sizes, rng)
        self.effects = Effects.draw(self.catalogue, rng)
        self._counts = _draw_user_counts(self.sizes, rng)
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
        return self._decide(*self._walk(index), self._first_user[index])

    def _pilot(self) -> range:
        """The first blocks that hold PILOT_EVENTS, or all."""
        ends = np.cumsum(np.add.reduceat(self._counts, self._first_user[:-1]))
        return range(min(int(np.searchsorted(ends, PILOT_EVENTS)) + 1, self.blocks))

    def _walk(self, index: int) -> tuple[_Walk, np.random.Generator]:
        """What the users of a block see and how it scores; and the generator of the block's further draws."""
        rng = np.random.default_rng([self.seed, BLOCK_STREAM, index])
        counts = self._counts[self._first_user[index] : self._first_user[index + 1]]
        user = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        start, length = _draw_sequences(counts, rng)
        position = np.arange(len(user)) - start
        item = _draw_items(self.catalogue, len(counts), user, start, position, rng)
        product = self.catalogue.product[item]
        ease = EFFECTS["user"] * _draw_task_normals(len(counts), rng)
        taste = rng.standard_normal((TASTE_DIM, len(counts)))
        scores = self._scores(user, start, position, item, product, np.float32(np.concatenate([ease, taste])))
        return _Walk(user, start, position, length, item, scores), rng

    def _scores(self, user: Ints, start: Ints, position: Ints, item: Ints, product: Ints, person: Floats) -> Floats:
        """Unscaled scores [T, N]."""
        effects, catalogue = self.effects, self.catalogue
        condition, shipper = catalogue.condition[item], catalogue.shipper[item]
        brand = catalogue.brand[product]
        seen = EFFECTS["product_seen"] * _seen_before(product, position, product >= 0)
        seen += EFFECTS["brand_seen"] * _seen_before(brand, position, brand > 0)
        scores = np.empty((TASKS, len(item)), np.float32)
        for task in range(TASKS):
            scores[task] = effects.product[task][product] + effects.condition[task][condition]
            scores[task] += effects.shipper[task][shipper] + seen
            scores[task] += EFFECTS["history"] * _history_mean(effects.trait[task][product], start, position)
            scores[task] += person[task][user]
            for axis in range(TASTE_DIM):
                scores[task] += person[TASKS + axis][user] * effects.taste[task, axis][product]
        return scores

    def _decide(self, walk: _Walk, rng: np.random.Generator, first_user: int) -> Events:
        """Draw what happens at each event of `walk`."""
        like, other = self._link.probabilities(walk.scores)
        draw = rng.random(len(like), dtype=np.float32)
        kind = (draw < like).astype(np.int8)
        is_other = (draw >= like) & (draw < like + other)
        rest = np.array(EVENT_SHARES[2:]) / sum(EVENT_SHARES[2:])
        kind[is_other] = 2 + _categories(tuple(rest), rng.random(np.count_nonzero(is_other)))
        new_session = (walk.position == 0) | (rng.random(len(like)) < NEW_SESSION)
        session = np.cumsum(new_session) - 1
        begins = walk.position == 0
        sequence = np.cumsum(begins)
        user_start = np.flatnonzero(np.diff(walk.user, prepend=-1))
        return Events(
            user=walk.user + first_user,
            sequence=sequence - sequence[user_start][walk.user],
            length=walk.length,
            session=rng.integers(self.sizes.sessions, size=session[-1] + 1)[session],
            time=_draw_times(walk, new_session, rng),
            item=walk.item,
            kind=kind,
            view=1 - like - other,
            like=like,
        )


@dataclass(frozen=True)
class _Walk:
    """What a block of users sees, before it is drawn what they do. `user` counts from 0 in the block."""

    user: Ints
    start: Ints
    """Row in which the event's sequence starts."""
    position: Ints
    length: Ints
    item: Ints
    scores: Floats


def _standardise(values: Floats, weight: Floats) -> Floats:
    """Shift and scale to mean 0 and deviation 1 under `weight`."""
    centred = values - np.average(values, weights=weight)
    return centred / np.sqrt(np.average(centred**2, weights=weight))


def _draw_task_normals(shape: int | tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Standard normal values [T, *shape], correlated between tasks by TASK_CORRELATION."""
    shared, own = rng.standard_normal(shape), rng.standard_normal((TASKS, *np.atleast_1d(shape)))
    return np.sqrt(TASK_CORRELATION) * shared + np.sqrt(1 - TASK_CORRELATION) * own


def _categories(shares: tuple[float, ...], draws: Floats) -> Ints:
    """Uniform draws → categories with these shares."""
    return np.searchsorted(np.cumsum(shares)[:-1], draws, side="right").astype(np.int8)


def _choose_share(weight: Floats, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random subset that holds `share` of the total weight, as nearly as one greedy pass finds."""
    left, chosen = share * weight.sum(), np.zeros(len(weight), bool)
    for index in rng.permutation(len(weight)):
        if weight[index] <= left:
            chosen[index] = True
            left -= weight[index]
    return chosen


def _draw_products(sizes: Sizes, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
    """Distinct (c2, brand) pairs in order of c2, with their popularity. Long-tailed in c2, brand and product."""
    c2 = _draw_by_rank(sizes.c2, 4 * sizes.products, 0.6, rng)
    brand = 1 + _draw_by_rank(sizes.brands, 4 * sizes.products, 0.8, rng)
    _, first = np.unique(c2 * (sizes.brands + 1) + brand, return_index=True)
    pairs = np.sort(first)[: sizes.products]
    c2, brand = c2[pairs], brand[pairs]
    weight = rng.permutation(1 / (np.arange(len(pairs)) + 10.0))
    weight /= weight.sum()
    brandless = _choose_share(weight, BRANDLESS, rng)
    order = np.argsort(c2, kind="stable")
    return c2[order], np.where(brandless, 0, brand)[order], weight[order]


def _draw_by_rank(levels: int, draws: int, exponent: float, rng: np.random.Generator) -> Ints:
    """Draws from 0 … levels − 1 with popularity (rank + 5)^−exponent; which level has which rank is random."""
    cumulative = np.cumsum((np.arange(levels) + 5.0) ** -exponent)
    ranks = np.searchsorted(cumulative, rng.random(draws) * cumulative[-1])
    return rng.permutation(levels)[ranks]


def _draw_user_counts(sizes: Sizes, rng: np.random.Generator) -> Ints:
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


def _draw_sequences(counts: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """The row where each event's sequence starts, and its length. Sequences end with their user."""
    total = int(counts.sum())
    wish = np.exp(np.log(MEDIAN_SEQUENCE) + SEQUENCE_SPREAD * rng.standard_normal(total // 4 + 64))
    lengths = np.clip(np.rint(wish), 1, MAX_SEQUENCE).astype(np.int64)
    ends = np.cumsum(lengths)
    starts = np.union1d(ends[ends < total], np.cumsum(counts) - counts)
    lengths = np.diff(starts, append=total)
    return np.repeat(starts, lengths), np.repeat(lengths, lengths)


def _draw_items(
    catalogue: Catalogue, users: int, user: Ints, start: Ints, position: Ints, rng: np.random.Generator
) -> Ints:
    """The item of each event: one seen shortly before, another of a product seen shortly before, or a fresh one."""
    rows = np.arange(len(user))
    draw = rng.random(len(user), dtype=np.float32)
    back = np.minimum(1 + np.floor(HISTORY * rng.random(len(user)) ** 1.5).astype(np.int64), position)
    same_item = (draw < SAME_ITEM) & (position >= 2)
    back = np.where(same_item, np.maximum(back, 2), back)
    same_product = (draw < SAME_ITEM + SAME_PRODUCT) & (position >= 1)
    product = _draw_fresh_products(catalogue, users, user, rng)
    product = product[_roots(np.where(same_product, rows - back, rows))]
    offset = (catalogue.items[product] * rng.random(len(user)) ** ITEM_SKEW).astype(np.int64)
    item = (catalogue.first_item[product] + offset)[_roots(np.where(same_item, rows - back, rows))]
    return _without_twins(item, start, len(catalogue.product))


def _draw_fresh_products(catalogue: Catalogue, users: int, user: Ints, rng: np.random.Generator) -> Ints:
    """Products by popularity, mostly in one of the user's favourite categories."""
    edges = np.concatenate([[0.0], catalogue.cumulative])
    anywhere = np.searchsorted(catalogue.cumulative, rng.random((users, len(FAVOURITES))) * edges[-1])
    favourite = catalogue.c2[np.minimum(anywhere, len(catalogue.c2) - 1)]
    choice = favourite[user, _categories(FAVOURITES, rng.random(len(user)))]
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


def _seen_before(value: Ints, position: Ints, counts: NDArray[np.bool_]) -> Floats:
    """1 where the value is among those of the HISTORY events before it in its sequence, else 0."""
    seen = np.zeros(len(value), bool)
    for lag in range(1, HISTORY + 1):
        seen[lag:] |= (value[lag:] == value[:-lag]) & (position[lag:] >= lag)
    return np.float32(seen & counts)


def _history_mean(trait: Floats, start: Ints, position: Ints) -> Floats:
    """Mean trait of up to HISTORY events before each one in its sequence; 0 for the first."""
    sums = np.concatenate([[0.0], np.cumsum(trait, dtype=np.float64)])
    rows = np.arange(len(trait))
    first = np.maximum(start, rows - HISTORY)
    return np.float32((sums[rows] - sums[first]) / np.maximum(rows - first, 1))


def _draw_times(walk: _Walk, new_session: NDArray[np.bool_], rng: np.random.Generator) -> Ints:
    """Microseconds since 1970, rising inside a sequence, within the month."""
    noise = rng.standard_normal(len(new_session), dtype=np.float32)
    median = np.where(new_session, np.float32(2_000e6), np.float32(15e6))
    limit = np.where(new_session, MAX_SESSION_PAUSE, MAX_PAUSE)
    pause = np.clip(median * np.exp(noise), 1_000, limit).astype(np.int64)
    elapsed = np.cumsum(pause)
    elapsed -= elapsed[walk.start]
    last = walk.start + walk.length - 1
    latest = MONTH - elapsed[last]
    return MONTH_START + (rng.random(len(latest))[walk.start] * latest).astype(np.int64) + elapsed
