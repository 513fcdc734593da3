"""The lease manager."""
