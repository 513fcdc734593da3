"""The sandbox service of shims."""
