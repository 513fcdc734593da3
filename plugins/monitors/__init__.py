"""Monitors: what watches tasks and containers from beside, for metrics and for restarts."""
