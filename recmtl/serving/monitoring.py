"""What a server says of itself: metrics for Prometheus, and a line per request."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from recmtl.inference.inputs import Collator, Inputs
from recmtl.schema import MISSING, UNSEEN
from recmtl.serving.batcher import BatchReport

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Metrics:
    """The counters of one process; docs/operations.md says what each means.

    Args:
        several: other processes serve too, and PROMETHEUS_MULTIPROC_DIR says where all keep their numbers.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._several = several
        self.requests = Counter(
            "recmtl_requests_total", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "recmtl_request_seconds",
            "From a request's first byte to its answer",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.rows = Counter("recmtl_rows_total", "Rows scored", registry=self.registry)
        self.parsing = self._seconds("recmtl_parse_seconds", "Reading a request's body")
        self.queue = self._seconds("recmtl_queue_seconds", "Time that requests waited for the model")
        self.encoding = self._seconds("recmtl_encode_seconds", "From one batch's values to ids")
        self.forward = self._seconds("recmtl_forward_seconds", "From one batch's ids to probabilities")
        self.answering = self._seconds("recmtl_answer_seconds", "Writing an answer")
        self.batch = Histogram("recmtl_batch_rows", "Rows of a batch", buckets=SIZES, registry=self.registry)
        self.waiting = Gauge(
            "recmtl_waiting_rows", "Rows that wait now", multiprocess_mode="livesum", registry=self.registry
        )
        self.values = Counter(
            "recmtl_values_total", "Values of a feature that were not missing", ["feature"], registry=self.registry
        )
        self.unseen = Counter(
            "recmtl_unseen_values_total", "Of these, unseen or rare in training", ["feature"], registry=self.registry
        )
        self.missing = Counter(
            "recmtl_missing_rows_total", "Rows in which a feature was missing", ["feature"], registry=self.registry
        )
        self._of_feature: dict[str, tuple[Counter, ...]] = {}
        """These three for each feature: to find them takes longer than to count."""
        self.dropped = Counter("recmtl_unlogged_rows_total", "Rows that --log-features lost", registry=self.registry)
        self.swaps = Counter("recmtl_model_swaps_total", "Exports that took over", registry=self.registry)
        self.refusals = Counter("recmtl_model_refusals_total", "Exports that were refused", registry=self.registry)

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, buckets=SECONDS, registry=self.registry)

    def batch_done(self, report: BatchReport) -> None:
        """Count a batch."""
        self.rows.inc(report.rows)
        self.batch.observe(report.rows)
        self.encoding.observe(report.encoding)
        self.forward.observe(report.forward)
        for seconds in report.waited:
            self.queue.observe(seconds)

    def inputs_scored(self, inputs: Inputs, collator: Collator) -> None:
        """Count missing and unseen values of a batch, by feature."""
        missing, unseen = ((inputs.ids == id).sum(axis=1).tolist() for id in (MISSING, UNSEEN))
        for kind, lacking, strange in zip(collator.categorical, missing, unseen, strict=True):
            self._count(kind.feature.name, inputs.rows - lacking, strange, lacking)
        for kind, (ids, lengths) in zip(collator.lists, inputs.lists, strict=True):
            self._count(kind.feature.name, len(ids), int((ids == UNSEEN).sum()), int((lengths == 0).sum()))

    def _count(self, feature: str, *counts: int) -> None:
        """Add to a feature's values, unseen values and rows without one."""
        if (counters := self._of_feature.get(feature)) is None:
            counters = tuple(metric.labels(feature) for metric in (self.values, self.unseen, self.missing))
            self._of_feature[feature] = counters
        for counter, count in zip(counters, counts, strict=True):
            if count:
                counter.inc(count)

    def page(self) -> bytes:
        """The page that Prometheus reads."""
        if not self._several:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        return generate_latest(together)


class JsonLines(logging.Formatter):
    """A record as one JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time_ = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        fields = {"time": time_, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps({**fields, **getattr(record, "fields", {})})


def log_json() -> None:
    """Send the server's log to stderr, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("recmtl.serving", "uvicorn.error"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)
