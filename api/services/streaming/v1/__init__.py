"""Version 1 of the streaming service."""
