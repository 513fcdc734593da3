"""Measurements of the cgroup v1 controllers."""
