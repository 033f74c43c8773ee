"""Serves an export over HTTP: many small requests become few batches for one model."""
