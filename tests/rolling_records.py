"""The records of a rolling job, without the job."""

from __future__ import annotations

import numpy as np

from recmtl.rolling.record import STEPS, Cost, DayRecord, Gain, Gate, Metrics, TableCounts, Today, Yesterday


def metrics(auc: float) -> Metrics:
    return {
        "view": {"auc": auc, "auc_se": 0.004, "logloss": 0.4, "rows": 900.0},
        "like": {"auc": auc + 0.02, "auc_se": None, "logloss": 0.3, "rows": 900.0},
        "seconds": {"mae": 12.345, "mae_se": 0.25, "rows": 900.0},
    }


def days(count: int, refused: tuple[int, ...] = ()) -> list[DayRecord]:
    """Days of May, the ninth of which has no rows; the AUC of view rises from day to day by .001."""
    rng, found = np.random.default_rng(0), []
    dates = [day for day in range(1, 32) if day != 9][:count]
    for number, date in enumerate(dates):
        day, auc = f"2023-05-{date:02}", 0.7 + number / 1000
        before = found[-1].day if found else None
        yesterday = Yesterday(before, 1000, metrics(auc - 0.01)) if before else None
        gain = {"view": Gain(0.005, 0.0015), "like": Gain(-0.001, None)} if before else {}
        reasons = ("view.auc is 0.7, not >= 0.8", "like.auc <&> 2") if number in refused else ()
        found.append(
            DayRecord(
                day=day,
                since=f"{day} 00:00:00",
                until=f"2023-05-{date + 1:02} 00:00:00",
                rows={"train": 45_000 + 100 * number, "val": 0, "test": 5000},
                tables={
                    "item": TableCounts(10_000 + 60 * number, 10_000 if not number else 90, 0 if not number else 30),
                    "<user>": TableCounts(5_000 + 10 * number, 5_000 if not number else 20, 0 if not number else 10),
                },
                start_from=before,
                yesterday=yesterday,
                today=Today(5000, metrics(auc), metrics(auc - 0.005) if before else {}, gain),
                gate=Gate(not reasons, reasons),
                cost={
                    step: Cost(float(seconds), 1.5 * float(seconds))
                    for step, seconds in zip(STEPS, rng.uniform(10, 60, len(STEPS)), strict=True)
                    if not (reasons and step == "export") and not (before is None and step == "evaluate")
                },
            )
        )
    return found
