"""Version 1 of the daemon service."""
