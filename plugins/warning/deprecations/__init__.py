"""Deprecated things in use."""
