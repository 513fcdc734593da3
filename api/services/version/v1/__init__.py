"""Version 1 of the version service."""
