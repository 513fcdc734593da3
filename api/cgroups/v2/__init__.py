"""Measurements of the unified hierarchy."""
