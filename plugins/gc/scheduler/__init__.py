"""The scheduler of garbage collections."""
