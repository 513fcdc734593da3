"""Version 3 of the task service of shims."""
