"""Collectors of warnings."""
