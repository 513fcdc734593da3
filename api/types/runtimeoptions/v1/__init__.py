"""Version 1 of those options."""
