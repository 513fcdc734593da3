"""The task service of shims."""
