"""Version 1 of the tasks service."""
