"""Mounts of erofs images that are files."""
