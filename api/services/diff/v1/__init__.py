"""Version 1 of the diff service."""
