"""Version 1 of the snapshots service."""
