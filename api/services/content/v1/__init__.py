"""Version 1 of the content service."""
