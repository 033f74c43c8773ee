"""A synthetic log that goes on day by day, in a marketplace that may drift.

The marketplace is as large as one whose month of 31 such days has MerRec's proportions. Sequences begin and end on the
same day. With drift, between two days

    value ← ρ value + √(1 − ρ²) fresh,    ρ = 2^(−1 / HALF_LIFE)

of what each person likes and of what each product, brand and category is worth, with standard normal fresh values, so
that the events of every day are as hard to tell as those of the first. A share of the people and of the branded
products leaves, and others take their places: as active or popular as those before, and alike in nothing else that is
their own. The true probabilities are those by which each event is drawn, whatever the day.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from recmtl.synthetic.marketplace import (
    TASTE_DIM,
    Catalogue,
    Floats,
    Ints,
    Link,
    Sizes,
    Worth,
    draw_task_normals,
    walk_step,
)
from recmtl.synthetic.simulation import (
    DAY,
    MONTH_DAYS,
    MONTH_START,
    PILOT_EVENTS,
    Events,
    Period,
    Sequences,
    Walk,
    decide,
    draw_favourites,
    draw_items,
    draw_lengths,
    draw_returns,
    draw_user_counts,
    walk_along,
)

HALF_LIFE = 30.0
"""Days after which the correlation of what drifts with what it was is 1/2."""
KEEP = 2 ** (-1 / HALF_LIFE)
USER_TURNOVER, PRODUCT_TURNOVER = 0.03, 0.02
"""Share of the people, and of the branded products, that others replace from one day to the next."""
FAVOURITE_TURNOVER = 0.03
"""Share of favourite categories that change."""
MARKET_STREAM, PILOT_STREAM, DAY_STREAM, BLOCK_STREAM, DRIFT_STREAM = range(2, 7)


@dataclass(frozen=True)
class People:
    """Who there is; arrays over places [U], in each of which one person follows another."""

    generation: Ints
    """How many people were in this place before."""
    sequences: Ints
    """How many sequences the person has had."""
    ease: Floats
    """[T, U] as `walk_along` takes it."""
    taste: Floats
    """[TASTE_DIM, U], likewise."""
    favourites: Ints
    """[U, FAVOURITES] categories c2."""

    @staticmethod
    def draw(count: int, catalogue: Catalogue, rng: np.random.Generator) -> People:
        return People(
            generation=np.zeros(count, np.int64),
            sequences=np.zeros(count, np.int64),
            ease=draw_task_normals(count, rng),
            taste=rng.standard_normal((TASTE_DIM, count)),
            favourites=draw_favourites(catalogue, count, rng),
        )

    @property
    def number(self) -> Ints:
        """Of the person, from 0; no two people ever share it."""
        return np.arange(len(self.generation)) + self.generation * len(self.generation)

    def drift(self, catalogue: Catalogue, rng: np.random.Generator) -> People:
        """The people of the next day."""
        fresh = People.draw(len(self.generation), catalogue, rng)
        arrives = rng.random(len(self.generation)) < USER_TURNOVER
        keep = np.where(arrives, 0.0, KEEP)
        changes = arrives[:, None] | (rng.random(self.favourites.shape) < FAVOURITE_TURNOVER)
        return People(
            generation=self.generation + arrives,
            sequences=np.where(arrives, 0, self.sequences),
            ease=walk_step(self.ease, keep, fresh.ease),
            taste=walk_step(self.taste, keep, fresh.taste),
            favourites=np.where(changes, fresh.favourites, self.favourites),
        )


class DailySimulation:
    """The log as one day after another; it stands on a day, at first on the first.

    The content of a day depends on its number of events, `events`, the seed and `drift` alone.

    Args:
        events: rows of a usual day.
        seed: of every random draw.
        drift: whether people, products and tastes change from day to day.
    """

    def __init__(self, events: int, seed: int, drift: bool) -> None:
        self.events, self.seed, self.is_drifting, self.day = events, seed, drift, 0
        self.sizes = Sizes.for_events(events * MONTH_DAYS)
        rng = np.random.default_rng([seed, MARKET_STREAM])
        self.catalogue = Catalogue.build(self.sizes, rng)
        self.worth = Worth.draw(self.catalogue, rng)
        self.effects = self.worth.effects(self.catalogue)
        self._activity = np.cumsum(draw_user_counts(self.sizes, rng))
        self.people = People.draw(self.sizes.users, self.catalogue, rng)
        self.link = self._fit()

    @property
    def period(self) -> Period:
        """The day."""
        return Period(MONTH_START + self.day * DAY, DAY)

    def next_day(self) -> None:
        """Go to the next day."""
        self.day += 1
        if not self.is_drifting:
            return
        rng = np.random.default_rng([self.seed, DRIFT_STREAM, self.day])
        self.people = self.people.drift(self.catalogue, rng)
        # What has no brand is what a category holds besides its products, and stays.
        arrives = (self.catalogue.brand > 0) & (rng.random(len(self.catalogue.brand)) < PRODUCT_TURNOVER)
        self.catalogue = replace(self.catalogue, edition=self.catalogue.edition + arrives)
        self.worth = self.worth.drift(KEEP, arrives, rng)
        self.effects = self.worth.effects(self.catalogue)

    def blocks(self, events: int, block_events: int) -> Iterator[Events]:
        """The day's events, in blocks of at most so many and one sequence more.

        It may be asked for once a day, as it numbers the sequences of the people.
        """
        place, length = self._draw_day(events, np.random.default_rng([self.seed, DAY_STREAM, self.day]))
        ends = np.cumsum(length)
        cuts = np.unique(np.searchsorted(ends, np.arange(block_events, events, block_events))) + 1
        for index, rows in enumerate(np.split(np.arange(len(place)), cuts[cuts < len(place)])):
            rng = np.random.default_rng([self.seed, BLOCK_STREAM, self.day, index])
            places, walk = self._walk(place[rows], length[rows], rng)
            block = decide(walk, self.link, self.sizes.sessions, self.period, rng)
            of_event = places[block.user]
            block = replace(
                block,
                user=self.people.number[of_event],
                sequence=block.sequence + self.people.sequences[of_event],
            )
            np.add.at(self.people.sequences, place[rows], 1)
            yield block

    def _draw_day(self, events: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Place and length of sequences that have so many events together, in order of place."""
        ends = np.cumsum(draw_lengths(events, rng))
        length = np.diff(np.append(ends[ends < events], events), prepend=0)
        place = np.searchsorted(self._activity, rng.integers(self._activity[-1], size=len(length)), side="right")
        return np.sort(place), length

    def _walk(self, place: Ints, length: Ints, rng: np.random.Generator) -> tuple[Ints, Walk]:
        """The places of the people who have these sequences, and what they see, with users numbered by place."""
        places, user = np.unique(place, return_inverse=True)
        start = np.cumsum(length) - length
        sequences = Sequences(*(np.repeat(values, length) for values in (user.astype(np.int32), start, length)))
        people = self.people
        item = draw_items(self.catalogue, sequences, draw_returns(sequences, rng), people.favourites[places], rng)
        ease, taste = people.ease[:, places], people.taste[:, places]
        return places, walk_along(sequences, item, self.catalogue, self.effects, ease, taste)

    def _fit(self) -> Link:
        """Scale and intercepts, from PILOT_EVENTS of the first day or a month of such days that are not in the log."""
        rng = np.random.default_rng([self.seed, PILOT_STREAM])
        _, walk = self._walk(*self._draw_day(min(PILOT_EVENTS, self.sizes.events), rng), rng)
        return Link.fit(walk.scores)
