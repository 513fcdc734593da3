"""Version 1 of the events service for shims."""
