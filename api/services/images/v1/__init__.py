"""Version 1 of the images service."""
