"""Mounts that the daemon carries out itself, and what it has to do for some of them first."""
