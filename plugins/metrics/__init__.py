"""Metrics: what counts, and what shows the counts."""
