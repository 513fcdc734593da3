"""Pages of the debug listener."""
