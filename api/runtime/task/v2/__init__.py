"""Version 2 of the task service of shims."""
