"""Version 1 of the sandbox service of shims."""
