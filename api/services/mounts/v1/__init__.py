"""Version 1 of the mounts service."""
