"""Tar as layers use it: a strict streaming reader and a deterministic writer, without any file system."""
