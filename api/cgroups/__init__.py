"""Measurements of cgroups, by version of the hierarchy."""
