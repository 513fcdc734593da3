"""Counters of tasks' cgroups as metrics."""
