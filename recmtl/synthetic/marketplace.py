"""What a synthetic marketplace sells, and the planted signal that decides what people do with it.

    log p(like) / p(view)  = a₁ + s₁,    log p(other) / p(view) = a₂ + s₂,    p(view) + p(like) + p(other) = 1

where `other` is a cart, offer or buy event and the scores s are sums of the standardised effects in `EFFECTS`. The
scores are scaled to `SCORE_DEVIATION` and the intercepts a fitted to `EVENT_SHARES` on part of the log itself, so that
the best possible AUC and the base rates are much the same at every number of events. Most of the variance is in
attributes that are seen often, so that embeddings can learn it from a few million events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[Any]
Floats = NDArray[Any]

EVENT_TYPES = ("item_view", "item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp")
EVENT_SHARES = (0.84551, 0.12736, 0.01656, 0.00700, 0.00247, 0.00110)

TASKS = 2
"""Scores per event: like and other, both against view."""
SCORE_DEVIATION = 1.6
TASK_CORRELATION = 0.8
"""Between the effects on like and on other."""
EFFECTS = {
    "c0": 0.45,
    "c1": 0.60,
    "c2": 0.25,
    "brand": 0.45,
    "product": 0.12,
    "condition": 0.60,
    "shipper": 0.40,
    "history": 0.60,
    "product_seen": 0.20,
    "brand_seen": 0.25,
    "user": 0.20,
    "taste": 0.12,
}
"""Size of each effect relative to the others.

Deviations of c0 … shipper (biases of the item's attributes), of user (how easily this person likes or buys), of taste
(user vector · c1 vector), and of the trait of a product in the history, whose mean over the preceding ones counts.
product_seen and brand_seen are what is added where it is among the preceding ones.
"""
TASTE_DIM = 4

MEDIAN_PRICE, PRODUCT_PRICE_SPREAD, ITEM_PRICE_SPREAD = 25.0, 0.9, 1.01
CONDITION_SHARES = (0.30, 0.36, 0.24, 0.08, 0.02)
SHIPPER_SHARES = (0.35, 0.65)
BRANDLESS, SIZELESS, COLOURLESS = 0.192, 0.627, 0.956
SIZES, COLOURS = 120, 12


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
    def for_events(events: int) -> Sizes:
        products = max(128, round(events * 0.00535))
        c2 = int(np.clip(products // 4, 34, 3_073))
        return Sizes(
            events=events,
            users=max(1, round(events / 63.1)),
            items=max(products, round(events * 0.235)),
            products=products,
            brands=int(np.clip(products // 5, 64, 20_000)),
            c2=c2,
            c1=int(np.clip(c2 // 10, 17, 309)),
            c0=17,
            sessions=max(1, round(events * 0.024)),
        )


@dataclass(frozen=True)
class Catalogue:
    """What is for sale. Products are in order of c2, items in order of product; brand 0 means no brand."""

    c1_of_c2: Ints
    c0_of_c1: Ints
    c2: Ints
    """Per product [P], as are brand, edition, cumulative, first_item and items."""
    brand: Ints
    edition: Ints
    """How many products were here before this one, which has the attributes of the last and is another all the same."""
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
            edition=np.zeros(len(c2), np.int64),
            cumulative=np.cumsum(weight),
            first_item=first_item,
            items=items,
            first_product=np.searchsorted(c2, np.arange(sizes.c2 + 1)),
            product=product,
            condition=categories(CONDITION_SHARES, rng.random(total)),
            shipper=categories(SHIPPER_SHARES, rng.random(total)),
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


@dataclass(frozen=True)
class Worth:
    """The standard normal values that the effects are made of, tasks first."""

    taste: Floats
    """[T, TASTE_DIM, C1]"""
    level: dict[str, Floats]
    """Of the levels c0, c1, c2, brand and product: [T, L]."""
    condition: Floats
    """[T, conditions], evenly spaced instead of normal, as is shipper."""
    shipper: Floats
    trait: tuple[Floats, Floats]
    """Of c1 and of brand: [T, L]."""

    @staticmethod
    def draw(catalogue: Catalogue, rng: np.random.Generator) -> Worth:
        levels = _levels(catalogue)
        sizes = {name: int(level.max()) + 1 for name, level in levels.items()}
        return Worth(
            taste=draw_task_normals((TASTE_DIM, sizes["c1"]), rng),
            level={name: draw_task_normals(size, rng) for name, size in sizes.items()},
            condition=_draw_orders(len(CONDITION_SHARES), rng),
            shipper=_draw_orders(len(SHIPPER_SHARES), rng),
            trait=(draw_task_normals(sizes["c1"], rng), draw_task_normals(sizes["brand"], rng)),
        )

    def drift(self, keep: float, arrives: NDArray[np.bool_], rng: np.random.Generator) -> Worth:
        """A step of the random walk of everything but condition and shipper.

        Args:
            keep: correlation of the values with those before.
            arrives: which products [P] are new, whose own values have nothing of those before.
            rng: of the step.
        """

        def step(values: Floats, keep: ArrayLike = keep) -> Floats:
            return walk_step(values, keep, draw_task_normals(values.shape[1:], rng))

        own = np.where(arrives, 0.0, keep)
        return replace(
            self,
            taste=step(self.taste),
            level={name: step(values, own if name == "product" else keep) for name, values in self.level.items()},
            trait=(step(self.trait[0]), step(self.trait[1])),
        )

    def effects(self, catalogue: Catalogue) -> Effects:
        """Standardised by popularity, weighted and spread over the products."""
        levels = _levels(catalogue)

        def per_product(values: Floats, level: Ints) -> Floats:
            return np.stack([_standardise(row[level], catalogue.weight) for row in values])

        def per_share(values: Floats, shares: tuple[float, ...]) -> Floats:
            return np.stack([_standardise(row, np.array(shares)) for row in values])

        of_levels = {name: per_product(self.level[name], level) for name, level in levels.items()}
        of_c1, of_brand = self.trait
        trait = per_product(of_c1, levels["c1"]) + per_product(of_brand, levels["brand"])
        vectors = self.taste / np.sqrt(TASTE_DIM)
        return Effects(
            product=float32(sum(EFFECTS[name] * values for name, values in of_levels.items())),
            condition=float32(EFFECTS["condition"] * per_share(self.condition, CONDITION_SHARES)),
            shipper=float32(EFFECTS["shipper"] * per_share(self.shipper, SHIPPER_SHARES)),
            trait=float32(EFFECTS["history"] * trait / np.sqrt(2)),
            taste=float32(EFFECTS["taste"] * vectors[:, :, levels["c1"]]),
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
        odds = np.exp(scores * float32(self.scale)[:, None] + float32(self.intercept)[:, None])
        return odds / (1 + odds.sum(axis=0))


def _levels(catalogue: Catalogue) -> dict[str, Ints]:
    """What each product is of."""
    levels = {"c0": catalogue.c0, "c1": catalogue.c1, "c2": catalogue.c2, "brand": catalogue.brand}
    return levels | {"product": np.arange(len(catalogue.c2))}


def _draw_orders(levels: int, rng: np.random.Generator) -> Floats:
    """Evenly spaced values in a random order for each task: [T, levels]."""
    return rng.permuted(np.tile(np.linspace(-1.0, 1.0, levels), (TASKS, 1)), axis=1)


def _standardise(values: Floats, weight: Floats) -> Floats:
    """Shift and scale to mean 0 and deviation 1 under `weight`."""
    centred = values - np.average(values, weights=weight)
    return centred / np.sqrt(np.average(centred**2, weights=weight))


def draw_task_normals(shape: int | tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Standard normal values [T, *shape], correlated between tasks by TASK_CORRELATION."""
    shared, own = rng.standard_normal(shape), rng.standard_normal((TASKS, *np.atleast_1d(shape)))
    return np.sqrt(TASK_CORRELATION) * shared + np.sqrt(1 - TASK_CORRELATION) * own


def walk_step(values: Floats, keep: ArrayLike, fresh: Floats) -> Floats:
    """`keep · values + √(1 − keep²) · fresh`: the deviation stays, the correlation with `values` is `keep`."""
    return keep * values + np.sqrt(1 - np.square(keep)) * fresh


def float32(values: ArrayLike) -> Floats:
    """As an array of float32."""
    return np.asarray(values, np.float32)


def categories(shares: tuple[float, ...], draws: Floats) -> Ints:
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
    branded = 4 * sizes.products
    c2 = np.concatenate([np.arange(sizes.c2), _draw_by_rank(sizes.c2, branded, 0.6, rng)])
    brand = np.concatenate([np.zeros(sizes.c2, int), 1 + _draw_by_rank(sizes.brands, branded, 0.8, rng)])
    _, first = np.unique(c2 * (sizes.brands + 1) + brand, return_index=True)
    pairs = np.sort(first)[: sizes.products]
    pairs = pairs[np.argsort(c2[pairs], kind="stable")]
    c2, brand = c2[pairs], brand[pairs]
    weight = rng.permutation(1 / (np.arange(len(pairs)) + 10.0))
    for group, share in ((brand == 0, BRANDLESS), (brand > 0, 1 - BRANDLESS)):
        weight[group] *= share / weight[group].sum()
    return c2, brand, weight


def _draw_by_rank(levels: int, draws: int, exponent: float, rng: np.random.Generator) -> Ints:
    """Draws from 0 … levels − 1 with popularity (rank + 5)^−exponent; which level has which rank is random."""
    cumulative = np.cumsum((np.arange(levels) + 5.0) ** -exponent)
    ranks = np.searchsorted(cumulative, rng.random(draws) * cumulative[-1])
    return rng.permutation(levels)[ranks]
