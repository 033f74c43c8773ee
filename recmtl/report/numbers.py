"""Numbers as text: a mean, with its deviation where there are several runs."""

from __future__ import annotations

import math

from recmtl.report.runs import Value

NOTHING = "–"
GB = 1e9


def show_metric(mean: float, deviation: Value = None) -> str:
    """AUC and log loss: four digits."""
    return _show(mean, deviation, ".4f")


def show_amount(mean: float, deviation: Value = None) -> str:
    """In a label's unit: five digits, or all of those before the point."""
    digits = int(math.log10(abs(mean))) if abs(mean) >= 1 else 0
    return _show(mean, deviation, f",.{max(4 - digits, 0)}f")


def show_seconds(mean: float, deviation: Value = None) -> str:
    """In hours, minutes or seconds, whichever gives a number from 1 up."""
    size, unit = time_unit(mean)
    return _show(mean / size, None if deviation is None else deviation / size, ".1f", f" {unit}")


def show_bytes(mean: float, deviation: Value = None) -> str:
    """In GB."""
    return _show(mean / GB, None if deviation is None else deviation / GB, ".2f")


def show_count(mean: float, deviation: Value = None) -> str:
    """With thousands separators."""
    return _show(mean, deviation, ",.0f")


def show_epochs(mean: float, deviation: Value = None) -> str:
    """Whole, unless it is a mean."""
    return _show(mean, deviation, ".0f" if deviation is None else ".1f")


def show_size(size: float) -> str:
    """Bytes in the unit that gives a number from 1 up."""
    exponent, unit = next(((e, u) for e, u in ((9, "GB"), (6, "MB"), (3, "kB")) if size >= 10**e), (0, "B"))
    return f"{size / 10**exponent:.3g} {unit}" if size < 1000 * 10**exponent else f"{size / GB:,.0f} GB"


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds in the unit, and its name."""
    return next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if seconds >= size), (1, "s"))


def _show(mean: float, deviation: Value, form: str, unit: str = "") -> str:
    spread = "" if deviation is None else f" ± {deviation:{form}}"
    return f"{mean:{form}}{spread}{unit}"
