"""The mounts service."""
